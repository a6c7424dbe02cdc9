"""How good a model is at a task: predictions, metrics with intervals, and lm-eval's suites."""

from anyformer.evaluation.evaluate import evaluate, evaluate_examples, evaluate_task
from anyformer.evaluation.result import EvaluatedRow, Evaluation, Scores
from anyformer.evaluation.tasks import Options

__all__ = ["EvaluatedRow", "Evaluation", "Options", "Scores", "evaluate", "evaluate_examples", "evaluate_task"]
