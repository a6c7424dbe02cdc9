"""Ablations: the effect of each of several changes to one model."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product

import numpy as np

from anyformer.compare.result import Ablation, Effect, Panel
from anyformer.compare.statistics import Estimate, Pieces, estimate
from anyformer.compare.verdicts import decide
from anyformer.errors import UserError

_MOST = 64


def grid(base: str, vary: Sequence[str]) -> Ablation:
    """All combinations of the values of some fields.

    Args:
        base: what is changed, as `read_config` takes it.
        vary: fields and their values, such as ``norm.kind=layer,rms``; the first value is the baseline.

    Raises:
        UserError: a field without values, with one alone, or given twice; more combinations than can be trained.
    """
    factors: dict[str, list[str]] = {}
    for each in vary:
        name, equals, values = each.partition("=")
        found = [value.strip() for value in values.split(",") if value.strip()]
        if not equals or len(found) < 2 or len(set(found)) < len(found):
            raise UserError(f"--vary {each}: write a field and two or more different values: norm.kind=layer,rms.")
        if name in factors:
            raise UserError(f"--vary {name} is given twice: give all its values together.")
        factors[name] = found
    names: dict[str, dict[str, str]] = {}
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
        changes = [(name, value) for name, values in ablation.factors.items() for value in values[1:]]
        differences = decide(panel, [_estimate(ablation, found, name, value) for name, value in changes])
        made += (
            Effect(field=name, value=value, baseline=ablation.factors[name][0], **vars(each))
            for (name, value), each in zip(changes, differences, strict=True)
        )
    return replace(ablation, effects=tuple(made))


def _estimate(ablation: Ablation, found: Mapping[str, Pieces], name: str, value: str) -> Estimate:
    """The difference that a value of a field makes, less that of the field's first."""
    baseline = ablation.factors[name][0]
    pairs = [
        (found[_name({**setting, name: value})], found[_name({**setting, name: baseline})])
        for setting in ablation.grid.values()
        if setting[name] == baseline
    ]
    totals = np.mean([changed.totals - before.totals for changed, before in pairs], axis=0)
    return estimate(Pieces(totals, pairs[0][0].weights))


def _name(setting: Mapping[str, str], separator: str = " ") -> str:
    return separator.join(f"{name}={value}" for name, value in setting.items())
