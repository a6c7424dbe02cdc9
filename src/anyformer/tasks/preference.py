"""The better one of two answers, in all the ways that data sets write them (DPO)."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from anyformer.config import ModelConfig
from anyformer.data.batch import PreferenceBatch, Rng
from anyformer.data.examples import ChatExample, CompletionExample, Message, PreferenceExample
from anyformer.data.examples.chat import encode_chat, generation_mismatch
from anyformer.data.examples.columns import COMPLETION, CONVERSATION, SYSTEM
from anyformer.data.examples.datasets import Dataset, preferences
from anyformer.data.examples.encoded import EncodedRow
from anyformer.data.examples.messages import conversation, text_or_messages
from anyformer.data.examples.parts import Parts, fault
from anyformer.data.rows import Row
from anyformer.errors import UserError
from anyformer.evaluation import answers
from anyformer.evaluation.metrics import share
from anyformer.evaluation.result import EvaluatedRow, Evaluation, Options
from anyformer.generation.inference import require_tokenizer
from anyformer.model import Transformer
from anyformer.tasks.chat import TEMPLATES_CHECKED, add_system
from anyformer.tasks.completion import encode_prompt
from anyformer.tasks.task import Encoded, EncodedText, Encoding, RowSchema, Task, decoders_only, random_ids
from anyformer.tokenizer import Tokenizer
from anyformer.tokenizer.prompt import common_prefix
from anyformer.training.config import CompleteRunConfig
from anyformer.training.losses import PreferenceLoss
from anyformer.training.strategies.base import Strategy

_QUESTIONS = ("instruction", "question", "input")
"""Columns of what a user asks an assistant; a column `prompt` of texts has texts that are continued."""
_PROMPTS = ("prompt", "instruction", *CONVERSATION, "question", "input")
_SIDES = ("chosen", "rejected")
_LABELS = (True, False, 0, 1, "true", "false", "True", "False", "0", "1")
"""Labels of unpaired answers."""
_WORDS: Mapping[str, bool] = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def _build(parts: Parts) -> PreferenceExample:
    """A pair of texts after a text; or of conversations, where any of its parts is one, or an instruction.

    Raises UserError where a part is faulty, or the answers don't differ.
    """
    chosen, rejected = _messages(parts, "chosen"), _messages(parts, "rejected")
    if chosen == rejected:
        raise fault(parts.location, "has the same answer twice", "one of the two must be the better one")
    prompt = _messages(parts, "prompt") if parts.has("prompt") else None
    if isinstance(chosen, str) and isinstance(rejected, str):
        if prompt is None:
            return _text_preference(parts, *_shared_text(chosen, rejected))
        if isinstance(prompt, str) and parts.column("prompt") not in _QUESTIONS and not parts.has("system"):
            return _text_preference(parts, prompt, chosen, rejected)
    return _conversations(parts, prompt, chosen, rejected)


def _text_preference(parts: Parts, prompt: str, chosen: str, rejected: str) -> PreferenceExample:
    """A pair of texts after a text. Raises UserError where one of them is empty."""
    if not chosen.strip() or not rejected.strip():
        raise fault(parts.location, "has an empty answer", "fill it in, or leave the row out")
    start = ((prompt, False),) if prompt else ()
    one, other = (
        CompletionExample(location=parts.location, segments=(*start, (text, True))) for text in (chosen, rejected)
    )
    return PreferenceExample(location=parts.location, chosen=one, rejected=other)


def _messages(parts: Parts, part: str) -> str | list[Message]:
    value = text_or_messages(parts.value(part), parts.location, parts.place(part))
    return value if isinstance(value, str) else value[0]


def _shared_text(chosen: str, rejected: str) -> tuple[str, str, str]:
    """The text that both answers begin with, up to the last whole word, and what follows in each."""
    begin = common_prefix(chosen, rejected)
    # A word that one of them goes on with belongs to the answer, with the space before it.
    while begin and not chosen[begin - 1].isspace():
        begin -= 1
    while begin and chosen[begin - 1] == " ":
        begin -= 1
    return chosen[:begin], chosen[begin:], rejected[begin:]


def _conversations(
    parts: Parts,
    prompt: str | Sequence[Message] | None,
    chosen: str | Sequence[Message],
    rejected: str | Sequence[Message],
) -> PreferenceExample:
    if isinstance(prompt, str):
        more = parts.text("input", empty=True) if parts.column("prompt") != "input" else ""
        prompt = [{"role": "user", "content": f"{prompt}\n{more}" if more else prompt}]
    sides: list[Sequence[Message]] = [
        [{"role": "assistant", "content": side}] if isinstance(side, str) else side for side in (chosen, rejected)
    ]
    if prompt is None or all(side[0]["role"] != "assistant" for side in sides):
        count = common_prefix(*sides)
        prompt, sides = sides[0][:count], [side[count:] for side in sides]
    one, other = (_side(parts, prompt, side, name) for side, name in zip(sides, _SIDES, strict=True))
    return PreferenceExample(location=parts.location, chosen=one, rejected=other)


def _side(parts: Parts, prompt: Sequence[Message], answer: Sequence[Message], name: str) -> ChatExample:
    is_answer = [message["role"] == "assistant" for message in answer]
    if not any(is_answer):
        raise fault(parts.location, f"has no answer of the assistant in {parts.place(name)}")
    for message in answer:
        if message["role"] == "assistant" and not message["content"].strip() and "tool_calls" not in message:
            raise fault(parts.location, f"has an empty answer in {parts.place(name)}")
    return conversation(parts, [*prompt, *answer], [False] * len(prompt) + is_answer)


def _pair_up(rows: Sequence[Parts]) -> tuple[list[PreferenceExample], str | None]:
    """Pair rows of prompt, completion and label.

    Returns:
        The pairs, and how many rows were left out, for people; None where all have a counterpart.

    Raises:
        UserError: A row is faulty, or no prompt has both a good and a bad answer.
    """
    answers = defaultdict[str, dict[bool, list[Parts]]](lambda: {True: [], False: []})
    for parts in rows:
        label = parts.value("label")
        is_good = _WORDS.get(str(label).lower()) if isinstance(label, bool | int | float | str) else None
        if is_good is None:
            raise fault(
                parts.location, "has a label that doesn't say whether the completion is good", "use true or false"
            )
        parts.value("completion")
        answers[repr(parts.value("prompt"))][is_good].append(parts)
    pairs = [_pair(good, bad) for both in answers.values() for good, bad in zip(both[True], both[False], strict=False)]
    if not pairs:
        raise UserError(
            f"{rows[0].location.path} has a label for each completion, and no prompt with both a good and a bad one: "
            "preferences are learned from pairs, as in the columns 'prompt', 'chosen' and 'rejected'."
        )
    left = len(rows) - 2 * len(pairs)
    return pairs, f"{left:,} rows without a counterpart left out" if left else None


def _pair(good: Parts, bad: Parts) -> PreferenceExample:
    values = {"prompt": good.value("prompt")}
    values |= {"chosen": good.value("completion"), "rejected": bad.value("completion")}
    return _build(Parts(Row(good.location, values), {part: part for part in values}))


def _add_system(example: PreferenceExample, text: str) -> tuple[PreferenceExample, int]:
    (chosen, one), (rejected, other) = (add_system(side, text) for side in (example.chosen, example.rejected))
    return replace(example, chosen=chosen, rejected=rejected), one + other


def _encode(encoding: Encoding, examples: Sequence[PreferenceExample]) -> Iterator[Encoded]:
    for number, example in enumerate(examples):
        rows, mismatch = [_row(encoding, side) for side in (example.chosen, example.rejected)], None
        if isinstance(example.chosen, ChatExample) and number < TEMPLATES_CHECKED:
            mismatch = generation_mismatch(encoding.tokenizer, example.chosen, rows[:1])
        texts = [EncodedText.of(row, encoding.context, title) for row, title in zip(rows, _SIDES, strict=True)]
        yield Encoded(example=example, texts=texts, mismatch=mismatch)


def _row(encoding: Encoding, example: ChatExample | CompletionExample) -> EncodedRow:
    if isinstance(example, ChatExample):
        return encode_chat(encoding.tokenizer, example, learn_all=encoding.learn_all)
    return encode_prompt(encoding, example)


def _dataset(encoding: Encoding, encoded: Sequence[Encoded]) -> Dataset:
    pairs = [[text.row for text in each.texts] for each in encoded]
    pairs = [pair for pair in pairs if all(any(row.loss_mask[1:]) for row in pair)]
    if not pairs:
        raise UserError(
            f"No pair is left to be learned: the context of {encoding.context:,} tokens cuts off an answer of each. "
            "Give --context more, or shorten the prompts."
        )
    return preferences([chosen for chosen, _ in pairs], [rejected for _, rejected in pairs], encoding.pad)


def _prepare(strategy: Strategy, datasets: Sequence[Dataset], config: Any) -> None:
    """Compute the log-probabilities of all answers as the model gives them before training: those of the reference."""
    for dataset in datasets:
        order = np.argsort(dataset.lengths, kind="stable")
        for members in np.array_split(order, max(1, len(order) // config.batch_size)):
            rows = strategy.evaluate_rows(dataset.collate(members.tolist()), return_log_probabilities=True)
            assert dataset.reference is not None
            dataset.reference[members] = rows.cpu().numpy().reshape(-1, 2)


def _evaluate(
    model: Transformer, tokenizer: Tokenizer | None, examples: Sequence[PreferenceExample], options: Options
) -> Evaluation:
    """Whether the better answer is the likelier one."""
    tokenizer = require_tokenizer(tokenizer, "it can't be asked in words")
    advance = options.counter("losses", 2 * len(examples))
    both = [answer for example in examples for answer in (example.chosen, example.rejected)]
    nats = [each.nats for each in answers.answer_losses(model, tokenizer, both, progress=advance)]
    rows = list[EvaluatedRow]()
    for example, better, worse in zip(examples, nats[::2], nats[1::2], strict=True):
        likelier = example.chosen if better < worse else example.rejected
        texts = answers.question(example.chosen), answers.answer(example.chosen), answers.answer(likelier)
        rows.append(EvaluatedRow(example.location, *texts, better - worse, better < worse))
    metrics = {"accuracy": share([bool(row.right) for row in rows])}
    return Evaluation(metrics=metrics, rows=rows, notes=["Accuracy: the better answer is likelier."])


def _random_batch(config: CompleteRunConfig, model: ModelConfig, rng: Rng) -> PreferenceBatch:
    tokens = random_ids(config, model, rng, 2)
    return PreferenceBatch(tokens, tokens.copy(), reference=np.zeros(len(tokens), np.float32))


TASK = Task(
    name="preference",
    learns="the better one of two answers (DPO)",
    finetune="runs/SmolLM2-135M-Instruct-1 --data preferences.jsonl --beta 0.3",
    example=PreferenceExample,
    schemas=[
        RowSchema(
            build=_build,
            required={side: (side,) for side in _SIDES},
            optional={"prompt": _PROMPTS, "input": ("input",), **SYSTEM},
            rank=1,
        ),
        RowSchema(
            build=_build,
            required={**COMPLETION, "label": ("label",)},
            fits=lambda values: any(values["label"] is each or values["label"] == each for each in _LABELS),
            gather=_pair_up,
            rank=1,
        ),
    ],
    converses=lambda example: isinstance(example.chosen, ChatExample),
    add_system=_add_system,
    refusal=decoders_only("preference"),
    encode=_encode,
    dataset=_dataset,
    prepare=_prepare,
    loss=lambda model, config: PreferenceLoss(model, config.beta),
    loss_unit=lambda config: "DPO loss, nats",
    settings=("beta", "system", "train_on"),
    generates=True,
    learning_rate=0.1,  # as Rafailov et al. 2023, appendix B, so that the model stays near the reference
    evaluate=_evaluate,
    random_batch=_random_batch,
)
