"""Contents of compare.html."""

from pathlib import Path
from typing import Any

from anyformer import atomic
from anyformer.compare.page.curves import curves
from anyformer.compare.page.models import costs, diagrams, differences, maps, samples, trials
from anyformer.compare.page.panels import alone, effects, findings, panels
from anyformer.compare.result import ONE_SEED, Comparison, Setup
from anyformer.learn import attention_maps
from anyformer.pages.formatting import clock, count, si
from anyformer.pages.render import render, require_page

PAGE = "compare.html"

_UNITS = {"flops": "FLOPs"}
_MATCHES = {
    "parameters": "sizes matched by parameters outside embeddings",
    "flops": "sizes matched by FLOPs a token",
}


def write_page(comparison: Comparison, file: Path) -> Path:
    """Write the page of a comparison.

    Args:
        comparison: What it shows.
        file: Where to. The runs of the comparison are looked for in its folder: their attention is left out if they
            are gone.

    Raises:
        UserError: the file is there already and is no page of anyformer's, or the disk refuses.
    """
    require_page(file)
    atomic.write(
        file, render("compare.html", page(comparison, file.parent), __package__ or "", attention_maps.__name__)
    )
    return file


def page(comparison: Comparison, folder: Path) -> dict[str, Any]:
    """The values of compare.html."""
    names = [{"name": each.name, "color": color % 8} for color, each in enumerate(comparison.contenders)]
    return {
        "title": f"{comparison.title} · anyformer",
        "heading": comparison.title,
        "state": "",
        "facts": _facts(comparison.setup),
        "notes": _notes(comparison),
        "names": names,
        "findings": findings(comparison),
        "effects": effects(comparison),
        "data": curves(comparison),
        "groups": panels(comparison, comparison.groups),
        "tasks": panels(comparison, comparison.tasks),
        "alone": alone(comparison),
        "costs": costs(comparison),
        "trials": trials(comparison),
        "matched": _matched(comparison),
        "diagrams": diagrams(comparison),
        "differences": differences(comparison),
        "samples": samples(comparison),
        "maps": maps(comparison, folder),
        "read": [
            {
                "name": each.name,
                "objective": each.objective,
                "bytes": f"{each.bytes:,}",
                "digests": ", ".join(digest[:12] for digest in each.order_digest),
                "notes": each.notes,
            }
            for each in comparison.contenders
        ],
        "repeat": comparison.repeat,
        "machine": ", ".join(filter(None, [comparison.setup.machine, clock(comparison.setup.seconds)])),
    }


def _facts(setup: Setup) -> list[str]:
    seeds = f"{setup.seeds} seeds" if setup.seeds > 1 else "one seed"
    return [
        ", ".join(setup.data) or "the standard library of Python",
        f"{si(setup.training_bytes)}B to train on, {si(setup.held_out_bytes)}B held out",
        setup.tokenizer,
        f"{setup.batch_size} × {setup.window} tokens a step",
        f"{count(setup.amount)} {_UNITS.get(setup.budget, setup.budget)} each, {seeds}",
    ]


def _notes(comparison: Comparison) -> list[str]:
    setup = comparison.setup
    notes = [
        "Numbers stand only beside those of their group. Intervals cover 95%, and a difference counts where it is "
        "beyond chance after Holm's correction for the number of pairs."
    ]
    if setup.seeds == 1:
        notes.append(ONE_SEED)
    return notes


def _matched(comparison: Comparison) -> str:
    setup = comparison.setup
    if setup.match not in _MATCHES:
        return "Sizes are not matched."
    values = ", ".join(f"{name} {count(value)}" for name, value in setup.matched.items())
    return f"{_MATCHES[setup.match].capitalize()}: {values}."
