"""`anyformer evaluate MODEL --data FILE`: how good a model is at a text, a task or a suite, and what rounding costs."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from anyformer.cli.options import AT_LEAST_1, ModelOptions, parse
from anyformer.data.examples.columns import Columns
from anyformer.errors import UserError, nearest
from anyformer.limits import RECORD_BYTES
from anyformer.schema import Rule, hints
from anyformer.tasks import CHOICES, TASKS
from anyformer.terminal import printable, shorten, write

if TYPE_CHECKING:
    from anyformer.evaluation import Evaluation
    from anyformer.evaluation.perplexity import Quality, Text
    from anyformer.model import Transformer
    from anyformer.tokenizer import Tokenizer

    Loaded = tuple[Transformer, Tokenizer | None]

_ROWS = Rule(lambda count: count >= 0, "is a number of rows, 0 or more")
_MOST_LABELS = 12
"""Labels of a confusion matrix that is printed."""
_LABEL, _CELL, _ROW = 60, 20, 2000
"""Characters that are shown of a label, of one in a matrix, and of a row's text."""


@dataclass(frozen=True, kw_only=True)
class _TextOptions:
    """Predicting a text."""

    field: str = "text"
    """The field that holds the text of a record."""
    max_record_bytes: Annotated[int, "N", AT_LEAST_1] = RECORD_BYTES
    """Bytes that a record may have."""
    context: int | None = None
    """Tokens of a window (default: as many as the model was trained on, at most 1,024)."""
    compare: bool = False
    """Evaluate it as stored, with int8 and with int4, and show what each costs; with an --adapter, beside the integers
    and merged before they are made."""


@dataclass(frozen=True, kw_only=True)
class _AnswerOptions:
    """Answers of models that write text."""

    choices: Annotated[tuple[str, ...], "ANSWER"] = ()
    """The answers to choose from, by their probability, instead of writing one."""
    max_new_tokens: Annotated[int | None, AT_LEAST_1] = None
    """New tokens of an answer (default: as many as the context has room for, at most 200)."""


@dataclass(frozen=True, kw_only=True)
class _SuiteOptions:
    """Suites of lm-eval."""

    suite: str | None = None
    """Tasks of lm-eval, such as piqa,hellaswag, or YAML files of your own."""
    few_shot: Annotated[int | None, _ROWS] = None
    """Examples that are shown before each question (default: as the task says)."""
    chat_template: bool = False
    """Ask in the model's chat template."""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(_TextOptions, _AnswerOptions, _SuiteOptions, Columns, ModelOptions):
    """Measure how good a model is: at predicting a text, at a task with examples, or at a suite of tasks.

    A text is cut into windows of --context tokens, and each token is predicted from those before it in its window.
    Examples are rows of jsonl, json, csv, tsv, parquet or conll files; their columns say which task they are for.

    Examples:
        anyformer evaluate openai-community/gpt2 --data notes.txt
        anyformer evaluate openai-community/gpt2 --data notes.txt --compare
        anyformer evaluate my-classifier --data dev.csv
        anyformer evaluate my-model --task chat --data dev.jsonl --choices positive negative
        anyformer evaluate my-model --suite piqa,hellaswag --limit 100
    """

    data: Annotated[tuple[str, ...], "PATH"] = ()
    """The text or the examples: files, folders and globs, as for training."""
    task: Annotated[str | None, CHOICES] = None
    """Task on examples (default: the one that their columns suit)."""
    header: Annotated[tuple[str, ...], "NAME"] = ()
    """The names of the columns of .csv and .tsv files that have no header."""
    limit: Annotated[int | None, AT_LEAST_1] = None
    """Read this many tokens of the text, or examples (default: all)."""
    batch_size: Annotated[int | None, AT_LEAST_1] = None
    """Windows that are read at a time, or answers that are written (default: 4 windows, 16 answers)."""
    worst: Annotated[int, _ROWS] = 5
    """Rows to show that the model is most wrong about."""
    json: bool = False
    """Print the figures as JSON, one object a line."""

    @property
    def columns(self) -> Columns:
        """The names of columns."""
        return Columns(**{name: getattr(self, name) for name in hints(Columns)})


def run(argv: list[str]) -> int:
    """Print the figures."""
    options = parse(EvaluateOptions, argv, "evaluate")
    if options.task is not None and options.task not in TASKS:
        raise UserError(f"--task can't be {options.task!r} ({nearest(options.task, TASKS)}).")
    if options.suite is not None:
        _run_suite(options, options.suite)
    elif not options.data:
        raise UserError("Nothing was given to evaluate on: name a file with --data, or tasks of lm-eval with --suite.")
    elif options.task or options.columns.by_role() or options.choices or options.header or _are_examples(options):
        _run_task(options)
    else:
        _run_text(options)
    return 0


def _are_examples(options: EvaluateOptions) -> bool:
    """Whether the columns of the first file say a task, or none follows from them, which `_run_task` explains.

    Nothing is raised: what is wrong with the file is said later.
    """
    from anyformer.data.input_files import RECORD_SUFFIXES, TAGGED_SUFFIXES
    from anyformer.data.materialize import read_rows
    from anyformer.tasks.detection import detect_task

    first = options.data[0]
    if not first.lower().partition(".gz")[0].endswith((*RECORD_SUFFIXES, *TAGGED_SUFFIXES)):
        return False
    try:
        row = next(iter(read_rows([first], columns=options.header)))
    except (UserError, StopIteration):
        return False
    try:
        return not TASKS[detect_task(row.values, "The data").task].is_stream
    except UserError:
        return options.field == "text" and "text" not in row.values and not options.compare


def _run_suite(options: EvaluateOptions, suite: str) -> None:
    from anyformer.console import Console, table

    if options.data or options.task is not None or options.compare:
        raise UserError("--suite brings its own data: leave out --data, --task and --compare.")
    if not Console(stderr=True).is_terminal:
        os.environ.setdefault("TQDM_DISABLE", "1")
    from anyformer.evaluation.harness import run_suite

    results = run_suite(
        *options.load_model(),
        [task for task in suite.split(",") if task],
        limit=options.limit,
        few_shot=options.few_shot,
        chat_template=options.chat_template,
        batch_size=options.batch_size,
    )
    shown = table("task", "metric", numbers=("value", "standard error", "examples"))
    for task, metrics in results.items():
        if options.json:
            write(json.dumps({"task": task, **metrics}), flush=True)
        for name, value in metrics.items():
            metric, _, kind = name.partition(",")
            if name != "samples" and not metric.endswith("_stderr"):
                error = metrics.get(f"{metric}_stderr,{kind}")
                cells = f"{value:.4f}", "" if error is None else f"{error:.4f}", f"{metrics.get('samples', 0):,.0f}"
                shown.add_row(task, metric, *cells)
    if not options.json:
        Console().print(shown)


def _run_task(options: EvaluateOptions) -> None:
    from rich.progress import TaskID

    from anyformer.console import progress_bar
    from anyformer.evaluation import Options
    from anyformer.tasks.evaluate import evaluate

    if options.compare:
        raise UserError("--compare is for texts: leave out --task, the columns and --choices.")
    model, tokenizer = options.load_model()
    with progress_bar() as bar:
        stages: dict[str, TaskID] = {}

        def advance(stage: str, count: int, total: int) -> None:
            if stage not in stages:
                stages[stage] = bar.add_task(stage, total=total)
            bar.advance(stages[stage], count)

        evaluation = evaluate(
            model,
            tokenizer,
            options.data,
            options.task,
            columns=options.columns,
            header=options.header,
            limit=options.limit,
            options=Options(
                choices=options.choices,
                max_new_tokens=options.max_new_tokens,
                batch_size=options.batch_size or 16,
                progress=advance,
            ),
        )
    if options.json:
        write(json.dumps(to_json(evaluation, options.worst)), flush=True)
    else:
        show(evaluation, options.worst)


def show(evaluation: Evaluation, worst: int) -> None:
    """Print the metrics with their intervals, the classes, the confusion matrix and the worst rows."""
    from anyformer.console import Console, table

    console = Console()
    if evaluation.rows:
        console.print(f"{evaluation.task}: {len(evaluation.rows):,} examples")
    for note in evaluation.notes:
        console.print(note)
    metrics = table("metric", numbers=("value", "95% interval"))
    for (name, value), (low, high) in zip(evaluation.items(), evaluation.intervals().values(), strict=True):
        metrics.add_row(name, _number(value), "" if math.isnan(low) else f"{_number(low)} to {_number(high)}")
    console.print(metrics)
    if evaluation.classes:
        classes = table("class", numbers=("precision", "recall", "F1", "examples"))
        for row in evaluation.classes:
            scores = (f"{value:.3f}" for value in (row.precision, row.recall, row.f1))
            classes.add_row(_line(row.label, _LABEL), *scores, f"{row.support:,}")
        console.print("", classes, sep="\n")
    confusion = evaluation.confusion
    if confusion is not None and len(confusion.labels) <= _MOST_LABELS:
        labels = [_line(label, _CELL) for label in confusion.labels]
        matrix = table("is, taken for", numbers=labels)
        for label, counts in zip(labels, confusion.matrix, strict=True):
            matrix.add_row(label, *(f"{count:,}" for count in counts))
        console.print("", matrix, sep="\n")
    for number, row in enumerate(evaluation.worst(worst)):
        console.print("\nMost wrong about" if number == 0 else "")
        console.print(f"{row.location}: {_line(row.text, _ROW)}")
        console.print(f"  right: {_line(row.reference, _ROW)}   said: {_line(row.prediction, _ROW)}")


def to_json(evaluation: Evaluation, worst: int) -> dict[str, Any]:
    """An evaluation as plain values; those that are not defined are None."""
    from anyformer.pages.formatting import finite

    intervals, confusion = evaluation.intervals(), evaluation.confusion
    matrix = confusion and {"labels": list(confusion.labels), "matrix": confusion.matrix.tolist()}
    return {
        "task": evaluation.task,
        "examples": len(evaluation.rows),
        "metrics": {
            name: {"value": finite(value), "low": finite(intervals[name].low), "high": finite(intervals[name].high)}
            for name, value in evaluation.items()
        },
        "classes": [asdict(row) for row in evaluation.classes],
        "confusion": matrix,
        "worst": [
            {"where": str(row.location), "text": row.text, "reference": row.reference, "prediction": row.prediction}
            | {"loss": finite(row.loss)}
            for row in evaluation.worst(worst)
        ],
        "notes": list(evaluation.notes),
    }


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 10 else f"{value:,.2f}"


def _line(text: str, length: int) -> str:
    """A stranger's text in one line, without what a terminal would obey."""
    return shorten(" ".join(printable(text).split()), length)


def _run_text(options: EvaluateOptions) -> None:
    if options.compare and options.quantize is not None:
        raise UserError("--compare evaluates all of them: leave out --quantize.")

    from anyformer.console import progress_bar
    from anyformer.data.input_files import find_files
    from anyformer.evaluation.perplexity import divergence, measure, predictions, read_text, weight_dtype
    from anyformer.tasks.evaluate import trained_on

    batch_size = options.batch_size or 4
    text: Text | None = None
    note: str | None = None
    reference: Transformer | None = None
    results: dict[str, Quality] = {}
    for name, load in _variants(options):
        model, tokenizer = load()
        if text is None:
            text = read_text(tokenizer, options.data, options.field, options.limit, options.max_record_bytes)
            note = trained_on(model, find_files(options.data))
        title = name or weight_dtype(model)
        with progress_bar() as bar:
            task = bar.add_task(title, total=predictions(text))
            quality = measure(model, text, options.context, batch_size, partial(bar.advance, task))
        if reference is not None:
            off = divergence(model, reference, text, options.context, batch_size)
            quality = replace(quality, divergence=off)
        elif options.compare:
            reference = model
        results[title] = quality
        if options.json:
            figures = {
                "weights": title,
                "perplexity": quality.perplexity,
                "divergence": quality.divergence,
                "bits_per_byte": quality.bits_per_byte,
                "loss": quality.evaluation.loss,
                "tokens": quality.evaluation.predicted,
                "bytes_of_weights": quality.size,
                "read_tokens_per_second": quality.prompt_tokens_per_second,
                "written_tokens_per_second": quality.decode_tokens_per_second,
                "notes": [note] if note else [],
            }
            write(json.dumps(figures), flush=True)
    if not options.json and text is not None:
        _show_text(results, text, note)


def _variants(options: EvaluateOptions) -> Iterator[tuple[str | None, Callable[[], Loaded]]]:
    """Variants that are evaluated: a name, or None for that of the weights, and how it is loaded."""
    from anyformer.quantization import quantize

    def rounded(kind: str) -> Loaded:
        model, tokenizer = options.load_model()
        return quantize(model, kind), tokenizer

    yield options.quantize, options.load_model
    kinds: tuple[Literal["int8", "int4"], ...] = ("int8", "int4")
    for kind in kinds if options.compare else ():
        beside = replace(options, quantize=kind).load_model
        if options.adapter:
            yield f"{kind} and the adapter", beside
            yield f"merged, then {kind}", partial(rounded, kind)
        else:
            yield kind, beside


def _show_text(results: dict[str, Quality], text: Text, note: str | None) -> None:
    from anyformer.console import Console, table

    console = Console()
    first = next(iter(results.values()))
    console.print(f"{first.evaluation.predicted:,} tokens, {text.size:,} bytes of text")
    if note:
        console.print(note)
    # In two lines, so that all fit into 80 columns.
    headings = ("perplexity", "cost", "KL", "bits per\nbyte", "MB", "tokens/s\nread", "written")
    shown = table("weights", numbers=headings)
    for name, quality in results.items():
        shown.add_row(
            name,
            f"{quality.perplexity:.3f}",
            "" if quality is first else f"{quality.perplexity / first.perplexity - 1:+.2%}",
            "" if quality.divergence is None else f"{quality.divergence:.4f}",
            f"{quality.bits_per_byte:.4f}",
            f"{quality.size / 1e6:,.1f}",
            f"{quality.prompt_tokens_per_second:,.0f}",
            f"{quality.decode_tokens_per_second:,.0f}",
        )
    console.print(shown)
    for kind in ("int8", "int4"):
        beside, merged = (results.get(name) for name in (f"{kind} and the adapter", f"merged, then {kind}"))
        if beside is not None and merged is not None:
            nearer = (merged.divergence or 0.0) <= (beside.divergence or 0.0)
            how = "merged before the weights are rounded" if nearer else "beside the integers"
            console.print(f"{kind}: the adapter costs less {how}")
