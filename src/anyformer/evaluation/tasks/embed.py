"""Vectors of texts: how alike they are, and which are nearest."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from anyformer.data.examples import EmbedExample
from anyformer.errors import UserError
from anyformer.evaluation.metrics import relevant_ranks, retrieval, share, similarity
from anyformer.evaluation.metrics.metric import Array
from anyformer.evaluation.metrics.retrieval import unit
from anyformer.evaluation.options import Options
from anyformer.evaluation.result import EvaluatedRow, Evaluation
from anyformer.generation import embed
from anyformer.model import Transformer
from anyformer.tokenizer import Tokenizer


def evaluate_embed(
    model: Transformer, tokenizer: Tokenizer | None, examples: Sequence[EmbedExample], options: Options
) -> Evaluation:
    """How alike the vectors of pairs are; whether that of a text is nearest to the one that belongs to it."""
    texts = list(dict.fromkeys(text for example in examples for text in example.texts))
    vectors = embed(model, tokenizer, texts).double().cpu().numpy()
    options.progress("embed", len(examples), len(examples))
    vector = dict(zip(texts, unit(vectors), strict=True))
    if all(example.score is not None and len(example.texts) == 2 for example in examples):
        return _similarity(examples, vector)
    if all(example.label is None and len(example.texts) >= 2 for example in examples):
        return _retrieval(examples, vector)
    if all(example.label is not None and len(example.texts) <= 2 for example in examples):
        return _neighbors(examples, vector)
    raise UserError(
        "Vectors are compared by pairs with a score, by texts with another that belongs to each, or by texts or pairs "
        "with a class."
    )


def _similarity(examples: Sequence[EmbedExample], vector: dict[str, Array]) -> Evaluation:
    scores = np.array([example.score for example in examples], dtype=np.float64)
    cosines = np.array([vector[a] @ vector[b] for a, b in (example.texts for example in examples)])
    # Spearman's correlation is of ranks, so the worst pairs are those that are out of their place.
    places = [np.argsort(np.argsort(values, kind="stable")) for values in (scores, cosines)]
    rows = [
        EvaluatedRow(example.where, " | ".join(example.texts), f"{score:g}", f"{cosine:.3f}", float(abs(a - b)))
        for example, score, cosine, a, b in zip(examples, scores, cosines, *places, strict=True)
    ]
    return Evaluation(task="embed", metrics=similarity(scores, cosines), rows=rows)


def _retrieval(examples: Sequence[EmbedExample], vector: dict[str, Array]) -> Evaluation:
    """Anchors are queries, and the texts that belong to any of them, or to none, are the documents."""
    documents = list(dict.fromkeys(text for example in examples for text in example.texts[1:]))
    place = {text: number for number, text in enumerate(documents)}
    relevant = defaultdict[str, set[int]](set)
    where = {example.texts[0]: example.where for example in reversed(examples)}
    for example in examples:
        relevant[example.texts[0]].add(place[example.texts[1]])
    queries = list(relevant)
    matrices = [np.stack([vector[text] for text in texts]) for texts in (queries, documents)]
    ranks = relevant_ranks(matrices[0], matrices[1], [sorted(relevant[query]) for query in queries])
    best = [int((matrices[1] @ vector[query]).argmax()) for query in queries]
    rows = [
        EvaluatedRow(
            where[query],
            query,
            documents[min(relevant[query])],
            documents[first],
            float(found.min()),
            bool(found.min() == 1),
        )
        for query, first, found in zip(queries, best, ranks, strict=True)
    ]
    notes = [f"{len(queries):,} queries, {len(documents):,} documents."]
    return Evaluation(task="embed", metrics=retrieval(ranks), rows=rows, notes=notes)


def _neighbors(examples: Sequence[EmbedExample], vector: dict[str, Array]) -> Evaluation:
    """Whether the nearest other text, or pair, has the same class; a pair u, v is [u, v, |u - v|]."""
    if len(examples) < 2:
        raise UserError("The nearest other text takes at least two texts.")
    vectors = np.stack([_joined([vector[text] for text in example.texts]) for example in examples])
    nearest: list[int] = []
    for number, query in enumerate(vectors):
        cosines = vectors @ query
        cosines[number] = -np.inf
        nearest.append(int(cosines.argmax()))
    rows = [
        EvaluatedRow(
            example.where,
            " | ".join(example.texts),
            str(example.label),
            f"{examples[other].label}: {' | '.join(examples[other].texts)}",
            float(vectors[number] @ vectors[other]),
            example.label == examples[other].label,
        )
        for number, (example, other) in enumerate(zip(examples, nearest, strict=True))
    ]
    notes = [f"Accuracy is that of the nearest other {'text' if len(examples[0].texts) == 1 else 'pair'}'s class."]
    return Evaluation(
        task="embed", metrics={"accuracy": share([bool(row.right) for row in rows])}, rows=rows, notes=notes
    )


def _joined(vectors: list[Array]) -> Array:
    """The unit vector of a text, or of a pair."""
    if len(vectors) == 1:
        return vectors[0]
    first, second = vectors
    return unit(np.concatenate((first, second, np.abs(first - second)))[None])[0]
