"""Answers of classifiers and taggers, metrics with intervals, lm-eval's suites; `anyformer.tasks` evaluates tasks."""

from anyformer.evaluation.classify import Classification, classify
from anyformer.evaluation.result import EvaluatedRow, Evaluation, Options, Scores
from anyformer.evaluation.tag import Entity, TaggedText, TaggedWord, tag

__all__ = [
    "Classification",
    "Entity",
    "EvaluatedRow",
    "Evaluation",
    "Options",
    "Scores",
    "TaggedText",
    "TaggedWord",
    "classify",
    "tag",
]
