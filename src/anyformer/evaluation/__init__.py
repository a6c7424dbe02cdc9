"""What classifiers and taggers say, and how good a model is at a task: metrics with intervals, lm-eval's suites."""

from anyformer.evaluation.classify import Classification, classify
from anyformer.evaluation.evaluate import evaluate, evaluate_examples
from anyformer.evaluation.options import Options
from anyformer.evaluation.result import EvaluatedRow, Evaluation, Scores
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
    "evaluate",
    "evaluate_examples",
    "tag",
]
