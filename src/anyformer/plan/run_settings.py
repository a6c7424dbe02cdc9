"""The settings of a run, to be planned once more."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from anyformer.finetuning.config import FinetuneConfig, read_fine_tuning
from anyformer.limits import path_inside
from anyformer.runs.directory import CONFIG, MODEL
from anyformer.spec import SpecifiedModel, read_config
from anyformer.training.config import TrainConfig
from anyformer.training.config_file import read_yaml

_TRAINED = {field.name for field in fields(TrainConfig)}
_TUNED = {field.name for field in fields(FinetuneConfig)}
SETTINGS = _TRAINED | _TUNED
"""Names of all settings of a run."""
_ELSEWHERE = {
    *("model", "preset", "base", "tokenizer", "vocab_size", "max_length"),
    *("device", "runs", "name", "minutes", "epochs"),
}
"""Fields that the model in the run's directory settles, or that say nothing of a step."""


def read_run(
    spec: str, given: Mapping[str, Any], *, elsewhere: bool = False, is_sized: bool = False
) -> tuple[SpecifiedModel, dict[str, Any]]:
    """The model of a specification, and with which settings it is planned.

    They are the run's own, where it names a run directory, and those that are given, which come first. Settings of
    another command than the run's plan that command with the run's model.

    Args:
        spec: See `read_config`.
        given: Fields of `TrainConfig` and `FinetuneConfig`.
        elsewhere: It is planned for a device that is named, so the run's dtype, chosen for its own, is not taken.
        is_sized: Its length is given in tokens, so the run's steps are not taken.

    Raises:
        UserError: As `read_config`; the run's config can't be read.
    """
    directory = Path(spec)
    if not (directory / CONFIG).is_file() or (directory / "config.json").exists():
        return read_config(spec), dict(given)
    file = path_inside(directory, CONFIG)
    tuned = read_fine_tuning(file)
    tunes = tuned is not None
    settings = vars(read_yaml(file)) if tuned is None else tuned
    if tunes and not (directory / MODEL / "config.json").exists():  # an adapter, or nothing yet
        specified = read_config(str(settings["base"]))
    else:
        specified = read_config(spec)
    if not {*given}.isdisjoint(_TRAINED - _TUNED if tunes else _TUNED - _TRAINED):
        return specified, dict(given)
    dropped = {*_ELSEWHERE, *(["dtype"] if elsewhere else []), *(["steps"] if is_sized else [])}
    kept = {name: value for name, value in settings.items() if name not in dropped and value is not None}
    if not tunes and "context" not in given:
        kept["max_length"] = specified.config.max_length
    return specified, {**kept, **given}
