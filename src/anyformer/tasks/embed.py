"""Vectors that are near for texts of the same meaning."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, cast

import numpy as np

from anyformer.config import ModelConfig
from anyformer.data.batch import EmbeddingBatch, Rng
from anyformer.data.examples import EmbedExample
from anyformer.data.examples.columns import LABELS, PAIRS, SCORES, TEXTS
from anyformer.data.examples.datasets import Dataset, compared
from anyformer.data.examples.encoded import Truncation, encode_texts
from anyformer.data.examples.labels import resolve_embeddings
from anyformer.data.examples.parts import Parts, as_list, as_text, fault, read_label
from anyformer.errors import UserError, quote
from anyformer.evaluation.metrics import Array, relevant_ranks, retrieval, share, similarity, unit
from anyformer.evaluation.result import EvaluatedRow, Evaluation, Options
from anyformer.generation import embed
from anyformer.model import Transformer
from anyformer.tasks.task import Encoded, EncodedText, Encoding, RowSchema, Task, random_ids
from anyformer.tokenizer import Tokenizer
from anyformer.training.config import CompleteRunConfig
from anyformer.training.losses import EmbeddingLoss

_ANSWERS = ("label", "labels", "score", "scores")
"""Columns that aren't texts to embed."""


def _build(parts: Parts) -> EmbedExample:
    texts = [parts.text("anchor"), parts.text("positive")]
    columns = [column for part, column in parts.required.items() if part.startswith("negative")]
    if not columns and parts.has("negative"):
        columns.append(parts.column("negative"))
    columns += [name for name, value in parts.row.values.items() if name.startswith("negative_") and value is not None]
    for column in dict.fromkeys(columns):
        location, value = f"its column {quote(column)}", parts.find(column)
        several = as_list(value, parts.location, location) if isinstance(value, list) else [value]
        texts += [as_text(each, parts.location, location) for each in several]
    return EmbedExample(location=parts.location, texts=tuple(texts))


def _build_pair(parts: Parts) -> EmbedExample:
    """A pair with a score, or a pair or a text with a label; which of them it is, all labels tell."""
    texts = tuple(parts.text(part) for part in ("text", "second") if part in parts.required)
    if "score" in parts.required:
        return EmbedExample(location=parts.location, texts=texts, score=parts.number("score"))
    label = read_label(parts)
    if isinstance(label, tuple):
        raise fault(parts.location, f"has a list in {parts.place('label')}", "there must be one label")
    return EmbedExample(location=parts.location, texts=texts, label=label)


def _by_order(sample: Mapping[str, Any]) -> tuple[RowSchema, dict[str, str]] | None:
    """Texts to embed by the order of their columns, as sentence-transformers takes them."""
    answer = next((column for column in sample if column in _ANSWERS), None)
    texts = [column for column, value in sample.items() if isinstance(value, str) and column != answer]
    if answer is not None and 1 <= len(texts) <= 2:
        columns, build = dict(zip(("text", "second"), texts, strict=False)) | {"label": answer}, _build_pair
    elif len(texts) >= 2:
        parts = ["anchor", "positive", *(f"negative_{number}" for number in range(len(texts) - 2))]
        columns, build = dict(zip(parts, texts, strict=True)), _build
    else:
        return None
    return RowSchema(build=build, required={part: (column,) for part, column in columns.items()}), columns


def _encode(encoding: Encoding, examples: Sequence[EmbedExample]) -> Iterator[Encoded]:
    every = [(text, None) for each in examples for text in each.texts]
    inputs = iter(encode_texts(encoding.tokenizer, every, encoding.context))
    for example in examples:
        own = islice(inputs, len(example.texts))
        texts = [EncodedText(tokens=each.tokens, cut=Truncation(tokens=each.cut)) for each in own]
        answer = example.label if example.score is None else example.score
        labels = [] if answer is None else [answer]
        yield Encoded(example=example, texts=texts, label=str(answer) if labels else None, labels=labels)


def _dataset(encoding: Encoding, encoded: Sequence[Encoded]) -> Dataset:
    examples, numbers = [cast("EmbedExample", each.example) for each in encoded], encoding.numbers()
    if encoding.labels:
        targets: Any = np.array([numbers[example.label or ""] for example in examples], np.int64)
    else:
        targets = np.array([example.score or 0.0 for example in examples], np.float32)
    return compared([[text.tokens for text in each.texts] for each in encoded], targets, encoding.pad)


def _choose_loss(loss: str | None, example: EmbedExample) -> str:
    """The loss that compares the vectors of examples such as this one.

    Args:
        loss: One of `EMBEDDING_LOSSES` that was asked for; None: the one that suits them.

    Raises:
        UserError: They lack what it compares.
    """
    count = len(example.texts)
    if example.score is not None:
        kind, fitting = "pairs with a score", ("cosine",)
    elif example.label is None:
        kind, fitting = f"rows of {count} texts", ("in_batch_negatives", "triplet")[: 2 if count == 3 else 1]
    elif count == 1:
        kind, fitting = "texts with a class", ("class_triplet",)
    else:
        kind, fitting = "pairs with a class", ("softmax",)
    if loss is not None and loss not in fitting:
        raise UserError(f"--loss {loss} is not for {kind}: leave it out, or take {' or '.join(fitting)}.")
    return loss or fitting[0]


def _evaluate(
    model: Transformer, tokenizer: Tokenizer | None, examples: Sequence[EmbedExample], options: Options
) -> Evaluation:
    """Likeness of the vectors of pairs; or whether that of a text is nearest to the one that belongs to it."""
    texts = list(dict.fromkeys(text for example in examples for text in example.texts))
    vectors = embed(model, tokenizer, texts).double().cpu().numpy()
    options.progress(TASK.name, len(examples), len(examples))
    vector_of = dict(zip(texts, unit(vectors), strict=True))
    if all(example.score is not None and len(example.texts) == 2 for example in examples):
        return _similarity(examples, vector_of)
    if all(example.label is None and len(example.texts) >= 2 for example in examples):
        return _retrieval(examples, vector_of)
    if all(example.label is not None and len(example.texts) <= 2 for example in examples):
        return _neighbors(examples, vector_of)
    raise UserError(
        "Vectors are compared by pairs with a score, by texts with another that belongs to each, or by texts or pairs "
        "with a class."
    )


def _similarity(examples: Sequence[EmbedExample], vector_of: dict[str, Array]) -> Evaluation:
    scores = np.array([example.score for example in examples], dtype=np.float64)
    cosines = np.array([vector_of[a] @ vector_of[b] for a, b in (example.texts for example in examples)])
    # Spearman's correlation is of ranks, so the worst pairs are those whose two ranks differ most.
    ranks = [np.argsort(np.argsort(values, kind="stable")) for values in (scores, cosines)]
    rows = [
        EvaluatedRow(example.location, " | ".join(example.texts), f"{score:g}", f"{cosine:.3f}", float(abs(a - b)))
        for example, score, cosine, a, b in zip(examples, scores, cosines, *ranks, strict=True)
    ]
    return Evaluation(metrics=similarity(scores, cosines), rows=rows)


def _retrieval(examples: Sequence[EmbedExample], vector_of: dict[str, Array]) -> Evaluation:
    """Anchors are queries, and the texts that belong to any of them, or to none, are the documents."""
    documents = list(dict.fromkeys(text for example in examples for text in example.texts[1:]))
    index = {text: number for number, text in enumerate(documents)}
    relevant = defaultdict[str, set[int]](set)
    first_of = {example.texts[0]: example for example in reversed(examples)}
    for example in examples:
        relevant[example.texts[0]].add(index[example.texts[1]])
    queries, matrix = list(relevant), np.stack([vector_of[text] for text in documents])
    vectors = np.stack([vector_of[query] for query in queries])
    ranks = relevant_ranks(vectors, matrix, [sorted(relevant[query]) for query in queries])
    rows = list[EvaluatedRow]()
    for query, vector, own in zip(queries, vectors, ranks, strict=True):
        right, nearest = documents[min(relevant[query])], documents[int((matrix @ vector).argmax())]
        best = float(own.min())
        rows.append(EvaluatedRow(first_of[query].location, query, right, nearest, best, best == 1))
    notes = [f"{len(queries):,} queries, {len(documents):,} documents."]
    return Evaluation(metrics=retrieval(ranks), rows=rows, notes=notes)


def _neighbors(examples: Sequence[EmbedExample], vector_of: dict[str, Array]) -> Evaluation:
    """Whether the nearest other text, or pair, has the same class; a pair u, v is [u, v, |u - v|]."""
    if len(examples) < 2:
        raise UserError("The nearest other text takes at least two texts.")
    vectors = np.stack([_joined([vector_of[text] for text in example.texts]) for example in examples])
    rows = list[EvaluatedRow]()
    for number, example in enumerate(examples):
        cosines = vectors @ vectors[number]
        cosines[number] = -np.inf
        other = examples[int(cosines.argmax())]
        prediction, right = f"{other.label}: {' | '.join(other.texts)}", example.label == other.label
        texts, label = " | ".join(example.texts), str(example.label)
        rows.append(EvaluatedRow(example.location, texts, label, prediction, float(cosines.max()), right))
    notes = [f"Accuracy is that of the nearest other {'text' if len(examples[0].texts) == 1 else 'pair'}'s class."]
    return Evaluation(metrics={"accuracy": share([bool(row.right) for row in rows])}, rows=rows, notes=notes)


def _joined(vectors: list[Array]) -> Array:
    """The unit vector of a text, or of a pair."""
    if len(vectors) == 1:
        return vectors[0]
    first, second = vectors
    return unit(np.concatenate((first, second, np.abs(first - second)))[None])[0]


_LOSSES = {
    "cosine": "squared error of the cosine",
    "triplet": "triplet loss",
    "class_triplet": "triplet loss",
    "softmax": "cross-entropy of the pair's class, nats",
}


def _random_batch(config: CompleteRunConfig, model: ModelConfig, rng: Rng) -> EmbeddingBatch:
    examples = config.batch_size
    slots = np.arange(examples, dtype=np.int64)
    return EmbeddingBatch(random_ids(config, model, rng, 2), np.zeros(examples, np.int64), slots=slots)


_EXPLICIT = (*({"text": (a,), "second": (b,), "label": LABELS} for a, b in PAIRS), {"text": TEXTS, "label": LABELS})

TASK = Task(
    name="embed",
    learns="vectors that are near for texts of the same meaning",
    finetune="sentence-transformers/all-MiniLM-L6-v2 --data pairs.csv",
    example=EmbedExample,
    schemas=[
        RowSchema(
            build=_build,
            required={"anchor": ("anchor", "query"), "positive": ("positive",)},
            optional={"negative": ("negative",)},
            rank=8,
        ),
        *(
            RowSchema(build=_build_pair, required={"text": (a,), "second": (b,), "score": SCORES}, rank=8)
            for a, b in PAIRS
        ),
        *(RowSchema(build=_build_pair, required=required, explicit=True, rank=8) for required in _EXPLICIT),
    ],
    by_order=_by_order,
    resolve_labels=lambda examples, kind, labels, classes: resolve_embeddings(examples, labels),
    classes=lambda example: [example.label],
    head="none",
    encode=_encode,
    dataset=_dataset,
    choose_loss=_choose_loss,
    loss=lambda model, config: EmbeddingLoss(model, config.loss or "in_batch_negatives"),
    loss_unit=lambda config: _LOSSES.get(str(config.get("loss")), "cross-entropy of the positive, nats"),
    settings=("labels", "loss"),
    evaluate=_evaluate,
    pipeline="sentence-similarity",
    auto_class="AutoModel",
    commands=lambda config, example, evaluate: [(TASK.name, "TEXT")],
    random_batch=_random_batch,
)
