"""Measurements before and after fine-tuning, on the same examples, in a form that a run directory keeps."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from typing import Any

import numpy as np

from anyformer.data.examples import Example
from anyformer.errors import UserError
from anyformer.evaluation.answers import Answered, answer
from anyformer.evaluation.metrics import Interval, Metric, language_model, percentiles
from anyformer.evaluation.perplexity import Text, join_texts, losses
from anyformer.evaluation.result import Evaluation, Options
from anyformer.model import Transformer
from anyformer.tasks import TASKS
from anyformer.tasks.evaluate import evaluate_examples
from anyformer.tokenizer import Tokenizer

FEWEST_WINDOWS = 10
"""Windows of text below which nothing is said about what was gained: each is the mean of many predictions."""
_EXAMPLES, _GENERATED = 2000, 32
"""Largest number of examples that are measured: those with labels, and those with texts to write."""
_FIRST, _FIRST_GENERATED = 32, 4
"""Examples that are timed first where time is short."""
_FEWEST_TOKENS, _MOST_TOKENS = 32, 256
"""Limits of the tokens of an answer, which may be half again as long as the longest reference."""
_GENERAL_SHARE = 0.25
"""Share of the time for measuring that general text takes."""
_GENERAL_TOKENS, _WINDOW = 4096, 256


@dataclass(frozen=True, eq=False)
class Figure:
    """A metric: its value, its interval, and the values of resamples, by which it is compared with an earlier one."""

    value: float
    interval: tuple[float, float]
    resampled: tuple[float, ...]

    @classmethod
    def of(cls, metric: Metric) -> "Figure":
        """The figure of a metric, its resamples in six digits."""
        return cls(metric.value, metric.interval(), tuple(float(f"{each:.6g}") for each in metric.resampled().tolist()))

    def difference(self, before: "Figure") -> Interval | None:
        """The paired interval of the gain; None: the two are not of the same rows."""
        if len(self.resampled) != len(before.resampled):
            return None
        return percentiles(np.subtract(self.resampled, before.resampled))


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Measurement of a model.

    Attributes:
        examples: Number of examples; for plain text, of windows.
        general: Perplexity of a text that has nothing to do with the task; None: the model predicts no texts.
        windows, size: Windows of the general text that were read, and bytes of the text.
    """

    examples: int
    figures: Mapping[str, Figure]
    predictions: Sequence[str] = ()
    general: Figure | None = None
    windows: int = 0
    size: int = 0

    @property
    def scores(self) -> dict[str, float]:
        """The metrics as finite numbers."""
        figures = dict(self.figures)
        if self.general is not None:
            figures["general_perplexity"] = self.general
        return {name: figure.value for name, figure in figures.items() if math.isfinite(figure.value)}


def measure(
    model: Transformer,
    tokenizer: Tokenizer,
    examples: Sequence[Any],
    task: str,
    *,
    text: Text | None = None,
    window: int = _WINDOW,
    before: Measurement | None = None,
    seconds: float | None = None,
) -> tuple[Measurement, Evaluation]:
    """Measure a model on the first examples of a task, or on a text in their place, and on general text.

    Args:
        window: Tokens of the text that are read at a time.
        before: An earlier measurement, whose examples and text are measured again; None: this is the first one.
        seconds: Approximate limit of the time; None: that of a few examples, or of a few thousand with labels.
    """
    answers = [answer(example) for example in examples if isinstance(example, Answered)]
    # Of single words ROUGE says what exact match does, and its library loads 180 MB of others.
    rouge = any(len(text.split()) > 1 for text in answers)
    lengths = [len(ids) for ids in tokenizer.encode_batch(answers[:_GENERATED], special=False)]
    new_tokens = min(max(_FEWEST_TOKENS, 3 * max(lengths) // 2), _MOST_TOKENS) if lengths else None
    options = Options(max_new_tokens=new_tokens, rouge=rouge, skip_missing=True)

    def evaluate(rows: Sequence[Example]) -> Evaluation:
        return evaluate_examples(model, tokenizer, rows, task, options)

    generates = TASKS[task].generates
    count = min(len(examples), _GENERATED if generates else _EXAMPLES)
    if before is not None:
        count = min(len(examples), before.examples)
    elif seconds is not None and count:
        first = min(count, _FIRST_GENERATED if generates else _FIRST)
        evaluate(examples[:2])  # the first time takes longer: libraries are imported, code is compiled
        begin = time.monotonic()
        evaluate(examples[:first])
        each = max(1e-9, time.monotonic() - begin) / first
        count = max(first, min(count, int((1 - _GENERAL_SHARE) * seconds / each)))
    if text is not None:
        windows = _read(model, text, window, before and before.examples, seconds and (1 - _GENERAL_SHARE) * seconds)
        count = len(windows)
        evaluation = Evaluation(task=task, metrics=_perplexity(windows))
    else:
        evaluation = evaluate(examples[:count]) if count else Evaluation(task=task, metrics={})
    general = _general_text(model, tokenizer)
    parts: list[tuple[float, int]] = []
    if general is not None:
        parts = _read(model, general, _WINDOW, before and before.windows, seconds and _GENERAL_SHARE * seconds)
    measured = Measurement(
        examples=count,
        figures={name: Figure.of(metric) for name, metric in evaluation.metrics.items()},
        predictions=[row.prediction for row in evaluation.rows],
        general=Figure.of(_perplexity(parts)["perplexity"]) if parts else None,
        windows=len(parts),
        size=0 if general is None else general.size,
    )
    return measured, evaluation


def _perplexity(parts: Sequence[tuple[float, int]]) -> dict[str, Metric]:
    """The metrics of a language model, of the loss in nats and the predictions of each window."""
    return language_model(*map(list, zip(*parts, strict=True)))


def _general_text(model: Transformer, tokenizer: Tokenizer) -> Text | None:
    """Python's own help, English prose that is always there; None: the model does not predict texts."""
    if not model.config.is_decoder_only or model.config.head.kind != "language_model":
        return None
    try:
        topics: Mapping[str, str] = import_module("pydoc_data.topics").topics
        pieces = ((topics[name], True) for name in sorted(topics))
        return join_texts(tokenizer, pieces, _GENERAL_TOKENS)
    except (ImportError, UserError):  # a Python without its help, a tokenizer without these characters
        return None


def _read(
    model: Transformer, text: Text, window: int, windows: int | None, seconds: float | None
) -> list[tuple[float, int]]:
    """The loss in nats and the predictions of so many windows of a text, but one at least, or as far as time goes."""
    limit = None if windows is None else max(1, windows)
    longest = model.config.context_length or model.config.max_length
    begin = time.monotonic()
    parts: list[tuple[float, int]] = []
    for part in islice(losses(model, text, min(window, longest), batch_size=1), limit):
        parts.append(part)
        if limit is None and seconds is not None and time.monotonic() - begin > seconds:
            break
    return parts
