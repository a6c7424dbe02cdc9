"""`anyformer runs`: what has been trained here, and how runs compare."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from anyformer.cli.options import Positional, parse, without_vs
from anyformer.console import Console
from anyformer.errors import UserError
from anyformer.pages.formatting import setting
from anyformer.runs.listing import Run, differences, is_run, read_run, read_runs
from anyformer.runs.report import write_comparison, write_report
from anyformer.runs.report.page import COLUMNS, TEXTS, best_scores, differing, unreadable
from anyformer.tasks import TASKS
from anyformer.terminal import write
from anyformer.training.config import TrainConfig, defaults

_DIRECTORY = Path("runs")
_SPARE = ("tokens", "preset", "time", "parameters", "tokens/s")
"""Columns that a narrow terminal does without, the least missed first."""

_STYLES = {"running": "blue", "finished": "green", "stopped": "yellow", "diverged": "red"}


@dataclass(frozen=True)
class RunsOptions:
    """List the runs in a directory, newest first; of runs that are named one by one say what differs in their configs.

    The losses are those of the latest evaluation: of models that predict tokens, in nats per token.

    Examples:
        anyformer runs
        anyformer runs gpt2-nano-1 gpt2-nano-2 --html curves.html
    """

    paths: Positional[tuple[str, ...]] = ()
    """A directory of runs; or runs, by path or by their name in runs/ (default: runs/)."""
    html: Path | None = None
    """Write a page with their curves to this file: of several runs over each other."""
    json: bool = False
    """Print JSON instead of tables."""


def run(argv: list[str]) -> int:
    """Print a table of runs."""
    options = parse(RunsOptions, without_vs(argv), "runs")
    runs, compared = _chosen(options.paths)
    for each in runs if compared or options.html is not None else ():
        if (task := TASKS.get(str(each.config.get("task")))) is not None:
            each.terms = task.terms(each.config)
    if options.html is not None:
        if options.html.is_dir():
            raise UserError(f"--html {options.html} is a directory: name the file in it.")
        if len(runs) == 1:
            write_report(runs[0].path, defaults(TrainConfig), options.html, runs[0].terms)
        else:
            write_comparison(runs, options.html)
    if options.json:
        differing_settings = {"differences": differences(runs)} if compared else {}
        write(json.dumps({"runs": [each.summary() for each in runs], **differing_settings}, indent=2, default=str))
        return 0
    _print(runs, compared)
    if options.html is not None:
        write(f"\ncurves     {options.html}")
    return 0


def _chosen(paths: Sequence[str]) -> tuple[list[Run], bool]:
    """The runs that are named, and whether to compare them. Raises UserError for one that isn't there."""
    if not paths:
        if not _DIRECTORY.is_dir():
            raise UserError("There are no runs here yet: `anyformer train` makes one, in runs/. Or name a directory.")
        return read_runs(_DIRECTORY), False
    if len(paths) == 1 and Path(paths[0]).is_dir() and not is_run(_place(paths[0])):
        return read_runs(Path(paths[0])), False
    return [read_run(_place(path)) for path in paths], len(paths) > 1


def _place(name: str) -> Path:
    """A run's directory: the path, or else the name in runs/."""
    path = Path(name)
    return _DIRECTORY / name if path.name == name and _DIRECTORY.is_dir() and not path.is_dir() else path


def _print(runs: Sequence[Run], compared: bool) -> None:
    console = Console()
    best = best_scores(runs) if compared else set[tuple[str, str]]()
    columns = list(COLUMNS)
    table = _table(runs, columns, best)
    for spare in _SPARE:
        if console.is_terminal and _width(console, table) > console.width:
            columns.remove(spare)
            table = _table(runs, columns, best)
    _show(console, table)
    for each in runs:
        if each.broken_lines:
            console.print(Text(f"{each.name}: {unreadable(each)}."), soft_wrap=True)
    if compared:
        console.print()
        _print_differences(console, runs)


def _table(runs: Sequence[Run], columns: Sequence[str], best: set[tuple[str, str]]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, justify="left" if column in TEXTS else "right", no_wrap=True)
    for each in runs:
        cells: list[Text] = []
        for column in columns:
            bold = "bold green" if (column, each.name) in best else ""
            cells.append(Text(COLUMNS[column](each), style=_STYLES[each.state] if column == "state" else bold))
        table.add_row(*cells)
    return table


def _print_differences(console: Console, runs: Sequence[Run]) -> None:
    changes = differences(runs)
    if not changes:
        console.print("Their configs are the same.")
        return
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("")
    for each in runs:
        table.add_column(Text(each.name), overflow="fold")
    for name, values in changes.items():
        table.add_row(Text(name), *(Text(setting(value)) for value in values))
    _show(console, table)
    if differing(runs):
        console.print("\nTheir losses are of different texts, tokens or tasks and don't compare; bits per byte may.")


def _show(console: Console, table: Table) -> None:
    """Print a table; where there is no terminal, but a file or another program, as wide as it is."""
    if not console.is_terminal:
        console.width = max(console.width, _width(console, table))
    console.print(table)


def _width(console: Console, table: Table) -> int:
    return Measurement.get(console, console.options.update(max_width=10_000), table).maximum
