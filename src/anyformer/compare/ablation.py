"""What each of several changes to one model is worth."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np

from anyformer.compare.result import BETTER, UNDECIDED, Ablation, Effect, Panel
from anyformer.compare.statistics import ALPHA, Pieces, estimate, holm
from anyformer.errors import UserError

WORSE = "worse"
_MOST = 64


def grid(base: str, vary: Sequence[str]) -> Ablation:
    """All combinations of the values of some fields.

    Args:
        base: what is changed, as `read_config` takes it.
        vary: fields and their values, such as ``norm.kind=layer,rms``; the first value is the baseline.

    Raises:
        UserError: a field without values, with one alone, or given twice; more combinations than can be trained.
    """
    factors: dict[str, list[Any]] = {}
    for each in vary:
        name, equals, values = each.partition("=")
        found = [value.strip() for value in values.split(",") if value.strip()]
        if not equals or len(found) < 2 or len(set(found)) < len(found):
            raise UserError(f"--vary {each}: write a field and two or more different values: norm.kind=layer,rms.")
        if name in factors:
            raise UserError(f"--vary {name} is given twice: give all its values together.")
        factors[name] = found
    names: dict[str, dict[str, Any]] = {}
    for values in product(*factors.values()):
        setting = dict(zip(factors, values, strict=True))
        names[_name(setting)] = setting
    if len(names) > _MOST:
        raise UserError(f"--vary makes {len(names)} models, more than {_MOST}: vary fewer fields at a time.")
    return Ablation(base=base, factors=factors, grid=names)


def specs(ablation: Ablation) -> dict[str, str]:
    """How `read_config` is told about each model of the grid, by its name."""
    joint = "," if ":" in ablation.base else ":"
    return {name: f"{ablation.base}{joint}{_name(setting, ',')}" for name, setting in ablation.grid.items()}


def effects(ablation: Ablation, panels: Sequence[tuple[Panel, Mapping[str, Pieces]]]) -> Ablation:
    """Fill in what each value is worth, in each panel that all models of the grid are in."""
    made: list[Effect] = []
    for panel, found in panels:
        if set(found) != set(ablation.grid):
            continue
        own = [_effect(ablation, panel, found, name, value) for name, value in _changes(ablation)]
        sign = 1 if panel.lower_is_better else -1
        for each, p in zip(own, holm([effect.p for effect in own]), strict=True):
            verdict = UNDECIDED if p >= ALPHA else BETTER if sign * each.difference < 0 else WORSE
            made.append(replace(each, p_corrected=p, verdict=verdict))
    return replace(ablation, effects=tuple(made))


def _changes(ablation: Ablation) -> list[tuple[str, Any]]:
    return [(name, value) for name, values in ablation.factors.items() for value in values[1:]]


def _effect(ablation: Ablation, panel: Panel, found: Mapping[str, Pieces], name: str, value: Any) -> Effect:
    baseline = ablation.factors[name][0]
    pairs = [
        (found[_name({**setting, name: value})], found[_name({**setting, name: baseline})])
        for setting in ablation.grid.values()
        if setting[name] == baseline
    ]
    totals = np.mean([changed.totals - before.totals for changed, before in pairs], axis=0)
    estimated = estimate(Pieces(totals, pairs[0][0].weights))
    return Effect(
        field=name,
        value=value,
        baseline=baseline,
        panel=panel.name,
        measure=panel.measure,
        difference=estimated.value,
        interval=estimated.interval,
        p=estimated.p,
        p_corrected=estimated.p,
        verdict=UNDECIDED,
    )


def _name(setting: Mapping[str, Any], separator: str = " ") -> str:
    return separator.join(f"{name}={value}" for name, value in setting.items())
