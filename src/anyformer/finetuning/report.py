"""Gains and losses of fine-tuning, as evaluation.json in the run directory and in lines for people."""

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from anyformer import atomic, limits
from anyformer.data.examples import Example
from anyformer.errors import UserError
from anyformer.evaluation.label_metrics import ClassScores, Piece, only_class
from anyformer.evaluation.metrics import FEWEST
from anyformer.evaluation.perplexity import Text
from anyformer.evaluation.result import EvaluatedRow, Evaluation, Options, telling
from anyformer.finetuning.check import Check
from anyformer.finetuning.config import CompleteFinetuneConfig
from anyformer.finetuning.measure import FEWEST_WINDOWS, Figure, Measurement, measure
from anyformer.finetuning.model_card import write_card
from anyformer.model import Transformer
from anyformer.pages.formatting import finite, gained, general, parameters
from anyformer.quantization import quantized_weights
from anyformer.runs.directory import EVALUATION, MODEL
from anyformer.runs.listing import number, read_run
from anyformer.schema import make, to_plain
from anyformer.tasks import TASKS
from anyformer.tasks.evaluate import evaluate_examples
from anyformer.terminal import printable, shorten
from anyformer.tokenizer import Tokenizer
from anyformer.training.precision import choose_precision

BEFORE = "before.json"
"""File of a run directory with the measurement before training, which a resumed run compares with."""

_SHARE = 0.04
"""Share of a run that ends by the clock for measuring the model before it, and again after it."""
_SAMPLED, _NEW_TOKENS = 3, 64
"""Examples of a sample while training goes on, and tokens of each."""
_LOWER_IS_BETTER = ("perplexity", "bits_per_byte", "mse")
_SELDOM = ("rouge1", "rouge2", "rougeLsum", "recall@5", "recall@10")
"""Metrics that the page has, and the terminal has not."""
_ROWS, _WORST = 8, 10
_CLASSES, _LABEL = 20, 40
"""Classes whose scores the terminal has, and characters of a class's name."""
_CHARACTERS = 2000
"""Characters of a text that is kept in evaluation.json."""


class Report:
    """Measures a model before and after a run, and writes the results.

    Args:
        examples: Examples of the task that the model is not trained on.
        checks: Counts of the examples: "training" and "validation".
        text: For the task text, text that the model is not trained on. Without it and examples, general text alone is
            measured.
    """

    def __init__(
        self,
        config: CompleteFinetuneConfig,
        tokenizer: Tokenizer,
        examples: Sequence[Example] = (),
        checks: Mapping[str, Check] | None = None,
        text: Text | None = None,
    ) -> None:
        self._config, self._tokenizer, self._text = config, tokenizer, text
        self._examples, self._checks = examples, checks or {}
        self._latest: Evaluation | None = None
        self._result: dict[str, Any] | None = None

    def measure(self, model: Transformer, directory: Path, step: int) -> Mapping[str, Any]:
        """Measure the model before training, at step 0, or after it; see `Recipe.measure`.

        The measurement before training stays in the run directory, for a resumed run to compare with.
        """
        minutes = self._config.minutes
        before = None
        if step:
            with suppress(UserError):
                before = make(Measurement, limits.read_object(directory / BEFORE), nulls=True)
        for _, weight in quantized_weights(model):
            weight.drop_transposed()  # caches of keys and values take its place
        with self._autocast():
            measured, evaluation = measure(
                model,
                self._tokenizer,
                self._examples,
                self._config.task,
                text=self._text,
                window=self._config.context,
                before=before,
                seconds=None if minutes is None else _SHARE * 60 * minutes,
            )
        if step:
            self._latest = evaluation
            self._result = result(before, measured, evaluation, self._checks)
            text = json.dumps(self._result, indent=1, ensure_ascii=False, allow_nan=False)
            atomic.write(directory / EVALUATION, f"{text}\n")
        else:
            atomic.write(directory / BEFORE, json.dumps(to_plain(measured), allow_nan=False))
            self._latest = None  # a sample is taken after some training
        return {"scores": measured.scores}

    def _autocast(self) -> AbstractContextManager[object]:
        """The run's dtype, for labels and beside weights that stay in it; else texts are computed as in use."""
        if not TASKS[self._config.task].labels_texts and self._config.base_dtype == "float32":
            return nullcontext()
        return choose_precision(self._config.device, self._config.dtype).autocast()

    def rows(self, model: Transformer) -> Sequence[EvaluatedRow]:
        """Answers of the model to examples: those that were measured just now, or a few."""
        latest, self._latest = self._latest, None
        if latest is None and len(self._examples) > 1:
            options = Options(max_new_tokens=_NEW_TOKENS, rouge=False, skip_missing=True)
            few, task = self._examples[:_SAMPLED], self._config.task
            with self._autocast():
                latest = evaluate_examples(model, self._tokenizer, few, task, options)
        return () if latest is None else latest.rows

    def conclude(self, directory: Path, *, first_loss: bool = True) -> Sequence[str]:
        """Write the model card, and return lines for people.

        Args:
            first_loss: Whether the loss before training says anything.

        Raises:
            UserError: the disk refuses.
        """
        if self._result is None:
            return ()
        run = read_run(directory)
        losses = [loss for line in run.evaluations if (loss := number(line, "validation_loss")) is not None]
        ends = (losses[0] if first_loss and len(losses) > 1 else None, losses[-1]) if losses else None
        facts = {
            "parameters": parameters(run.parameters, run.trained_parameters),
            "tokens a step": "" if run.tokens_per_step is None else f"{run.tokens_per_step:,.0f}",
        }
        values = {**self._result, "validation_loss": ends, "run": facts}
        write_card(directory / MODEL, directory.resolve().name, self._config, values, self._checks)
        return lines(self._result)


def result(
    before: Measurement | None, after: Measurement, evaluation: Evaluation, checks: Mapping[str, Check]
) -> dict[str, Any]:
    """Results at the end of a run, as plain values of JSON.

    Args:
        before: The measurement before training, if there is one.
        after: The measurement now; the evaluation has its rows and tables.
        checks: Counts of the examples: "training" and "validation".
    """
    task = TASKS[evaluation.task]
    fewest = FEWEST_WINDOWS if task.is_stream else FEWEST
    enough = after.examples >= fewest
    earlier = {} if before is None else before.figures
    predictions = [None] * len(evaluation.rows)
    if before is not None and len(before.predictions) == len(evaluation.rows):
        predictions = [text or task.nothing for text in before.predictions]
    rows = [replace(row, prediction=row.prediction or task.nothing) for row in evaluation.rows]
    pairs = list(zip(rows, predictions, strict=True))
    general_text = None
    if after.general is not None:
        size = after.size, after.windows
        figure = before.general if before is not None and (before.size, before.windows) == size else None
        general_text = _figure("perplexity", figure, after.general, enough=after.windows >= FEWEST_WINDOWS)
    plural = "s" * (after.examples != 1)
    noun = f"window{plural} of text" if task.is_stream else f"example{plural}"
    measured_on = f"{after.examples:,} {noun}"
    training = checks.get("training")
    # Of words with tags, kinds of entities are counted.
    trained = {} if training is None else training.entities or training.labels
    # Classes that were trained on and do not occur where they are measured are there, too.
    absent = sorted(set(trained) - {row.label for row in evaluation.classes}) if evaluation.classes else []
    classes = [*evaluation.classes, *(ClassScores(label, math.nan, math.nan, math.nan, 0) for label in absent)]
    confusion = evaluation.confusion
    one_class = None
    if task.labels_texts and confusion is not None:
        one_class = only_class([row.reference for row in rows], [row.prediction for row in rows])
    said = [] if one_class is None else [one_class]
    no_verdict = f"No verdict: {measured_on} can't show what was gained, it takes {fewest} or more."
    return {
        "task": evaluation.task,
        "examples": after.examples,
        "measured_on": measured_on,
        "held_out": checks["validation"].examples if "validation" in checks else None,
        "metrics": {
            name: _figure(name, earlier.get(name), figure, enough=enough) for name, figure in after.figures.items()
        },
        "general": general_text,
        "classes": [
            {
                "label": row.label,
                "training": trained.get(row.label),
                "held_out": row.support,
                "precision": finite(row.precision),
                "recall": finite(row.recall),
                "f1": finite(row.f1),
            }
            for row in classes
        ],
        "confusion": None
        if confusion is None
        else {"labels": list(confusion.labels), "matrix": confusion.matrix.tolist()},
        "answers": [_row(*pair) for pair in _chosen(pairs, task.generates)],
        "changed": sum(old is not None and old != row.prediction for row, old in pairs),
        "worst": [_row(*pairs[index]) for index in telling(rows, _WORST)],
        "notes": [*evaluation.notes, *said, *([no_verdict] if earlier and not enough else [])],
    }


def lines(values: Mapping[str, Any]) -> list[str]:
    """The metrics before and after, for people."""
    shown = {name.replace("_", " "): each for name, each in values["metrics"].items() if name not in _SELDOM}
    width = max([10, *map(len, shown)])
    metrics = [f"{name:<{width}} {gained(each)}" for name, each in shown.items() if each["after"] is not None]
    if metrics:
        metrics[0] += f"; {values['measured_on']} held out"
    classes = _by_class(values["classes"], width) if TASKS[values["task"]].lists_classes else []
    figure = values["general"]
    general_text = [] if figure is None else [f"general text: perplexity {general(figure)}"]
    return [*metrics, *classes, *general_text, *map(printable, values["notes"])]


def _by_class(classes: Sequence[Mapping[str, Any]], width: int) -> list[str]:
    """F1 of each class that is to be found, the most frequent first."""
    rows = sorted((row for row in classes if row["held_out"]), key=lambda row: -row["held_out"])
    names = [shorten(printable(row["label"]), _LABEL) for row in rows[:_CLASSES]]
    longest = max(map(len, names), default=0)
    texts = [
        f"{'' if number else 'F1 of':<{width}} {name:<{longest}}  {row['f1']:.3f}; {row['held_out']:,} held out"
        for number, (name, row) in enumerate(zip(names, rows, strict=False))
    ]
    more = f"{'':<{width}} and of {len(rows) - _CLASSES:,} more, see the report"
    return [*texts, *([more] if rows[_CLASSES:] else [])]


def _figure(name: str, before: Figure | None, after: Figure, *, enough: bool) -> dict[str, Any]:
    difference = None if before is None else _bounds(after.difference(before))
    return {
        "before": None if before is None else finite(before.value),
        "before_interval": None if before is None else _bounds(before.interval),
        "after": finite(after.value),
        "interval": _bounds(after.interval),
        "difference": difference,
        "distinguishable": None if difference is None or not enough else not difference[0] <= 0 <= difference[1],
        "higher_is_better": name not in _LOWER_IS_BETTER,
    }


def _bounds(interval: Sequence[float] | None) -> list[float] | None:
    """An interval's ends; None where it isn't known."""
    return None if interval is None or not all(map(math.isfinite, interval)) else [float(each) for each in interval]


def _chosen(pairs: Sequence[tuple[EvaluatedRow, str | None]], generates: bool) -> list[tuple[EvaluatedRow, str | None]]:
    """The rows to show: of texts the first ones, of labels those that were taken for another before."""
    changed = [(row, earlier) for row, earlier in pairs if generates or earlier not in (None, row.prediction)]
    if generates:
        return changed[:_ROWS]
    # Equally many that are right now and that are wrong now, if there are.
    better = [pair for pair in changed if pair[0].right in (True, None)]
    worse = [pair for pair in changed if pair[0].right is False]
    kept = max(_ROWS // 2, _ROWS - len(worse))
    return better[:kept] + worse[: _ROWS - len(better[:kept])]


def _row(row: EvaluatedRow, earlier: str | None) -> dict[str, Any]:
    return {
        "where": f"{row.location.path.name}, {row.location.kind} {row.location.number}",
        "question": row.text[:_CHARACTERS],
        "reference": row.reference[:_CHARACTERS],
        "before": None if earlier is None else earlier[:_CHARACTERS],
        "after": row.prediction[:_CHARACTERS],
        "right": row.right,
        "loss": finite(row.loss),
        **(
            {} if row.spans is None else {"spans": {"right": _cut(row.spans.right), "after": _cut(row.spans.predicted)}}
        ),
    }


def _cut(pieces: Sequence[Piece]) -> list[list[str]]:
    lengths = accumulate((len(piece.text) for piece in pieces), initial=0)
    return [list(piece) for piece, before in zip(pieces, lengths, strict=False) if before < _CHARACTERS]
