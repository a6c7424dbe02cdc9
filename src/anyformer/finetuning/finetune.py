"""Fine-tuning from Python."""

import hashlib
import json
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Unpack, cast

from anyformer import limits
from anyformer.checkpoint import load
from anyformer.console import Console
from anyformer.data.disk_cache import Cache
from anyformer.errors import UserError, nearest
from anyformer.finetuning.config import FinetuneConfig, FinetuneOptions, resumed
from anyformer.finetuning.recipe import finetuning
from anyformer.model import Transformer
from anyformer.one_line import OneLine
from anyformer.runs.directory import METRICS
from anyformer.tokenizer import Tokenizer
from anyformer.training.precision import choose_precision
from anyformer.training.run import run
from anyformer.training.strategies.launch import needs_launch

Data = str | Path | Sequence[str | Path] | Iterable[Mapping[str, Any]]
"""Files, folders and globs, as `anyformer finetune --data` takes them; or rows, as they would be in a .jsonl file."""


@dataclass(frozen=True, slots=True, repr=False)
class FinetuneResult(OneLine):
    """What fine-tuning leaves.

    Attributes:
        model: The fine-tuned model, in evaluation mode; an adapter is beside its weights, see `anyformer.merge`.
        tokenizer: The model's.
        metrics: What was measured on the validation examples ``"before"`` and ``"after"`` training, by name:
            `validation_loss`, and the metrics of the task, see `anyformer.evaluate`.
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
        data: Files, folders and globs of examples; or rows as dicts, which are kept in the cache folder as a file, so
            that the run can be resumed and repeated.
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
    examples = _paths(data, values.get("cache"))
    values |= {"data": examples} if examples else {}
    directory = None if resume is None else Path(resume)
    if directory is not None:
        if base is not None:
            raise UserError(f"resume goes on in {directory}, with the base that the run has: leave base out.")
        config = resumed(directory, values)
    elif base is None:
        raise UserError("Which model is to be fine-tuned? Give its directory, a GGUF file or a hub id.")
    elif not examples:
        raise UserError("What is it to learn? Give data: a file of examples, or rows.")
    else:
        config = FinetuneConfig(base=str(base), **values)
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
    device = choose_precision(config.device, "float32").device
    loading: dict[str, Any] = {"quantize": config.quantize, "allow_pickle": config.allow_pickle, "device": device}
    if config.lora is None:
        model, tokenizer = load(finished.directory, **loading)
    else:
        model, tokenizer = load(config.base, adapter=finished.directory, **loading)
    assert tokenizer is not None
    return FinetuneResult(model, tokenizer, _metrics(finished.directory), finished.directory)


def _values(options: FinetuneOptions) -> dict[str, Any]:
    """The options as a `FinetuneConfig` has them."""
    known = FinetuneOptions.__annotations__
    for name in options:
        if name not in known:
            raise TypeError(f"finetune() got an unexpected keyword argument {name!r} ({nearest(name, known)})")
    values: dict[str, Any] = dict(options)
    columns = values.get("columns")
    if isinstance(columns, Mapping):
        values["columns"] = [f"{role}={name}" for role, name in cast("Mapping[str, str]", columns).items()]
    for name in ("columns", "header", "labels", "targets", "track"):
        if name in values:
            values[name] = (values[name],) if isinstance(values[name], str) else tuple(values[name])
    for name in ("runs", "cache"):
        if values.get(name) is not None:
            values[name] = Path(values[name])
    if "validation" in values:
        values["validation"] = _paths(values["validation"], values.get("cache"))
    return values


def _paths(data: Data, cache: Path | None) -> tuple[str, ...]:
    """Files with the examples: those that are named, or one that holds the rows."""
    if isinstance(data, str | Path):
        return (str(data),)
    given = list[object](data)
    if all(isinstance(each, str | Path) for each in given):
        return tuple(map(str, given))
    lines = [_line(row, number) for number, row in enumerate(given, 1)]

    def write(path: Path) -> str:
        content = "".join(lines).encode("utf-8")
        path.write_bytes(content)
        return f"{hashlib.sha256(content).hexdigest()[:16]}.jsonl"

    return (str(Cache(cache).keep("rows", write)),)


def _line(row: object, number: int) -> str:
    if not isinstance(row, Mapping):
        raise UserError(
            f"data holds paths or rows, and a row is a dict such as one of a .jsonl file: item {number} is a "
            f"{type(row).__name__}."
        )
    try:
        return json.dumps(dict(cast("Mapping[str, Any]", row)), ensure_ascii=False) + "\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"data, row {number}, is not what a .jsonl file can hold: {error}.") from error


def _metrics(directory: Path) -> dict[str, dict[str, float]]:
    """What the run has logged about the validation examples, first and last."""
    found: dict[str, dict[str, float]] = {"before": {}, "after": {}}
    path = directory / METRICS
    for text in limits.read_text(path, limits.LOG_BYTES).splitlines():
        line = limits.parse_object(text, path)
        losses = {name: line[name] for name in ("validation_loss", "bits_per_byte") if name in line}
        found["before" if line.get("step") == 0 else "after"].update({**losses, **line.get("scores", {})})
    return found
