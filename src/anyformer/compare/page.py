"""Contents of compare.html but for its panels: curves, costs, configs, texts, attention on the same sentence."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from anyformer import atomic
from anyformer.checkpoint import load
from anyformer.compare import panels
from anyformer.compare.result import ONE_SEED, ComparedModel, Comparison, Point
from anyformer.errors import UserError
from anyformer.learn import attention_maps, diagram
from anyformer.pages.formatting import byte_size, clock, count, finite, fixed, setting, si, whole
from anyformer.pages.render import render, require_page
from anyformer.runs.listing import differences
from anyformer.runs.report.charts import chart, series
from anyformer.schema import to_plain

PAGE = "compare.html"

_COLUMNS = {"step": "step", "tokens": "tokens", "flops": "flops", "time": "seconds"}
"""Horizontal axes of a curve, and the fields of a point."""
_MOST_DIAGRAMS = 8
"""Diagrams on a page: a grid of changes may have many models, which differ little."""
_COSTS: dict[str, Callable[[ComparedModel], str]] = {
    "parameters": lambda each: count(each.parameters),
    "outside embeddings": lambda each: count(each.parameters_outside_embeddings),
    "FLOPs a token": lambda each: si(each.flops_per_token),
    "memory": lambda each: byte_size(each.memory_bytes) if each.memory_bytes else "–",
    "≈ tokens/s": lambda each: count(each.tokens_per_second),
    "KV bytes a token": lambda each: f"{each.cache_bytes_per_token:,}" if each.cache_bytes_per_token else "none",
    "FLOPs": lambda each: si(each.flops),
    "tokens": lambda each: count(each.tokens),
    "≈ time": lambda each: clock(each.seconds),
    "steps": lambda each: whole(each.steps),
    "learning rate": lambda each: f"{each.learning_rate:.2g}",
}
"""The columns of the table of costs."""
_NO_COST = ("none", "–", "0", "0:00")
"""The cells of a model that was not trained here, or that keeps no keys and values."""
_MOST_TOKENS, _FEWEST_WORDS, _MOST_WORDS = 24, 4, 14
"""Tokens and words of the sentence that models attend to."""
_MOST_MODELS = 8
"""Models whose attention is shown: more can't be chosen from at a glance."""
_MOST_BYTES = 400_000
"""Bytes of the maps on a page."""


def write_page(comparison: Comparison, file: Path) -> Path:
    """Write the page of a comparison.

    Args:
        file: Where to. The runs of the comparison are looked for in its folder: their attention is left out if they
            are gone.

    Raises:
        UserError: the file is there already and is no page of anyformer's, or the disk refuses.
    """
    require_page(file)
    values = page(comparison, file.parent)
    atomic.write(file, render("compare.html", values, __package__ or "", attention_maps.__name__))
    return file


def page(comparison: Comparison, folder: Path) -> dict[str, Any]:
    """The values of compare.html."""
    setup, models = comparison.setup, comparison.models
    return {
        "title": f"{comparison.title} · anyformer",
        "heading": comparison.title,
        "state": "",
        "setup": setup,
        "notes": [ONE_SEED] if setup.seeds == 1 else [],
        "models": models,
        "findings": panels.findings(comparison),
        "effects": comparison.ablation.effects if comparison.ablation else (),
        "titles": {panel.name: panel.title for panel in comparison.panels},
        "data": curves(comparison),
        "groups": panels.panels(comparison, comparison.groups),
        "tasks": panels.panels(comparison, comparison.tasks),
        "alone": [panel for panel in comparison.panels if len(panel.scores) == 1],
        "costs": costs(comparison),
        "diagrams": _diagrams(models),
        "differences": differences([to_plain(each.config) for each in models]),
        "samples": [_samples(each, color) for color, each in enumerate(models) if each.samples or each.blanks],
        "maps": _maps(models, folder),
        "repeat": comparison.repeat,
        "machine": ", ".join(filter(None, [setup.machine, clock(setup.seconds)])),
        "count": count,
        "difference": panels.difference,
        "fixed": fixed,
        "interval": panels.interval,
        "setting": setting,
        "si": si,
    }


def curves(comparison: Comparison) -> dict[str, Any]:
    """The charts: for each objective bits per byte, or the loss, of the held-out text."""
    axes: list[dict[str, Any]] = []
    charts: list[dict[str, Any]] = []
    for objective in dict.fromkeys(each.objective for each in comparison.models):
        members = [(color, each) for color, each in enumerate(comparison.models) if each.objective == objective]
        points = [point for _, each in members for curve in each.curves for point in curve.points]
        in_bits = bool(points) and all(point.bits_per_byte is not None for point in points)
        field, unit = ("bits_per_byte", "bits per byte") if in_bits else ("validation_loss", "nats")
        drawn: list[dict[str, Any]] = []
        for color, each in members:
            for style, line in _lines(each):
                drawn.append(series(each.name, len(axes), color, [getattr(point, field) for point in line], style))
                axes.append({x: [finite(getattr(point, of), 6) for point in line] for x, of in _COLUMNS.items()})
        charts.append(chart(f"{objective[:1].upper()}{objective[1:]}", "loss", drawn, note=unit, scaled=True))
    return {"axes": axes, "charts": [each for each in charts if each["series"]]}


def _lines(model: ComparedModel) -> list[tuple[str, Sequence[Point]]]:
    """The mean over seeds, and behind it the curve of each seed."""
    runs = [curve.points for curve in model.curves if curve.points]
    if not runs:
        return []
    # Seeds take the same steps, unless time is what they may spend.
    steps = set.intersection(*({point.step for point in points} for points in runs))
    common = [[point for point in points if point.step in steps] for points in runs]
    seeds = [("seed", points) for points in runs] if len(runs) > 1 else []
    return [*seeds, ("line", [_mean(points) for points in zip(*common, strict=True)])]


def _mean(points: Sequence[Point]) -> Point:
    def mean(name: str) -> float | None:
        values = [getattr(point, name) for point in points]
        return None if None in values else math.fsum(values) / len(values)

    losses: dict[str, Any] = {name: mean(name) for name in ("validation_loss", "bits_per_byte")}
    return replace(points[0], seconds=mean("seconds") or 0.0, **losses)


def costs(comparison: Comparison) -> dict[str, Any]:
    """The table of costs, without those that none of the models has."""
    cells = {name: [show(each) for each in comparison.models] for name, show in _COSTS.items()}
    cells = {name: column for name, column in cells.items() if any(cell not in _NO_COST for cell in column)}
    rows = [
        {"name": each.name, "color": number % 8, "cells": [column[number] for column in cells.values()]}
        for number, each in enumerate(comparison.models)
    ]
    return {"columns": list(cells), "rows": rows}


def _diagrams(models: Sequence[ComparedModel]) -> list[dict[str, Any]]:
    """A drawing of each model; in color what is not the same in all of them."""
    drawn = diagram.panels([(each.name, each.config) for each in models]) if models else []
    return [
        {
            "name": panel.name,
            "svg": Markup(diagram.draw([panel], among=drawn, identifier=f"diagram-{number}")),
            "wide": panel.config.is_encoder_decoder,
        }
        for number, panel in enumerate(drawn[:_MOST_DIAGRAMS])
    ]


def _samples(model: ComparedModel, color: int) -> dict[str, Any]:
    blanks: list[dict[str, Any]] = []
    for blank in model.blanks:
        guesses = [
            {"text": _visible(each.text), "share": f"{each.probability:.0%}", "right": each.text == blank.answer}
            for each in blank.guesses
        ]
        blanks.append({**vars(blank), "guesses": guesses})
    passages = [{"before": text.prompt, "written": text.written, "after": ""} for text in model.samples]
    return {"name": model.name, "color": color % 8, "passages": passages, "blanks": blanks}


def _visible(text: str) -> str:
    """A guess in one line; of one that is nothing but space, the space."""
    text = text.replace("\n", "\u23ce").replace("\t", "\u21e5")
    return text if text.strip() else text.replace(" ", "\u2423")


def _maps(models: Sequence[ComparedModel], folder: Path) -> dict[str, Any] | None:
    """The maps that the page's script draws; None where there is no text, or no model of it is left.

    An encoder-decoder's encoder reads the first half of the sentence, and its decoder the other.
    """
    words = _words(models)
    shown = [stack for each in models[:_MOST_MODELS] for stack in _stacks(each, folder, words)] if words else []
    fits = sum(len(stack["weights"]) for stack in shown) <= _MOST_BYTES
    return {"stacks": shown, "text": " ".join(words)} if shown and fits else None


def _stacks(each: ComparedModel, folder: Path, words: list[str]) -> list[dict[str, Any]]:
    if not each.runs:
        return []
    half = (len(words) + 1) // 2
    both = each.config.is_encoder_decoder
    try:
        model, tokenizer = load(folder / each.runs[0])
        text, target = (words[:half], " ".join(words[half:])) if model.config.is_encoder_decoder else (words, None)
        shown = attention_maps.attention(model, tokenizer, " ".join(text), target, max_tokens=_MOST_TOKENS)
    except UserError:  # the run was removed, or its model says nothing
        return []
    return [
        {**stack, "title": f"{each.name}: {stack['title'].lower()}" if both else each.name}
        for stack in attention_maps.stacks(shown, ends=True)
    ]


def _words(models: Sequence[ComparedModel]) -> list[str]:
    """The first words of the held-out text that has the most words of letters: code and numbers are hard to read."""
    texts = [sample.prompt for each in models for sample in each.samples]
    texts += [f"{blank.before}{blank.answer}{blank.after}" for each in models for blank in each.blanks]
    long = [words[:_MOST_WORDS] for text in texts if len(words := text.split()) >= _FEWEST_WORDS]
    return max(long, key=lambda words: sum(word.strip(".,;:!?").isalpha() for word in words), default=[])
