"""Metrics: pure functions of references and predictions, which give a value and its interval.

Each function returns `Metric` objects by the names under which `anyformer.evaluate` reports them::

    metrics = classification(["good", "bad", "good"], ["good", "good", "good"])
    metrics["accuracy"].value, metrics["accuracy"].interval()
"""

from anyformer.evaluation.metrics.classification import (
    ClassScores,
    class_table,
    classification,
    confusion_matrix,
    multilabel,
)
from anyformer.evaluation.metrics.metric import FEWEST, Interval, Metric, mean, ratio, share
from anyformer.evaluation.metrics.similarity import regression, relevant_ranks, retrieval, similarity
from anyformer.evaluation.metrics.tagging import entities, entity_table, tagging
from anyformer.evaluation.metrics.text import exact_match, language_model, summaries, translation

__all__ = [
    "FEWEST",
    "ClassScores",
    "Interval",
    "Metric",
    "class_table",
    "classification",
    "confusion_matrix",
    "entities",
    "entity_table",
    "exact_match",
    "language_model",
    "mean",
    "multilabel",
    "ratio",
    "regression",
    "relevant_ranks",
    "retrieval",
    "share",
    "similarity",
    "summaries",
    "tagging",
    "translation",
]
