"""`anyformer train [PRESET] ...`: a model from scratch, on your own text."""

import contextlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from anyformer import atomic
from anyformer.cli.options import Parser, Positional, change_model, flag_names
from anyformer.config import ModelConfig
from anyformer.errors import UserError, quote
from anyformer.families import preset as find_preset
from anyformer.runs.directory import CONFIG, check_run_directory, free_names
from anyformer.spec import DEFAULT_PRESET
from anyformer.training.config import RunConfig, TrainConfig, check_used
from anyformer.training.config_file import check_consent, check_resumed, read_yaml
from anyformer.training.strategies.launch import check_engine, launch, needs_launch, one_of_many

_ENDS = {"steps": "minutes", "minutes": "steps"}
_FOLLOWING = {"vocab_size": ("data", "tokenizer", "source", "target"), "max_length": ("context",)}
"""Fields of the model that follow from these flags unless they are given as well."""


@dataclass(frozen=True)
class TrainOptions:
    """Train a model from scratch on your own text.

    Decoder-only models learn to predict the next token, encoders to restore masked ones, encoder-decoders to restore
    corrupted spans, or to translate. What is left open is chosen to suit the model and the data, printed, and written
    to config.yaml in the run directory, which repeats the run.

    Examples:
        anyformer train
        anyformer train gpt2-nano --data notes.txt --tokenizer char --context 64 --steps 2000
        anyformer train bert-mini --data notes/ --minutes 30 --model.decoder-layers 6
        anyformer train transformer-tiny --source train.en --target train.de
        anyformer train --resume runs/gpt2-nano-1
    """

    preset: Positional[str | None] = None
    """The preset that the model is, such as gpt2, llama-nano or bert-mini (default: llama-nano)."""
    config: Path | None = None
    """Begin with the settings of a config.yaml; other flags override them."""
    resume: Annotated[Path | None, "RUN"] = None
    """Go on with the run in this directory, as if it had never stopped."""
    quiet: bool = False
    """Print nothing but errors."""


def run(argv: list[str]) -> int:
    """Train a model; returns the exit status."""
    started = time.monotonic()
    values = _parser().values(argv)
    resume: Path | None = values.pop("resume", None)
    quiet: bool = values.pop("quiet", False)
    if resume is not None:
        check_resumed(resume, values)
        values["config"] = resume / CONFIG
    config = _read(values, resume=resume is not None)
    if resume is None and (resume := killed_run(config)):
        config = _read(without_place(values) | {"config": resume / CONFIG}, resume=True)
    if (status := launched(["train", *argv], config, resume)) is not None:
        return status
    with one_of_many():
        from anyformer.console import Console
        from anyformer.training.run import run as train

        return train(config, resume=resume, console=Console(quiet=quiet), started=started).status


def killed_run(config: RunConfig) -> Path | None:
    """The run that a command with --restarts takes up again: that of its --name, if it has begun.

    Raises UserError as `check_run_directory`.
    """
    if not config.restarts or config.name is None or not (config.runs / config.name / CONFIG).is_file():
        return None
    check_run_directory(config.runs / config.name)
    return config.runs / config.name


def without_place(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of flags but for those that say where a run is."""
    return {name: value for name, value in values.items() if name not in ("name", "runs", "config")}


def restartable(config: RunConfig, resume: Path | None) -> list[str]:
    """Flags by which the same command, started again, finds its run: a name."""
    if not config.restarts or resume is not None or config.name is not None:
        return []
    return ["--name", next(name for name in free_names(config.label) if not (config.runs / name).exists())]


def launched(command: list[str], config: RunConfig, resume: Path | None) -> int | None:
    """The exit status of the processes that a run asks for; None: this process is to train."""
    if needs_launch(config.processes, config.restarts):
        check_engine(config.engine, config.processes, config.tensor_parallel, config.context_parallel)
        return launch([*command, *restartable(config, resume)], config.processes, config.restarts, config.device)
    # The choice of torch.compile is a folder of a known name in /tmp, out of which it would load another user's code.
    with contextlib.suppress(OSError):
        folder = atomic.private_folder(atomic.cache_folder() / "torchinductor")
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))
    return None


def read_arguments(argv: list[str]) -> TrainConfig:
    """The run that the arguments ask for.

    Raises:
        UserError: an unknown preset, a config file that can't be read or asks for too much (see `check_consent`), a
            flag that would do nothing, and as `parse`.
    """
    return _read(_parser().values(argv))


def _parser() -> Parser:
    parser = Parser("train", TrainOptions.__doc__ or "")
    parser.add_fields(TrainOptions)
    parser.add_fields(TrainConfig, section=None)
    parser.add_model_flags()
    return parser


def _preset(name: str) -> ModelConfig:
    try:
        return find_preset(name)
    except UserError as error:
        with contextlib.suppress(OSError):  # too long for the name of a file
            if Path(name).exists():
                raise UserError(f"There is no preset {name!r}: to train on that text, give --data {name}.") from error
        from anyformer.data.input_files import SUFFIXES

        if name.endswith(SUFFIXES):
            raise UserError(f"There is no preset {quote(name)}, nor such a file; text is given by --data.") from error
        raise


def _read(values: Mapping[str, Any], *, resume: bool = False) -> TrainConfig:
    name: str | None = values.get("preset")
    if "config" in values:
        base = check_consent(read_yaml(values["config"], name), values["config"], values, resume=resume)
    else:
        preset = name or DEFAULT_PRESET
        base = TrainConfig(preset=preset, model=_preset(preset))
    # A base that ends by the clock may be told to end by steps, and the other way round.
    dropped = {other: None for ends, other in _ENDS.items() if ends in values}
    changes = {name: values[name] for name in flag_names(TrainConfig) if name in values}
    model = change_model(base.model, values, "train")
    for field, causes in _FOLLOWING.items():
        if f"model.{field}" in values:
            changes[field] = getattr(model, field)
        elif any(cause in values and values[cause] != getattr(base, cause) for cause in causes):
            changes[field] = None
    config = replace(base, **{**(dropped if len(dropped) == 1 else {}), **changes, "model": model})
    check_used(config, values)
    return config
