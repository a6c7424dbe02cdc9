"""`anyformer compare MODEL ...`: models of several families, trained and judged side by side."""

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.table import Table
from rich.text import Text

from anyformer import terminal
from anyformer.cli.options import Positional, make, parse, without_vs
from anyformer.compare.request import Request
from anyformer.compare.result import BETTER, ONE_SEED, WORSE, Ablation, Comparison, Difference, Panel, Verdict
from anyformer.console import Console, table
from anyformer.errors import UserError

_STYLES = {BETTER: "green", WORSE: "red"}


@dataclass(frozen=True, kw_only=True)
class CompareOptions(Request):
    """Train models of several families on the same text within the same budget, and say which is better at what.

    A family's name (gpt2, llama, bert, t5, transformer ...) is a model of that family scaled down to a size that
    learns something in minutes; sizes are made equal. Presets with a size, with fields changed (llama:norm.kind=layer),
    config files and finished runs can be compared, too. What was done stays in a folder: the same command goes on with
    it after it was stopped, and several that run at the same time share the work.

    Examples:
        anyformer compare gpt2 llama bert t5 transformer --data notes.txt
        anyformer compare llama llama:norm.kind=layer --flops 1e13 --seeds 5
        anyformer compare llama-nano --vary norm.kind=layer,rms position.kind=rotary,learned
    """

    models: Positional[tuple[str, ...]]
    """A preset, a family, a config file or a run; with fields changed after a colon."""
    processes: Annotated[int, "N"] = 1
    """Processes that share the work."""
    scheduler: Annotated[str | None, "ADDRESS"] = None
    """Give the work to the workers of a dask scheduler, such as tcp://node0:8786, in the place of processes here."""
    out: Annotated[Path | None, "FOLDER", "-o", "--output"] = None
    """Where to keep it (default: a folder in comparisons/, the same for the same command)."""


def run(argv: list[str]) -> int:
    """Compare models; returns the exit status."""
    options = parse(CompareOptions, without_vs(argv), "compare")
    from anyformer.compare.compare import work
    from anyformer.compare.jobs import StoppedError
    from anyformer.processes import workers

    console, address = Console(), options.scheduler
    if address is not None and options.processes != 1:
        raise UserError("--scheduler gives the work to the workers of a cluster, and --processes shares it here: one.")
    try:
        with nullcontext() if address is None else workers(address) as executor, console.status("comparing") as status:
            comparison, out = work(
                make(Request, vars(options)),
                options.out,
                processes=options.processes,
                executor=executor,
                say=console.say,
                working=status.update,
            )
    except StoppedError as stopped:
        terminal.message("anyformer: stopped; the same command goes on with it.")
        return stopped.status
    show(console, comparison)
    console.say(f"numbers    {out / 'compare.json'}")
    console.say(f"page       {out / 'compare.html'}")
    return 0


def show(console: Console, comparison: Comparison) -> None:
    """Print the numbers of each panel, with its verdicts; and the effects of an ablation."""
    for panel in comparison.panels:
        if panel.scores:
            _panel(console, panel, comparison.verdicts_of(panel))
    if comparison.ablation is not None and comparison.ablation.effects:
        _effects(console, comparison, comparison.ablation)
    if comparison.setup.seeds == 1:
        console.say(f"\n{ONE_SEED}")


def _panel(console: Console, panel: Panel, verdicts: list[Verdict]) -> None:
    chance = "" if panel.chance is None else f"; chance is {panel.chance:.2f}"
    console.say(f"\n{panel.title}: {panel.measure}{chance}", "bold")
    for note in (panel.note, f"No verdict: {panel.no_verdict}." if panel.no_verdict and verdicts else ""):
        if note:
            console.say(note, "dim")
    scores = table("", numbers=(panel.measure, "95% interval"))
    for score in panel.scores:
        scores.add_row(Text(score.model), f"{score.value:.4f}", _interval(score.interval))
    console.print_whole(scores)
    if verdicts:
        differences = _differences("")
        for each in verdicts:
            differences.add_row(Text(each.pair), *_cells(each))
        console.print_whole(differences)


def _effects(console: Console, comparison: Comparison, ablation: Ablation) -> None:
    titles = {panel.name: panel.title for panel in comparison.panels}
    console.print(Text("\nWhat each change is worth, the others averaged", style="bold"))
    differences = _differences("change", "measure")
    for each in ablation.effects:
        change = Text(f"{each.field} {each.baseline} -> {each.value}")
        differences.add_row(change, f"{titles[each.panel]}: {each.measure}", *_cells(each))
    console.print_whole(differences)


def _differences(*columns: str) -> Table:
    made = table(*columns, numbers=("difference", "95% interval"))
    made.add_column("verdict")
    return made


def _cells(each: Difference) -> tuple[str, str, Text]:
    return f"{each.difference:+.4f}", _interval(each.interval), Text(each.verdict, style=_STYLES.get(each.verdict, ""))


def _interval(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.4f} to {interval[1]:.4f}"
