"""`anyformer evaluate MODEL --data FILE`: how good a model is at a text, a task or a suite, and what rounding costs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

from anyformer.cli.loading import ModelOptions
from anyformer.cli.options import parse
from anyformer.data.examples.columns import Columns
from anyformer.errors import UserError, nearest
from anyformer.limits import RECORD_BYTES
from anyformer.schema import flag
from anyformer.tasks import CHOICES, TASKS
from anyformer.terminal import write

if TYPE_CHECKING:
    from anyformer.evaluation.perplexity import Quality, Text
    from anyformer.model import Transformer
    from anyformer.tokenizer import Tokenizer

    Loaded = tuple[Transformer, Tokenizer | None]


@dataclass(frozen=True, kw_only=True)
class _TextOptions:
    """Predicting a text."""

    field: str = "text"
    """The field that holds the text of a record."""
    max_record_bytes: Annotated[int, "N"] = RECORD_BYTES
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
    max_new_tokens: int | None = None
    """New tokens of an answer (default: as many as the context has room for, at most 200)."""


@dataclass(frozen=True, kw_only=True)
class _SuiteOptions:
    """Suites of lm-eval."""

    suite: str | None = None
    """Tasks of lm-eval, such as piqa,hellaswag, or YAML files of your own."""
    few_shot: int | None = None
    """Examples that are shown before each question (default: as the task says)."""
    chat_template: bool = False
    """Ask in the model's chat template."""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(_TextOptions, _AnswerOptions, _SuiteOptions, Columns, ModelOptions):
    """How good a model is: at predicting a text, at a task with examples, or at a suite of tasks.

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
    limit: int | None = None
    """Read this many tokens of the text, or examples (default: all)."""
    batch_size: int | None = None
    """Windows that are read at a time, or answers that are written (default: 4 windows, 16 answers)."""
    worst: int = 5
    """Rows to show that the model is most wrong about."""
    json: bool = False
    """Print the figures as JSON, one object a line."""

    @property
    def columns(self) -> Columns:
        """The names of columns."""
        return Columns(**{column.name: getattr(self, column.name) for column in fields(Columns)})


def run(argv: list[str]) -> int:
    """Print the figures."""
    options = parse(EvaluateOptions, argv, "evaluate")
    if options.task is not None and options.task not in TASKS:
        raise UserError(f"--task can't be {options.task!r} ({nearest(options.task, TASKS)}).")
    for name in ("limit", "batch_size", "max_record_bytes", "max_new_tokens"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise UserError(f"{flag(name)} is at least 1, not {value}.")
    if options.worst < 0 or (options.few_shot or 0) < 0:
        raise UserError("--worst and --few-shot are numbers of rows, 0 or more.")
    if options.suite is not None:
        return _run_suite(options, options.suite)
    if not options.data:
        raise UserError("Nothing was given to evaluate on: name a file with --data, or tasks of lm-eval with --suite.")
    asked = options.task is not None or options.columns.by_role() or options.choices or options.header
    if asked or _are_examples(options):
        return _run_task(options)
    return _run_text(options)


def _are_examples(options: EvaluateOptions) -> bool:
    """Whether the columns of the first file say a task, or none is known, of which only `_run_task` says how to name
    it. Raises nothing: what is wrong with it is said later."""
    from anyformer.data.input_files import RECORD_SUFFIXES, TAGGED_SUFFIXES
    from anyformer.data.materialize import read_rows
    from anyformer.tasks.detection import find_reading

    first = options.data[0]
    if not first.lower().partition(".gz")[0].endswith((*RECORD_SUFFIXES, *TAGGED_SUFFIXES)):
        return False
    try:
        row = next(iter(read_rows([first], columns=options.header)))
    except (UserError, StopIteration):
        return False
    try:
        return not TASKS[find_reading(row.values, "The data").task].is_stream
    except UserError:
        return options.field == "text" and "text" not in row.values and not options.compare


def _run_suite(options: EvaluateOptions, suite: str) -> int:
    import os

    from rich.table import Table

    from anyformer.console import Console

    if options.data or options.task is not None or options.compare:
        raise UserError("--suite brings its own data: leave out --data, --task and --compare.")
    if not Console(stderr=True).is_terminal:
        os.environ.setdefault("TQDM_DISABLE", "1")
    from anyformer.evaluation.harness import run_suite

    model, tokenizer = options.load_model()
    results = run_suite(
        model,
        tokenizer,
        [task for task in suite.split(",") if task],
        limit=options.limit,
        few_shot=options.few_shot,
        chat_template=options.chat_template,
        batch_size=options.batch_size,
    )
    table = Table("task", "metric", box=None, header_style="bold", pad_edge=False)
    for column in ("value", "standard error", "examples"):
        table.add_column(column, justify="right", no_wrap=True)
    for task, metrics in results.items():
        if options.json:
            write(json.dumps({"task": task, **metrics}), flush=True)
        for name, value in metrics.items():
            metric, _, kind = name.partition(",")
            if name != "samples" and not metric.endswith("_stderr"):
                error = metrics.get(f"{metric}_stderr,{kind}")
                shown = "" if error is None else f"{error:.4f}"
                table.add_row(task, metric, f"{value:.4f}", shown, f"{metrics.get('samples', 0):,.0f}")
    if not options.json:
        Console().print(table)
    return 0


def _run_task(options: EvaluateOptions) -> int:
    from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from anyformer.cli.evaluation_page import show, to_json
    from anyformer.console import Console
    from anyformer.evaluation import Options
    from anyformer.tasks.evaluate import evaluate

    if options.compare:
        raise UserError("--compare is for texts: leave out --task, the columns and --choices.")
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    model, tokenizer = options.load_model()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        stages: dict[str, TaskID] = {}

        def advance(stage: str, count: int, total: int) -> None:
            if stage not in stages:
                stages[stage] = bar.add_task(stage, total=total)
            bar.advance(stages[stage], count)

        found = evaluate(
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
        write(json.dumps(to_json(found, options.worst)), flush=True)
    else:
        show(found, options.worst)
    return 0


def _run_text(options: EvaluateOptions) -> int:
    if options.compare and options.quantize is not None:
        raise UserError("--compare evaluates all of them: leave out --quantize.")
    batch_size = options.batch_size or 4
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from anyformer.console import Console
    from anyformer.data.corpus import find_files
    from anyformer.evaluation.perplexity import divergence, measure, predictions, read_text, weight_dtype
    from anyformer.evaluation.trained_on import trained_on

    text: Text | None = None
    notes: list[str] = []
    reference: Transformer | None = None
    results: dict[str, Quality] = {}
    console = Console(stderr=True)
    for name, load in _variants(options):
        model, tokenizer = load()
        if text is None:
            text = read_text(tokenizer, options.data, options.field, options.limit, options.max_record_bytes)
            notes = [note] if (note := trained_on(model, find_files(options.data))) else []
        title = name or weight_dtype(model)
        columns = (
            TextColumn(title, markup=False),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
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
                "notes": notes,
            }
            write(json.dumps(figures), flush=True)
    if not options.json and text is not None:
        _show(results, text, notes)
    return 0


def _variants(options: EvaluateOptions) -> Iterator[tuple[str | None, Callable[[], Loaded]]]:
    """Variants that are evaluated: a name, or None for that of the weights, and how it is loaded."""
    from anyformer.quantization import quantize

    def rounded(kind: str) -> Loaded:
        model, tokenizer = options.load_model()
        return quantize(model, kind), tokenizer

    yield options.quantize, options.load_model
    if not options.compare:
        return
    kinds: tuple[Literal["int8", "int4"], ...] = ("int8", "int4")
    for kind in kinds:
        beside = replace(options, quantize=kind).load_model
        if options.adapter:
            yield f"{kind} and the adapter", beside
            yield f"merged, then {kind}", partial(rounded, kind)
        else:
            yield kind, beside


def _show(results: dict[str, Quality], text: Text, notes: Sequence[str]) -> None:
    from rich.table import Table

    from anyformer.console import Console

    console = Console()
    first = next(iter(results.values()))
    console.print(f"{first.evaluation.predicted:,} tokens, {text.size:,} bytes of text")
    for note in notes:
        console.print(note)
    table = Table("weights", box=None, header_style="bold", pad_edge=False)
    for column in ("perplexity", "cost", "KL", "bits per byte", "MB", "tokens/s read", "written"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, quality in results.items():
        table.add_row(
            name,
            f"{quality.perplexity:.3f}",
            "" if quality is first else f"{quality.perplexity / first.perplexity - 1:+.2%}",
            "" if quality.divergence is None else f"{quality.divergence:.4f}",
            f"{quality.bits_per_byte:.4f}",
            f"{quality.size / 1e6:,.1f}",
            f"{quality.prompt_tokens_per_second:,.0f}",
            f"{quality.decode_tokens_per_second:,.0f}",
        )
    console.print(table)
    for kind in ("int8", "int4"):
        beside, merged = (results.get(name) for name in (f"{kind} and the adapter", f"merged, then {kind}"))
        if beside is not None and merged is not None:
            nearer = (merged.divergence or 0.0) <= (beside.divergence or 0.0)
            how = "merged before the weights are rounded" if nearer else "beside the integers"
            console.print(f"{kind}: the adapter costs less {how}")
