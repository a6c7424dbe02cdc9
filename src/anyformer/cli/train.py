"""`anyformer train [PRESET] ...`: a model from scratch, on your own text."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

from anyformer.cli.parsing import parse
from anyformer.errors import UserError
from anyformer.families import preset as find_preset
from anyformer.runs.directory import CONFIG, check_run_directory
from anyformer.training.config import DEFAULT_PRESET, TrainConfig
from anyformer.training.config_file import read_yaml
from anyformer.training.engines.launch import check_engine, launch, needs_launch, one_of_many

_CONFIG = "--config"
_RESUME = "--resume"
_ENDS = {"--steps": "minutes", "--minutes": "steps"}
_FOLLOWING = {"vocab_size": ("--data", "--tokenizer", "--source", "--target"), "max_length": ("--context",)}
"""Fields of the model that follow from these flags unless they are given as well."""
_SERVES: dict[str, tuple[Callable[[TrainConfig], bool], str]] = {
    "--reset-documents": (lambda config: config.objective_of_model() == "causal", "--objective causal"),
    "--whole-words": (lambda config: config.objective_of_model() == "masked", "--objective masked"),
    "--batch-tokens": (lambda config: config.source is not None, "pairs, of --source and --target"),
    "--zero-stage": (lambda config: config.engine == "deepspeed", "--engine deepspeed"),
    "--decay": (lambda config: config.schedule == "wsd", "--schedule wsd; weights decay by --weight-decay"),
}
"""Flags that serve one kind of run, and would do nothing in another."""
_PLACES = ("--name", "--runs")


def run(argv: list[str]) -> int:
    """Train a model; returns the exit status."""
    started = time.monotonic()
    resume, rest = _take(_RESUME, "the path of a run directory", argv)
    if resume is not None:
        check_run_directory(resume)
        for flag in _PLACES:
            if any(argument.partition("=")[0] == flag for argument in rest):
                raise UserError(f"{_RESUME} goes on in {resume}: leave out {flag}.")
        rest = [*rest, f"{_CONFIG}={resume / CONFIG}"]
    config, given = read_arguments(rest)

    if needs_launch(config.processes):
        check_engine(config.engine, config.processes)
        return launch(["train", *argv], config.processes)
    with one_of_many():
        from anyformer.training.run import run as train

        return train(config, given, resume=resume, started=started)


def read_arguments(argv: list[str]) -> tuple[TrainConfig, frozenset[str]]:
    """The run that the arguments ask for, and the fields of the model that they set.

    Raises:
        UserError: an unknown preset, a config file that can't be read, a flag that would do nothing.
        SystemExit: as `parse`.
    """
    name = argv[0] if argv and not argv[0].startswith("-") else None
    path, flags = _take(_CONFIG, "the path of a config.yaml", argv[1:] if name is not None else list(argv))
    if path is not None:
        base, given = read_yaml(path, name)
    else:
        known = name or DEFAULT_PRESET
        base, given = TrainConfig(preset=known, model=find_preset(known)), frozenset[str]()
    used = {flag.partition("=")[0].replace("_", "-") for flag in flags}
    # A base that ends by the clock may be told to end by steps, and the other way round.
    dropped = {other: None for flag, other in _ENDS.items() if flag in used}
    if len(dropped) == 1:
        base = dataclasses.replace(base, **dropped)
    config = parse(TrainConfig, flags, default=base, prog=f"anyformer train {name or '[PRESET]'}")
    for field, causes in _FOLLOWING.items():
        if f"--model.{field.replace('_', '-')}" in used:
            given |= {field}
        elif used.intersection(causes):
            given -= {field}
    for flag, (serves, purpose) in _SERVES.items():
        if flag in used and not serves(config):
            raise UserError(f"{flag} would do nothing here: it is for {purpose}.")
    return config, given


def _take(name: str, wanted: str, argv: list[str]) -> tuple[Path | None, list[str]]:
    """The value of a flag that is not a setting, and the other arguments."""
    for place, argument in enumerate(argv):
        flag, equals, value = argument.partition("=")
        if flag != name:
            continue
        if equals:
            return Path(value), argv[:place] + argv[place + 1 :]
        if place + 1 == len(argv):
            raise UserError(f"{name} wants {wanted}.")
        return Path(argv[place + 1]), argv[:place] + argv[place + 2 :]
    return None, argv
