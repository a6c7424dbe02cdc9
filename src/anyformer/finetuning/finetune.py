"""Fine-tuning from Python."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from anyformer.checkpoint import load
from anyformer.data.disk_cache import Cache
from anyformer.data.examples.tables import Data, kept_paths
from anyformer.errors import UserError
from anyformer.finetuning.config import FinetuneConfig, resumed
from anyformer.finetuning.recipe import finetuning
from anyformer.tokenizer import Tokenizer
from anyformer.training.precision import choose_device
from anyformer.training.run import run
from anyformer.training.train import RunOptions, TrainResult, check_finished, console_of, metrics_of, values_of


class FinetuneOptions(RunOptions, total=False):
    """The fields of `FinetuneConfig` except its base and its data, as keyword arguments."""

    task: str | None
    columns: Mapping[str, str] | Sequence[str]
    header: Sequence[str]
    labels: Sequence[str]
    label_kind: str | None
    balance: bool | None
    train_on: str
    system: str | None
    packing: bool | None
    skip_faulty: bool
    lora: int | None
    lora_alpha: float | None
    lora_dropout: float
    targets: str | Sequence[str]
    dora: bool
    rslora: bool
    quantize: str | None
    epochs: float | None
    beta: float
    loss: str | None
    allow_pickle: bool


class FinetuneResult(TrainResult):
    """The result of fine-tuning.

    Attributes:
        model: The fine-tuned model, in evaluation mode; an adapter is beside its weights, see `anyformer.merge`.
        metrics: The metrics on the validation examples ``"before"`` and ``"after"`` training, by name:
            `validation_loss`, and those of the task, see `anyformer.evaluate`.
        directory: The run directory, which holds `report.html` and, in `model/`, the model or the adapter.
    """

    __slots__ = ()


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
    columns = options.get("columns")
    if isinstance(columns, Mapping):
        options["columns"] = [f"{role}={name}" for role, name in columns.items()]
    values = values_of("finetune", options, FinetuneConfig, {*FinetuneOptions.__annotations__, "base", "data"})
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
    console = console_of("finetune", config, quiet)
    finished = run(config, finetuning, resume=directory, console=console, started=started)
    check_finished("finetune", finished)
    path = finished.directory
    loading: dict[str, Any] = {
        "quantize": config.quantize,
        "allow_pickle": config.allow_pickle,
        "device": choose_device(config.device),
    }
    if config.lora is not None:
        loading["adapter"] = path
    own = Tokenizer.find(path / "model")  # an adapter's may have another template
    model, tokenizer = load(path if config.lora is None else config.base, tokenizer=own, **loading)
    assert tokenizer is not None
    return FinetuneResult(model, tokenizer, metrics_of(path), path)


def _name_of(base: object) -> str:
    """The base as a run names it. Raises UserError for anything but a path or a name, such as a model."""
    if not isinstance(base, str | Path):
        raise UserError(
            f"base is a {type(base).__name__}, and a run has to name its model: give the directory that it was loaded "
            "from, or save it with af.save(model, DIR, tokenizer=tokenizer) and give DIR."
        )
    return str(base)
