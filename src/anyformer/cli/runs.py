"""`anyformer runs`: what has been trained here, and how runs compare."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

from anyformer.cli.options import Positional, parse, without_vs
from anyformer.console import Console, table
from anyformer.errors import UserError
from anyformer.pages.formatting import setting
from anyformer.runs.listing import Run, differences, is_run, read_run, read_runs
from anyformer.runs.report import COLUMNS, TEXTS, best_scores, differing, unreadable, write_comparison, write_report
from anyformer.tasks import TASKS
from anyformer.terminal import write
from anyformer.training.config import TrainConfig, defaults

_RUNS = Path("runs")
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
        differing_settings = {"differences": differences([run.config for run in runs])} if compared else {}
        write(json.dumps({"runs": [each.summary() for each in runs], **differing_settings}, indent=2, default=str))
        return 0
    _print(runs, compared)
    if options.html is not None:
        write(f"\ncurves     {options.html}")
    return 0


def _chosen(paths: Sequence[str]) -> tuple[list[Run], bool]:
    """The runs that are named, and whether to compare them. Raises UserError for one that isn't there."""
    if not paths:
        if not _RUNS.is_dir():
            raise UserError("There are no runs here yet: `anyformer train` makes one, in runs/. Or name a directory.")
        return read_runs(_RUNS), False
    if len(paths) == 1 and Path(paths[0]).is_dir() and not is_run(_directory(paths[0])):
        return read_runs(Path(paths[0])), False
    return [read_run(_directory(path)) for path in paths], len(paths) > 1


def _directory(name: str) -> Path:
    """A run's directory: the path, or else the name in runs/."""
    path = Path(name)
    return _RUNS / name if path.name == name and _RUNS.is_dir() and not path.is_dir() else path


def _print(runs: Sequence[Run], compared: bool) -> None:
    console = Console()
    best = best_scores(runs) if compared else set[tuple[str, str]]()
    columns = list(COLUMNS)
    shown = _table(runs, columns, best)
    for spare in _SPARE:
        if console.is_terminal and console.width_of(shown) > console.width:
            columns.remove(spare)
            shown = _table(runs, columns, best)
    console.print_whole(shown)
    for each in runs:
        if each.broken_lines:
            console.say(f"{each.name}: {unreadable(each)}.")
    if compared:
        console.print()
        _print_differences(console, runs)


def _table(runs: Sequence[Run], columns: Sequence[str], best: set[tuple[str, str]]) -> Table:
    made = table()
    for column in columns:
        made.add_column(column, justify="left" if column in TEXTS else "right", no_wrap=True)
    for each in runs:
        styles = {column: "bold green" if (column, each.name) in best else "" for column in columns}
        styles["state"] = _STYLES[each.state]
        made.add_row(*(Text(COLUMNS[column](each), style=styles[column]) for column in columns))
    return made


def _print_differences(console: Console, runs: Sequence[Run]) -> None:
    changes = differences([run.config for run in runs])
    if not changes:
        console.print("Their configs are the same.")
        return
    made = table("", gap=3)
    for each in runs:
        made.add_column(Text(each.name), overflow="fold")
    for name, values in changes.items():
        made.add_row(Text(name), *(Text(setting(value)) for value in values))
    console.print_whole(made)
    if differing(runs):
        console.print("\nTheir losses are of different texts, tokens or tasks and don't compare; bits per byte may.")
