"""Examples of a task as a model reads them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np

from anyformer.config import ModelConfig
from anyformer.data.batch import IGNORED
from anyformer.data.examples import (
    ChatExample,
    ClassifyExample,
    CompletionExample,
    EmbedExample,
    Example,
    PreferenceExample,
    Seq2SeqExample,
    TagExample,
    Task,
)
from anyformer.data.examples.chat import added_system_prompt, encode_chat, encode_chat_rows, generation_mismatch
from anyformer.data.examples.classifier_input import encode_texts, encode_words
from anyformer.data.examples.completion import encode_completion, end_of_text
from anyformer.data.examples.datasets import (
    CausalDataset,
    ClassificationDataset,
    Dataset,
    EmbeddingDataset,
    PreferenceDataset,
    Seq2SeqDataset,
    TaggingDataset,
    pack,
)
from anyformer.data.examples.encoded import Cut, LearnedTokens, truncate
from anyformer.data.examples.labels import LabelKind
from anyformer.data.objectives import decoder_start
from anyformer.errors import UserError
from anyformer.evaluation.metrics.tagging import entities, is_entity_scheme
from anyformer.finetuning.check import Check
from anyformer.finetuning.preview import ROWS, PreviewRow, PreviewText
from anyformer.tokenizer import Tokenizer

_TEMPLATES_CHECKED = 50
"""Conversations whose prompts are compared with those of generation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """How examples are encoded.

    Attributes:
        context: Tokens that a text has at most.
        labels: The names of labels or tags, in the order of their numbers.
        kind: For the task classify, what is said about a text.
        learn_all: Learn prompts as well as answers.
        packing: Put several texts into a row, which do not see each other.
    """

    tokenizer: Tokenizer
    model: ModelConfig
    context: int
    labels: Sequence[str] = ()
    kind: LabelKind | None = None
    learn_all: bool = False
    packing: bool = False

    @property
    def pad(self) -> int:
        """The id that fills rows up. Nothing attends to it and nothing is learned from it, so any will do."""
        known = (self.tokenizer.pad, self.model.special_tokens.pad, self.tokenizer.eos, 0)
        return next(token for token in known if token is not None)

    def encode(self, task: Task, examples: Sequence[Any], check: Check, preview: list[PreviewRow]) -> Dataset:
        """The examples as a dataset; counts them, and draws the first ones.

        Raises:
            UserError: an example that can't be encoded; the tokenizer has no token that ends an answer.
        """
        return _ENCODERS[task](self, examples, check, preview)


def _chat(encoding: Encoding, examples: Sequence[ChatExample], check: Check, preview: list[PreviewRow]) -> Dataset:
    tokenizer = encoding.tokenizer
    added = added_system_prompt(tokenizer)
    texts: list[LearnedTokens] = []
    for number, example in enumerate(examples):
        rows = encode_chat_rows(tokenizer, example, learn_all=encoding.learn_all)
        if number < _TEMPLATES_CHECKED:
            check.add_mismatch(generation_mismatch(tokenizer, example, rows))
        if example.messages[0]["role"] != "system":
            check.add_system_prompt(added)
        texts += _add(encoding, example, rows, check, preview)
    return _causal(encoding, texts)


def _completion(
    encoding: Encoding, examples: Sequence[CompletionExample], check: Check, preview: list[PreviewRow]
) -> Dataset:
    texts: list[LearnedTokens] = []
    for example in examples:
        texts += _add(encoding, example, [_text(encoding, example)], check, preview)
    return _causal(encoding, texts)


def _causal(encoding: Encoding, texts: Sequence[LearnedTokens]) -> Dataset:
    learned = [text for text in texts if any(text.learned[1:])]
    if not learned:
        return CausalDataset([], encoding.pad)
    longest = max(len(text.tokens) - 1 for text in learned)
    rows = pack(learned, longest) if encoding.packing else [[text] for text in learned]
    return CausalDataset(rows, encoding.pad)


def _preference(
    encoding: Encoding, examples: Sequence[PreferenceExample], check: Check, preview: list[PreviewRow]
) -> Dataset:
    chosen: list[LearnedTokens] = []
    rejected: list[LearnedTokens] = []
    for number, example in enumerate(examples):
        sides = [_text(encoding, side) for side in (example.chosen, example.rejected)]
        if isinstance(example.chosen, ChatExample) and number < _TEMPLATES_CHECKED:
            check.add_mismatch(generation_mismatch(encoding.tokenizer, example.chosen, sides[:1]))
        kept = _add(encoding, example, sides, check, preview, ("chosen", "rejected"))
        if all(any(text.learned[1:]) for text in kept):
            chosen.append(kept[0])
            rejected.append(kept[1])
    if not chosen:
        raise UserError(
            f"No pair is left to be learned: the context of {encoding.context:,} tokens cuts off an answer of each. "
            "Give --context more, or shorten the prompts."
        )
    return PreferenceDataset(chosen, rejected, encoding.pad)


def _text(encoding: Encoding, example: ChatExample | CompletionExample) -> LearnedTokens:
    if isinstance(example, ChatExample):
        return encode_chat(encoding.tokenizer, example, learn_all=encoding.learn_all)
    return encode_completion(
        encoding.tokenizer, example, learn_all=encoding.learn_all, special_tokens=encoding.model.special_tokens
    )


def _add(
    encoding: Encoding,
    example: Example,
    rows: Sequence[LearnedTokens],
    check: Check,
    preview: list[PreviewRow],
    titles: Sequence[str] = (),
) -> list[LearnedTokens]:
    """Cut the rows of an example to the context, and count them."""
    kept, cuts = zip(*(truncate(row, encoding.context) for row in rows), strict=True)
    # Of a source no token is to be learned.
    check.add(example, [row.tokens if title == "source" else row for row, title in zip_longest(kept, titles)], cuts)
    if len(preview) < ROWS:
        names = titles or [""] * len(rows)
        texts = [PreviewText.of(*part) for part in zip(kept, names, cuts, strict=True)]
        preview.append(PreviewRow(where=example.where, texts=texts))
    return list(kept)


def _classify(
    encoding: Encoding, examples: Sequence[ClassifyExample], check: Check, preview: list[PreviewRow]
) -> Dataset:
    inputs = encode_texts(
        encoding.tokenizer, [(example.text, example.second) for example in examples], encoding.context
    )
    numbers = {name: number for number, name in enumerate(encoding.labels)}
    if encoding.kind == "regression":
        targets: Any = np.array([_number(example) for example in examples], np.float32)
        targets[targets == IGNORED] = np.nextafter(np.float32(IGNORED), np.float32(0))  # it is to be learned
    elif encoding.kind == "multiple":
        targets = np.zeros((len(examples), len(encoding.labels)), np.float32)
        for row, example in enumerate(examples):
            targets[row, [numbers[name] for name in _names(example)]] = 1.0
    else:
        targets = np.array([numbers[_names(example)[0]] for example in examples], np.int64)
    for example, each in zip(examples, inputs, strict=True):
        labels = [_number(example)] if encoding.kind == "regression" else _names(example)
        cut = Cut(tokens=each.cut)
        check.add(example, [each.tokens], [cut], labels)
        if len(preview) < ROWS:
            text = PreviewText(tokens=each.tokens, cut=cut)
            preview.append(PreviewRow(where=example.where, texts=[text], label=", ".join(map(str, labels))))
    paired = encoding.model.embedding.segments > 1 and any(example.second is not None for example in examples)
    segments = [each.segments for each in inputs] if paired else None
    return ClassificationDataset([each.tokens for each in inputs], segments, targets, encoding.pad)


def _names(example: ClassifyExample) -> Sequence[str]:
    return example.label if isinstance(example.label, tuple) else [str(example.label)]


def _number(example: ClassifyExample) -> float:
    return float(example.label) if isinstance(example.label, int | float) else 0.0


def _tag(encoding: Encoding, examples: Sequence[TagExample], check: Check, preview: list[PreviewRow]) -> Dataset:
    numbers = {name: number for number, name in enumerate(encoding.labels)}
    texts: list[Sequence[int]] = []
    targets: list[Sequence[int]] = []
    named = is_entity_scheme(encoding.labels)
    for example in examples:
        words = encode_words(encoding.tokenizer, example.words, encoding.context)
        row = [IGNORED] * len(words.tokens)
        for position, tag in zip(words.first, example.tags, strict=True):
            if position is not None:
                row[position] = numbers[tag]
        cut = Cut(tokens=words.cut)
        check.add(example, [words.tokens], [cut], example.tags)
        check.entities.update(entity.kind for entity in (entities(example.tags) if named else ()))
        if len(preview) < ROWS:
            tags = [None if number == IGNORED else encoding.labels[number] for number in row]
            text = PreviewText(tokens=words.tokens, tags=tags, grouped=is_entity_scheme(numbers), cut=cut)
            preview.append(PreviewRow(where=example.where, texts=[text]))
        texts.append(words.tokens)
        targets.append(row)
    if all(number == IGNORED for row in targets for number in row):
        raise UserError(
            f"No word is left to be tagged, as in {examples[0].where}: the tokenizer makes nothing of them, or the "
            f"context of {encoding.context:,} tokens has no room for them."
        )
    return TaggingDataset(texts, targets, encoding.pad)


def _embed(encoding: Encoding, examples: Sequence[EmbedExample], check: Check, preview: list[PreviewRow]) -> Dataset:
    every = [(text, None) for each in examples for text in each.texts]
    inputs = iter(encode_texts(encoding.tokenizer, every, encoding.context))
    rows: list[list[Sequence[int]]] = []
    for example in examples:
        own = [next(inputs) for _ in example.texts]
        cuts = [Cut(tokens=each.cut) for each in own]
        said = example.label if example.score is None else example.score
        check.add(example, [each.tokens for each in own], cuts, () if said is None else [said])
        if len(preview) < ROWS:
            texts = [PreviewText(tokens=each.tokens, cut=cut) for each, cut in zip(own, cuts, strict=True)]
            preview.append(PreviewRow(where=example.where, texts=texts, label=None if said is None else f"{said}"))
        rows.append([each.tokens for each in own])
    numbers = {name: number for number, name in enumerate(encoding.labels)}
    if encoding.labels:
        targets: Any = np.array([numbers[example.label or ""] for example in examples], np.int64)
    else:
        targets = np.array([example.score or 0.0 for example in examples], np.float32)
    return EmbeddingDataset(rows, targets, encoding.pad)


def _seq2seq(
    encoding: Encoding, examples: Sequence[Seq2SeqExample], check: Check, preview: list[PreviewRow]
) -> Dataset:
    tokenizer = encoding.tokenizer
    eos = end_of_text(tokenizer)
    sides = [tokenizer.encode_batch([getattr(example, side) for example in examples]) for side in ("source", "target")]
    sources: list[Sequence[int]] = []
    targets: list[Sequence[int]] = []
    for example, source, target in zip(examples, *sides, strict=True):
        whole = [LearnedTokens(source, [False] * len(source)), _written(target, eos, encoding)]
        read, write = _add(encoding, example, whole, check, preview, ("source", "target"))
        sources.append(read.tokens)
        targets.append(write.tokens)
    start = decoder_start(encoding.model.special_tokens, tokenizer)
    return Seq2SeqDataset(sources, targets, encoding.pad, start)


def _written(target: Sequence[int], eos: int, encoding: Encoding) -> LearnedTokens:
    """A target, with its end."""
    ids = list(target) if target and target[-1] == eos else [*target, eos]
    return LearnedTokens(ids, [True] * len(ids))


def _unsupported(encoding: Encoding, examples: Sequence[Any], check: Check, preview: list[PreviewRow]) -> Dataset:
    raise UserError("Plain text is not encoded as examples.")


_ENCODERS: Mapping[str, Callable[..., Dataset]] = {
    "chat": _chat,
    "completion": _completion,
    "preference": _preference,
    "classify": _classify,
    "tag": _tag,
    "embed": _embed,
    "seq2seq": _seq2seq,
    "text": _unsupported,
}
