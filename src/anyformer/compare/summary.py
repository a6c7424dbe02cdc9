"""A comparison in the terminal: its panels, their verdicts, and the effects of changes."""

from rich.table import Table
from rich.text import Text

from anyformer.compare.result import BETTER, ONE_SEED, WORSE, Ablation, Comparison, Difference, Panel, Verdict
from anyformer.console import Console

_STYLES = {BETTER: "green", WORSE: "red"}
_DIFFERENCE = ("difference", "95% interval", "verdict")


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
    table = _table("", panel.measure, "95% interval")
    for score in panel.scores:
        table.add_row(Text(score.model), f"{score.value:.4f}", _interval(score.interval))
    console.print_whole(table)
    if verdicts:
        table = _table("", *_DIFFERENCE)
        for each in verdicts:
            table.add_row(Text(each.pair), *_cells(each))
        console.print_whole(table)


def _effects(console: Console, comparison: Comparison, ablation: Ablation) -> None:
    titles = {panel.name: panel.title for panel in comparison.panels}
    console.print(Text("\nWhat each change is worth, the others averaged", style="bold"))
    table = _table("change", "measure", *_DIFFERENCE)
    for each in ablation.effects:
        change = Text(f"{each.field} {each.baseline} -> {each.value}")
        table.add_row(change, f"{titles[each.panel]}: {each.measure}", *_cells(each))
    console.print_whole(table)


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, justify="right" if column in ("difference", "95% interval") else "left", no_wrap=True)
    return table


def _cells(each: Difference) -> tuple[str, str, Text]:
    return f"{each.difference:+.4f}", _interval(each.interval), Text(each.verdict, style=_STYLES.get(each.verdict, ""))


def _interval(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.4f} to {interval[1]:.4f}"
