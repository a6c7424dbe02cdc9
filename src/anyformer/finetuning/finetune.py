"""Fine-tuning from Python."""

import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypedDict, Unpack, cast

import torch

from anyformer import limits
from anyformer.checkpoint import load
from anyformer.console import Console
from anyformer.data.disk_cache import Cache
from anyformer.data.examples.tables import Data, kept_paths
from anyformer.errors import UserError, check_keywords
from anyformer.finetuning.config import FinetuneConfig, resumed
from anyformer.finetuning.recipe import finetuning
from anyformer.model import Transformer
from anyformer.one_line import OneLine
from anyformer.runs.directory import METRICS
from anyformer.schema import typed
from anyformer.tokenizer import Tokenizer
from anyformer.training.precision import choose_device
from anyformer.training.run import run
from anyformer.training.strategies.launch import needs_launch


class FinetuneOptions(TypedDict, total=False):
    """The fields of `FinetuneConfig` except its base and its data, as keyword arguments."""

    validation: Data
    task: str | None
    columns: Mapping[str, str] | Sequence[str]
    header: Sequence[str]
    labels: Sequence[str]
    label_kind: str | None
    train_on: str
    system: str | None
    context: int | None
    packing: bool | None
    skip_faulty: bool
    max_record_bytes: int
    cache: str | Path | None
    lora: int | None
    lora_alpha: float | None
    lora_dropout: float
    targets: str | Sequence[str]
    dora: bool
    rslora: bool
    quantize: str | None
    epochs: float | None
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
    beta: float
    loss: str | None
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
    allow_pickle: bool
    name: str | None
    runs: str | Path
    save_every: int | None
    keep: int
    keep_optimizer: bool
    evaluate_every: int | None
    log_every: int
    track: str | Sequence[str]


@dataclass(frozen=True, slots=True, repr=False)
class FinetuneResult(OneLine):
    """The result of fine-tuning.

    Attributes:
        model: The fine-tuned model, in evaluation mode; an adapter is beside its weights, see `anyformer.merge`.
        metrics: The metrics on the validation examples ``"before"`` and ``"after"`` training, by name:
            `validation_loss`, and those of the task, see `anyformer.evaluate`.
        directory: The run directory, which holds `report.html` and, in `model/`, the model or the adapter.
    """

    shown: ClassVar = ("directory", "metrics", "model")

    model: Transformer
    tokenizer: Tokenizer
    metrics: Mapping[str, Mapping[str, float]]
    directory: Path


def finetune(
    base: str | Path | None = None,
    data: Data = (),
    *,
    resume: str | Path | None = None,
    quiet: bool | None = None,
    **options: Unpack[FinetuneOptions],
) -> FinetuneResult:
    """Go on training a model on your own examples, as `anyformer finetune` does.

    Args:
        base: A model directory, a run directory, a GGUF file, or a hub id.
        data: Files, folders and globs of examples; or rows, as dicts, a data frame of pandas or polars, or a
            `datasets.Dataset`, which are kept in the cache folder as a file, so that the run can be resumed and
            repeated.
        resume: A run directory to go on in, instead of a base.
        quiet: Whether to print nothing; None: unless standard output is a terminal or a notebook.
        **options: The fields of `FinetuneConfig`, which are the flags of the command: ``task="classify"``,
            ``lora=16``, ``minutes=10``, ``columns={"text": "review", "label": "stars"}``, ``validation="dev.csv"``.

    Returns:
        The model, its tokenizer, the metrics before and after, and the run directory.

    Raises:
        UserError: As `FinetuneConfig` and `run`: options that contradict each other, examples that are
            faulty or that nothing can be learned from, a task that the model can't do.
        KeyboardInterrupt: Ctrl-C ended the run early. What it has learned is kept, and `resume` goes on with it.

    ::

        result = af.finetune("HuggingFaceTB/SmolLM2-135M-Instruct", "chats.jsonl", lora=16, minutes=10)
        print(result.metrics["before"], result.metrics["after"])
        af.generate(result.model, result.tokenizer, ["Hello"])
    """
    started = time.monotonic()
    values = _values(options)
    examples = kept_paths(data, lambda: Cache(values.get("cache")))
    values |= {"data": examples} if examples else {}
    directory = None if resume is None else Path(resume)
    if directory is not None:
        if base is not None:
            raise UserError(f"resume goes on in {directory}, with the base that the run has: leave base out.")
        config = resumed(directory, values)
    elif base is None:
        raise UserError("Which model is to be fine-tuned? Give its directory, a GGUF file or a hub id.")
    else:
        name = _name_of(base)
        if not examples:
            raise UserError("What is it to learn? Give data: a file of examples, or rows.")
        config = FinetuneConfig(base=name, **values)
    if needs_launch(config.processes):
        raise UserError(
            "From Python a run has one process: start several with anyformer finetune, or this program with torchrun."
        )
    console = Console()
    console.quiet = not (console.is_terminal or console.is_jupyter) if quiet is None else quiet
    finished = run(config, finetuning, resume=directory, console=console, started=started)
    if finished.status == 128 + signal.SIGINT:
        raise KeyboardInterrupt(f"fine-tuning was stopped early; resume={str(finished.directory)!r} goes on")
    if finished.status:
        raise SystemExit(finished.status)
    loading: dict[str, Any] = {
        "quantize": config.quantize,
        "allow_pickle": config.allow_pickle,
        "device": choose_device(config.device),
    }
    if config.lora is not None:
        loading["adapter"] = finished.directory
    model, tokenizer = load(finished.directory if config.lora is None else config.base, **loading)
    tokenizer = Tokenizer.find(finished.directory / "model") or tokenizer  # an adapter's may have another template
    assert tokenizer is not None
    return FinetuneResult(model, tokenizer, _metrics(finished.directory), finished.directory)


def _values(options: FinetuneOptions) -> dict[str, Any]:
    check_keywords("finetune", options, {*FinetuneOptions.__annotations__, "base", "data", "resume", "quiet"})
    values: dict[str, Any] = dict(options)
    columns = values.get("columns")
    if isinstance(columns, Mapping):
        values["columns"] = [f"{role}={name}" for role, name in cast("Mapping[str, str]", columns).items()]
    for name in ("columns", "header", "labels", "targets", "track"):
        if isinstance(values.get(name), Iterable) and not isinstance(values[name], str):
            values[name] = tuple(values[name])
    if isinstance(values.get("dtype"), torch.dtype):
        values["dtype"] = str(values["dtype"]).removeprefix("torch.")
    validation = values.pop("validation", None)
    values = typed(FinetuneConfig, values, "finetune: ")
    if validation is not None:
        values["validation"] = kept_paths(validation, lambda: Cache(values.get("cache")))
    return values


def _metrics(directory: Path) -> dict[str, dict[str, float]]:
    """Metrics on the validation examples that the run has logged, first and last."""
    metrics: dict[str, dict[str, float]] = {"before": {}, "after": {}}
    path = directory / METRICS
    for text in limits.read_text(path, limits.LOG_BYTES).splitlines():
        line = limits.parse_object(text, path)
        losses = {name: line[name] for name in ("validation_loss", "bits_per_byte") if name in line}
        metrics["before" if line.get("step") == 0 else "after"].update({**losses, **line.get("scores", {})})
    return metrics


def _name_of(base: object) -> str:
    """The base as a run names it. Raises UserError for anything but a path or a name, such as a model."""
    if not isinstance(base, str | Path):
        raise UserError(
            f"base is a {type(base).__name__}, and a run has to name its model: give the directory that it was loaded "
            "from, or save it with af.save(model, DIR, tokenizer=tokenizer) and give DIR."
        )
    return str(base)
