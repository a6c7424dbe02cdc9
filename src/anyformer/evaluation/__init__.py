"""Answers of classifiers and taggers, metrics with intervals, lm-eval's suites; `anyformer.tasks` evaluates tasks."""

from anyformer.evaluation.classify import Classification, Entity, TaggedText, TaggedWord, classify, tag
from anyformer.evaluation.result import EvaluatedRow, Evaluation, Options, Scores

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
