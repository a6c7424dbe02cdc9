"""To rewrite a source, as in translation and summaries."""

from collections.abc import Iterator, Sequence
from functools import partial

from anyformer.config import ModelConfig
from anyformer.data.batch import Batch, Rng
from anyformer.data.examples import Seq2SeqExample
from anyformer.data.examples.datasets import Dataset, rewrites
from anyformer.data.examples.encoded import EncodedRow, end_of_text
from anyformer.data.examples.parts import Parts, as_object, as_text, fault, from_json
from anyformer.data.objectives import decoder_start
from anyformer.errors import quote
from anyformer.evaluation.answers import evaluate_answers
from anyformer.tasks.task import Encoded, EncodedText, Encoding, RowSchema, Task, other_head
from anyformer.training.config import CompleteRunConfig

_REWRITES = (
    *(("source", "target"), ("src", "tgt"), ("document", "summary"), ("article", "highlights")),
    *(("article", "summary"), ("dialogue", "summary"), ("text", "summary")),
)


def _build(parts: Parts) -> Seq2SeqExample:
    return Seq2SeqExample(location=parts.location, source=parts.text("source"), target=parts.text("target"))


def _translation(parts: Parts) -> Seq2SeqExample:
    place = parts.place("translation")
    texts = as_object(from_json(parts.value("translation"), parts.location, place), parts.location, place)
    if len(texts) != 2:
        advice = "with others than a source and its target, name those of the source and the target"
        raise fault(parts.location, f"has {len(texts)} texts in {place}", advice)
    source, target = (as_text(text, parts.location, f"{quote(name)} of {place}") for name, text in texts.items())
    return Seq2SeqExample(location=parts.location, source=source, target=target)


def _refusal(model: ModelConfig, name: str) -> str | None:
    if not model.is_encoder_decoder:
        return (
            "Sources and targets are for an encoder-decoder, such as T5 or BART, and this model has one stack: give a "
            "decoder prompts and completions (--task completion --columns prompt=SOURCE completion=TARGET)."
        )
    return other_head(TASK.name, model)


def _encode(encoding: Encoding, examples: Sequence[Seq2SeqExample]) -> Iterator[Encoded]:
    tokenizer, context, eos = encoding.tokenizer, encoding.context, end_of_text(encoding.tokenizer)
    sides = [tokenizer.encode_batch([getattr(example, side) for example in examples]) for side in ("source", "target")]
    for example, source, target in zip(examples, *sides, strict=True):
        target = [*target] if target and target[-1] == eos else [*target, eos]
        rows = EncodedRow(source, [False] * len(source)), EncodedRow(target, [True] * len(target))
        texts = [EncodedText.of(rows[0], context, "source", asks=True), EncodedText.of(rows[1], context, "target")]
        yield Encoded(example=example, texts=texts)


def _dataset(encoding: Encoding, encoded: Sequence[Encoded]) -> Dataset:
    sources, targets = ([each.texts[side].tokens for each in encoded] for side in (0, 1))
    start = decoder_start(encoding.model.special_tokens, encoding.tokenizer)
    return rewrites(sources, targets, encoding.pad, start)


def random_pairs(model: ModelConfig, rng: Rng, rows: int, source: int, target: int) -> Batch:
    """Pairs of random tokens, of a source and a target of these lengths."""
    tokens = rng.integers(model.vocab_size, size=(rows, target))
    words = rng.integers(model.source_vocab_size or model.vocab_size, size=(rows, source))
    return Batch(tokens, tokens.copy(), source=words)


def _random_batch(config: CompleteRunConfig, model: ModelConfig, rng: Rng) -> Batch:
    return random_pairs(model, rng, config.batch_size, config.context, config.context)


TASK = Task(
    name="seq2seq",
    learns="to rewrite a source, as in translation and summaries",
    finetune="google-t5/t5-small --data pairs.jsonl --preview pairs.html",
    example=Seq2SeqExample,
    schemas=[
        RowSchema(build=_translation, required={"translation": ("translation",)}, rank=7),
        *(RowSchema(build=_build, required={"source": (a,), "target": (b,)}, rank=7) for a, b in _REWRITES),
        RowSchema(build=_build, required={"source": ("prompt",), "target": ("completion",)}, explicit=True, rank=7),
    ],
    refusal=_refusal,
    encode=_encode,
    dataset=_dataset,
    checks_ends=False,
    generates=True,
    evaluate=partial(evaluate_answers, translated=True),
    pipeline="text2text-generation",
    auto_class="AutoModelForSeq2SeqLM",
    commands=lambda config, example, evaluate: [("generate", "TEXT")],
    random_batch=_random_batch,
)
