"""Completions of prompts."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from anyformer.config import ModelConfig
from anyformer.data.examples import CompletionExample, Seq2SeqExample
from anyformer.data.examples.columns import COMPLETION
from anyformer.data.examples.datasets import Dataset, causal, pack
from anyformer.data.examples.encoded import EncodedRow, encode_completion
from anyformer.data.examples.parts import Parts, as_object, as_text, fault
from anyformer.evaluation.answers import evaluate_answers
from anyformer.tasks import seq2seq
from anyformer.tasks.task import Encoded, EncodedText, Encoding, RowSchema, Task, decoders_only


def _build(parts: Parts) -> CompletionExample:
    prompt = parts.text("prompt", empty=True)
    segments = (((prompt, False),) if prompt else ()) + ((parts.text("completion"), True),)
    return CompletionExample(location=parts.location, segments=segments)


def _segments(parts: Parts) -> CompletionExample:
    place, segments = parts.place("segments"), list[tuple[str, bool]]()
    for number, each in enumerate(parts.items("segments"), start=1):
        own = f"segment {number} of {place}"
        segment = as_object(each, parts.location, own)
        is_learned = segment.get("label")
        if not isinstance(is_learned, bool):
            advice = 'a segment is like {"text": "...", "label": true}'
            raise fault(parts.location, f"has neither true nor false as the label of {own}", advice)
        if text := as_text(segment.get("text"), parts.location, own, empty=True):
            segments.append((text, is_learned))
    if not any(is_learned for _, is_learned in segments):
        raise fault(parts.location, f"has no segment with the label true in {place}", "there is nothing to learn")
    return CompletionExample(location=parts.location, segments=tuple(segments))


def _has_no_list(values: Mapping[str, Any]) -> bool:
    return not any(isinstance(value, list) for value in values.values())


def _instead(model: ModelConfig) -> tuple[Task, Callable[[Any], Seq2SeqExample]] | None:
    """Prompts and completions are sources and targets of an encoder-decoder."""
    return (seq2seq.TASK, _rewriting) if model.is_encoder_decoder else None


def _rewriting(example: CompletionExample) -> Seq2SeqExample:
    source, target = ("".join(text for text, is_learned in example.segments if is_learned == side) for side in (0, 1))
    return Seq2SeqExample(location=example.location, source=source, target=target)


def encode_prompt(encoding: Encoding, example: CompletionExample) -> EncodedRow:
    """The ids of a prompt and its completion."""
    return encode_completion(
        encoding.tokenizer, example, learn_all=encoding.learn_all, special_tokens=encoding.model.special_tokens
    )


def _encode(encoding: Encoding, examples: Sequence[CompletionExample]) -> Iterator[Encoded]:
    for each in examples:
        yield Encoded(example=each, texts=[EncodedText.of(encode_prompt(encoding, each), encoding.context)])


def causal_dataset(encoding: Encoding, encoded: Sequence[Encoded]) -> Dataset:
    """Texts for a decoder, each in a row or several in one; those without a token to be learned are left out."""
    rows = [text.row for each in encoded for text in each.texts if any(text.row.loss_mask[1:])]
    longest = max((len(row.tokens) - 1 for row in rows), default=0)
    packs = pack(rows, longest) if rows and encoding.packing else [[row] for row in rows]
    return causal(packs, encoding.pad)


TASK = Task(
    name="completion",
    learns="completions of prompts",
    finetune="model.gguf --data completions.jsonl --lora 16 --quantize int4 --minutes 20",
    example=CompletionExample,
    schemas=[
        RowSchema(build=_segments, required={"segments": ("segments",)}, rank=3),
        RowSchema(build=_build, required=COMPLETION, fits=_has_no_list, rank=5),
    ],
    refusal=decoders_only("completion"),
    instead=_instead,
    encode=_encode,
    dataset=causal_dataset,
    settings=("packing", "train_on"),
    generates=True,
    evaluate=evaluate_answers,
    commands=lambda config, example, evaluate: [("generate", "TEXT")],
)
