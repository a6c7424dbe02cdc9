"""Training from scratch, from Python; and the parts that fine-tuning from Python shares."""

import dataclasses
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypedDict, Unpack, cast

import torch

from anyformer import limits, spec
from anyformer.checkpoint import load
from anyformer.config import ModelConfig
from anyformer.console import Console
from anyformer.data.disk_cache import Cache
from anyformer.data.examples.tables import Data, kept_paths
from anyformer.errors import UserError, check_keywords
from anyformer.families import ALIASES, PRESETS, to_huggingface
from anyformer.model import Transformer
from anyformer.one_line import OneLine
from anyformer.runs.directory import CONFIG, METRICS
from anyformer.schema import typed
from anyformer.tokenizer import Tokenizer
from anyformer.training.config import RunConfig, TrainConfig, check_used
from anyformer.training.config_file import check_consent, check_resumed, read_yaml
from anyformer.training.precision import choose_device
from anyformer.training.run import Finished, run
from anyformer.training.strategies.launch import needs_launch


class RunOptions(TypedDict, total=False):
    """The fields of `RunConfig` except its data, as keyword arguments."""

    validation: Data
    context: int | None
    encoding: str | None
    max_record_bytes: int
    cache: str | Path | None
    steps: int | None
    minutes: float | None
    batch_size: int | None
    batch_tokens: int | None
    grad_accumulation: int
    optimizer: str
    learning_rate: float | None
    schedule: str
    warmup: float
    decay: float
    weight_decay: float
    beta2: float
    grad_clip: float
    label_smoothing: float | None
    average: str | None
    seed: int
    device: str | None
    dtype: torch.dtype | str | None
    compile: bool | None
    gradient_checkpointing: bool
    engine: str | None
    processes: int
    tensor_parallel: int
    context_parallel: int
    zero_stage: int
    name: str | None
    runs: str | Path
    save_every: int | None
    keep: int
    keep_optimizer: bool
    evaluate_every: int | None
    log_every: int | None
    track: str | Sequence[str]


class TrainOptions(RunOptions, total=False):
    """The fields of `TrainConfig` except its model and its data, as keyword arguments."""

    field: str
    source: str | Path | None
    target: str | Path | None
    tokenizer: str | Path | None
    workers: int | None
    scheduler: str | None
    objective: str | None
    document_masking: bool
    whole_word_masking: bool


@dataclass(frozen=True, slots=True, repr=False)
class TrainResult(OneLine):
    """The result of training.

    Attributes:
        model: The trained model, in evaluation mode.
        metrics: The metrics on the validation text ``"before"`` and ``"after"`` training, by name: `validation_loss`,
            in nats per token, and where every token is predicted `bits_per_byte`.
        directory: The run directory, which holds `report.html` and, in `model/`, the model.
    """

    shown: ClassVar = ("directory", "metrics", "model")

    model: Transformer
    tokenizer: Tokenizer
    metrics: Mapping[str, Mapping[str, float]]
    directory: Path


def train(
    model: ModelConfig | str | Path | None = None,
    data: Data = (),
    *,
    resume: str | Path | None = None,
    quiet: bool | None = None,
    **options: Unpack[TrainOptions],
) -> TrainResult:
    """Train a model from scratch on your own text, as `anyformer train` does.

    Args:
        model: Its config, or a specification such as ``"gpt2-nano"``, see `anyformer.build`; None: llama-nano. Its
            vocabulary is as large as the tokenizer's, and its `max_length` the context.
        data: Files, folders and globs of text; or rows, as dicts, a data frame of pandas or polars, or a
            `datasets.Dataset`, which are kept in the cache folder as a file; empty: the standard library of Python.
        resume: A run directory to go on in, instead of a model.
        quiet: Whether to print nothing; None: unless standard output is a terminal or a notebook.
        **options: The fields of `TrainConfig`, which are the flags of the command: ``steps=2000``, ``minutes=10``,
            ``tokenizer="char"``, ``context=64``, ``source="train.en"``, ``target="train.de"``.

    Returns:
        The model, its tokenizer, the metrics before and after, and the run directory.

    Raises:
        UserError: As `TrainConfig` and `run`: options that contradict each other, no such model, text that is missing
            or too short, a loss that is no longer a number.
        KeyboardInterrupt: Ctrl-C ended the run early. What it has learned is kept, and `resume` goes on with it.

    ::

        result = af.train("gpt2-nano", "notes.txt", tokenizer="char", context=64, steps=2000)
        print(result.metrics["before"], result.metrics["after"])
        af.generate(result.model, result.tokenizer, ["Dear "])
    """
    started = time.monotonic()
    values = values_of("train", options, TrainConfig, {*TrainOptions.__annotations__, "model", "data"})
    if files := kept_paths(data, lambda: Cache(values.get("cache"))):
        values["data"] = files
    directory = None if resume is None else Path(resume)
    if directory is None:
        preset, config = _named(spec.DEFAULT_PRESET if model is None else model)
        settings = TrainConfig(preset=preset, model=config, **values)
    elif model is not None:
        raise UserError(f"resume goes on in {directory}, with the model that the run has: leave model out.")
    else:
        settings = _resumed(directory, values)
    check_used(settings, values)
    console = console_of("train", settings, quiet)
    finished = run(settings, resume=directory, console=console, started=started)
    check_finished("train", finished)
    path = finished.directory
    trained, tokenizer = load(path, device=choose_device(settings.device))
    assert tokenizer is not None
    return TrainResult(trained, tokenizer, metrics_of(path), path)


def values_of(
    function: str, options: Mapping[str, Any], kind: type[RunConfig], parameters: Iterable[str]
) -> dict[str, Any]:
    """The fields of a config that keyword arguments of a function stand for.

    Args:
        parameters: The names of all arguments that it takes beside `resume` and `quiet`.

    Raises:
        TypeError: It takes no such argument.
        UserError: A value of another type.
    """
    check_keywords(function, options, {*parameters, "resume", "quiet"})
    values = dict(options)
    validation = values.pop("validation", None)
    for name, value in values.items():
        if isinstance(value, torch.dtype):
            values[name] = str(value).removeprefix("torch.")
        elif isinstance(value, Path):
            values[name] = str(value)
        elif isinstance(value, Iterable) and not isinstance(value, str | Mapping):
            values[name] = tuple(cast("Iterable[Any]", value))
    values = typed(kind, values, f"{function}: ")
    if validation is not None:
        values["validation"] = kept_paths(validation, lambda: Cache(values.get("cache")))
    return values


def console_of(command: str, config: RunConfig, quiet: bool | None) -> Console:
    """The console of a run in this process. Raises UserError for a config with several."""
    if needs_launch(config.processes):
        raise UserError(
            f"From Python a run has one process: start several with anyformer {command}, or this program with torchrun."
        )
    console = Console()
    console.quiet = not (console.is_terminal or console.is_jupyter) if quiet is None else quiet
    return console


def check_finished(command: str, finished: Finished) -> None:
    """Raise KeyboardInterrupt for a run that Ctrl-C ended early, and SystemExit for one that another signal did."""
    if finished.status == 128 + signal.SIGINT:
        raise KeyboardInterrupt(f"{command} was stopped early; resume={str(finished.directory)!r} goes on")
    if finished.status:
        raise SystemExit(finished.status)


def metrics_of(directory: Path) -> dict[str, dict[str, float]]:
    """The metrics on validation texts or examples that a run has logged ``"before"`` and ``"after"`` training."""
    metrics: dict[str, dict[str, float]] = {"before": {}, "after": {}}
    path = directory / METRICS
    for text in limits.read_text(path, limits.LOG_BYTES).splitlines():
        line = limits.parse_object(text, path)
        losses = {name: line[name] for name in ("validation_loss", "bits_per_byte") if name in line}
        metrics["before" if line.get("step") == 0 else "after"].update({**losses, **line.get("scores", {})})
    return metrics


def _named(model: ModelConfig | str | Path) -> tuple[str, ModelConfig]:
    """A model's config, and the preset or family that the run is called by."""
    config, name = spec.config_of(model), str(model)
    if not isinstance(model, ModelConfig) and (name in PRESETS or name in ALIASES):
        return name, config
    family = to_huggingface(config)[0]
    is_known = family.model_type in PRESETS or family.model_type in ALIASES
    return family.model_type if is_known else next(iter(family.published)), config


def _resumed(directory: Path, changes: Mapping[str, Any]) -> TrainConfig:
    """The config to go on with in a run directory: its own, with changes."""
    check_resumed(directory, changes, dashes="")
    config = read_yaml(directory / CONFIG)
    ends = dict.fromkeys(("steps", "minutes")) if {"steps", "minutes"} & changes.keys() else {}
    changed = dataclasses.replace(config, **{**ends, **changes})
    return check_consent(changed, directory / CONFIG, changes, resume=True)
