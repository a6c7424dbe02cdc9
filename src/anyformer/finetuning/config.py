"""Settings of fine-tuning."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typing_extensions import override

from anyformer.config import ModelConfig
from anyformer.errors import UserError, cut, nearest
from anyformer.limits import RECORD_BYTES, read_yaml
from anyformer.pages.formatting import listed
from anyformer.runs.directory import CONFIG, base_name
from anyformer.schema import Section, flag
from anyformer.tasks import CHOICES, TASKS
from anyformer.training.config import (
    DATA,
    DIRECTORY,
    HARDWARE,
    LENGTH,
    OBJECTIVE,
    OPTIMIZATION,
    CompleteRunConfig,
    RunConfig,
)
from anyformer.training.config_file import check_consent, check_resumed, read_fields

if TYPE_CHECKING:
    from anyformer.adapters import LoraConfig

EPOCHS = 3.0
"""Passes over the data of a run that was given no length."""
_ENOUGH = 60_000
"""Examples, repeated ones among them, after which a pretrained model has learned most: with more of them an epoch or
two do, in larger batches at a larger learning rate and with a mean of the last hundred steps' weights: the same
quality in a quarter of the time (docs/measurements/finetuning.md)."""
_MOST_EPOCHS = 20.0
"""Epochs of a task that wants some steps at least: Mosbach et al. 2021, section 6, find as many to be harmless where
there are few examples, and fewer to fail."""

EMBEDDING_LOSSES = ("in_batch_negatives", "cosine", "triplet", "class_triplet", "softmax")
LABEL_KINDS = ("single", "multiple", "regression")
ADAPTER = Section("adapter")
_LENGTHS = ("epochs", "steps", "minutes")

_CONTEXT = 1024
_BATCH_TOKENS = 4096
"""Tokens of a validation batch, and about so many of a batch of plain text."""
_ALL_LINEAR, _EXPERTS = ("all-linear",), "experts"


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(RunConfig):
    """Go on training a model on your own examples."""

    base: str
    task: Annotated[str | None, CHOICES, DATA] = None
    """Task that the model learns (default: the one that the columns suit)."""
    columns: Annotated[tuple[str, ...], "ROLE=COLUMN", DATA] = ()
    """Which column plays which role, such as text=review label=stars (default: by their names)."""
    header: Annotated[tuple[str, ...], "NAME", DATA] = ()
    """The names of the columns of .csv and .tsv files that have no header."""
    skip_faulty: Annotated[bool, DATA] = False
    """Leave faulty rows out, and say how many."""
    data: Annotated[tuple[str, ...], "PATH", DATA] = ()
    """Files, folders and globs of examples (.jsonl .json .csv .tsv .parquet .conll .txt, also .gz .zst), - for standard
    input, hf:NAME for a data set of the Hugging Face hub."""
    validation: Annotated[tuple[str, ...], "PATH", DATA] = ()
    """Examples to validate on (default: a tenth of the data is held out)."""
    labels: Annotated[tuple[str, ...], "NAME", OBJECTIVE] = ()
    """Classify, tag and embed: the names of all labels, in the order of their numbers (default: those that occur)."""
    label_kind: Annotated[str | None, "{single,multiple,regression}", OBJECTIVE] = None
    """Classify: one label a text, several, or a number (default: what the labels look like)."""
    balance: Annotated[bool | None, OBJECTIVE] = None
    """Classify: hold examples of each class out, and count rare classes as much as frequent ones in the loss (default:
    for one label a text)."""
    train_on: Annotated[str, "{answers,all}", OBJECTIVE] = "answers"
    """Chat, completion and preference: the tokens that are learned."""
    system: Annotated[str | None, "TEXT", OBJECTIVE] = None
    """Chat and preference: the system message of conversations that have none."""
    context: Annotated[int | None, DATA] = None
    """Tokens of an example, longer ones are cut (default: as many as the model has positions for, at most 1,024)."""
    packing: Annotated[bool | None, OBJECTIVE] = None
    """Text, chat and completion: put several examples into a row, which do not see each other (default: on an
    accelerator; elsewhere examples of about equal length share a batch)."""
    batch_size: Annotated[int | None, LENGTH] = None
    """Examples in a batch, of all processes together (default: 32, or 128 from 60,000 examples on without an adapter;
    16 for text to be generated; from 8 on for labels of less than 240 texts)."""
    epochs: Annotated[float | None, LENGTH] = None
    """Passes over the data, instead of --steps or --minutes (default: 3; of labels as many as 150 batches are,
    of tags 500, from 3 to 20; from 20,000 examples on fewer: what 60,000 examples are, but one at least)."""
    lora: Annotated[int | None, "RANK", ADAPTER] = None
    """Train a low-rank adapter of this rank, and leave the weights as they are."""
    lora_alpha: Annotated[float | None, ADAPTER] = None
    """The adapter counts alpha / rank times (default: twice the rank)."""
    lora_dropout: Annotated[float, ADAPTER] = 0.0
    """Dropout before the adapter."""
    targets: Annotated[tuple[str, ...], "LAYER", ADAPTER] = _ALL_LINEAR
    """The layers that get adapters, by Hugging Face's names, such as q_proj v_proj; `experts` for those of a mixture,
    perhaps beside all-linear."""
    dora: Annotated[bool, ADAPTER] = False
    """Learn the length of each row of a weight as well (DoRA)."""
    rslora: Annotated[bool, ADAPTER] = False
    """Divide alpha by the square root of the rank (rsLoRA)."""
    quantize: Annotated[str | None, "{int8,int4}", ADAPTER] = None
    """Quantize the weights that stay as they are (QLoRA)."""
    learning_rate: Annotated[float | None, OPTIMIZATION] = None
    """Peak of the learning rate (default: chosen by the task, the model's width, and whether an adapter is trained)."""
    schedule: Annotated[str, "{cosine,linear,inverse_sqrt,wsd}", OPTIMIZATION] = "linear"
    warmup: Annotated[float, OPTIMIZATION] = 0.06
    weight_decay: Annotated[float, OPTIMIZATION] = 0.01
    beta2: Annotated[float, OPTIMIZATION] = 0.999
    """AdamW's decay rate of the mean of squared gradients."""
    beta: Annotated[float, OBJECTIVE] = 0.1
    """Preference: how closely the model stays to what it was (DPO)."""
    loss: Annotated[str | None, "{in_batch_negatives,cosine,triplet,class_triplet,softmax}", OBJECTIVE] = None
    """Embed: what is compared (default: what the columns say)."""
    minutes: Annotated[float | None, LENGTH] = None
    """Limit of the whole run's time, instead of --epochs or --steps."""
    batch_tokens: Annotated[int | None, LENGTH] = None
    """Tokens of a validation batch, with padding (default: 4096)."""
    name: Annotated[str | None, DIRECTORY] = None
    """Name of the run directory (default: the model's with a number)."""
    max_record_bytes: Annotated[int, "N", DATA] = RECORD_BYTES
    """Bytes that a row may have."""
    cache: Annotated[Path | None, "FOLDER", DATA] = None
    """Where data sets of the hub, standard input and tokens of plain text are kept (default: the user's cache
    folder)."""
    label_smoothing: Annotated[float | None, OBJECTIVE] = None
    """Share of the target's probability that is spread over all others (default: 0)."""
    allow_pickle: Annotated[bool, HARDWARE] = False
    """Read pytorch_model.bin where there is no safetensors file."""
    workers: int | None = None

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        choices: dict[str, tuple[str, ...]] = {
            "task": tuple(TASKS),
            "train_on": ("answers", "all"),
            "quantize": ("int8", "int4"),
            "loss": EMBEDDING_LOSSES,
            "label_kind": LABEL_KINDS,
        }
        for name, values in choices.items():
            value: str | None = getattr(self, name)
            if value is not None and value not in values:
                raise UserError(f"{flag(name)} {cut(value)} is unknown ({nearest(value, values)}).")
        lengths = [name for name in _LENGTHS if getattr(self, name) is not None]
        if len(lengths) > 1:
            raise UserError(f"A run has one length: give --{lengths[0]} or --{lengths[1]}.")
        if self.epochs is not None and not 0 < self.epochs < 1e6:
            raise UserError(f"--epochs {self.epochs} must be positive, and not infinite.")
        if not 0 < self.beta < float("inf"):
            raise UserError(f"--beta {self.beta} must be positive, and not infinite.")
        for column in self.columns:
            if not all(column.partition("=")):
                raise UserError(f"--columns {cut(column)}: write ROLE=COLUMN, such as text=review.")
        if len(self.roles) < len(self.columns):
            raise UserError(f"--columns {cut(' '.join(self.columns))}: a role is named twice.")
        if self.lora is None:
            for name in ("lora_alpha", "dora", "rslora", "lora_dropout", "targets", "quantize"):
                if getattr(self, name) not in (None, False, 0.0, _ALL_LINEAR):
                    raise UserError(f"{flag(name)} is for adapters: add --lora 16.")
        if self.quantize is not None and self.engine == "deepspeed":
            raise UserError("--quantize does not work with --engine deepspeed: use ddp or fsdp, or leave it out.")
        _ = self.adapter  # refuses what makes no adapter

    @property
    @override
    def label(self) -> str:
        return re.sub(r"[^\w.-]", "-", base_name(self.base).rpartition("/")[2].removesuffix(".gguf")) or "model"

    @property
    @override
    def is_quantized(self) -> bool:
        return self.quantize is not None

    @property
    def adapter(self) -> LoraConfig | None:
        """The adapter that is trained; None: all weights are."""
        if self.lora is None:
            return None
        from anyformer.adapters import LoraConfig  # with torch, for which --help doesn't wait

        modules = tuple(each for each in self.targets if each != _EXPERTS)
        return LoraConfig(
            rank=self.lora,
            alpha=self.lora_alpha,
            dropout=self.lora_dropout,
            target_modules="all-linear" if modules == _ALL_LINEAR else modules,
            target_parameters=() if modules == self.targets else ("experts.gate_up_proj", "experts.down_proj"),
            use_dora=self.dora,
            use_rslora=self.rslora,
        )

    @property
    def roles(self) -> dict[str, str]:
        """The columns that were named, by role."""
        return dict(column.split("=", 1) for column in self.columns)


@dataclass(frozen=True, kw_only=True)
class CompleteFinetuneConfig(FinetuneConfig, CompleteRunConfig):
    """A FinetuneConfig that leaves nothing open."""

    task: str = "text"
    context: int = 1
    batch_size: int = 1
    batch_tokens: int = _BATCH_TOKENS
    learning_rate: float = 1e-4
    label_smoothing: float = 0.0
    packing: bool = False
    balance: bool = True

    @property
    def base_dtype(self) -> str:
        """The dtype of the base's weights: bfloat16 where they stay as they are and products read that.

        Trained weights, adapters among them, are float32, and so is all that is neither read by a product nor looked up
        in a table while bfloat16 is autocast's dtype.
        """
        stays = self.lora is not None and self.quantize is None and self.engine != "deepspeed"
        return "bfloat16" if stays and self.dtype == "bfloat16" else "float32"


def configured(file: Path, changes: Mapping[str, Any]) -> FinetuneConfig:
    """The config that a config.yaml describes, with changes; another length replaces the file's.

    Raises:
        UserError: The file can't be read, names no model, or asks for more than it may, see `check_consent`.
    """
    return _merged(file, read_fields(file, FinetuneConfig), changes)


def read_fine_tuning(file: Path) -> dict[str, Any] | None:
    """The settings in the config.yaml of a fine-tuning run; None for one that trained from scratch.

    Raises UserError as `read_fields`.
    """
    raw: object = read_yaml(file)
    return read_fields(file, FinetuneConfig) if isinstance(raw, dict) and "base" in raw else None


def resumed(run: Path, changes: Mapping[str, Any]) -> FinetuneConfig:
    """The config to go on with in a run directory: its own, with changes.

    Raises:
        UserError: There is no run, its config can't be read or asks for more than it may, or a change would have it
            somewhere else.
    """
    check_resumed(run, changes)
    file = run / CONFIG
    raw: object = read_yaml(file)
    if isinstance(raw, dict) and "preset" in raw and "base" not in raw:
        again = f"anyformer train --resume {shlex.quote(str(run))}"
        raise UserError(f"{file} is for training from scratch, since it has the field preset: use `{again}`.")
    values = {"balance": False, **read_fields(file, FinetuneConfig)}  # runs from before the field had none
    own, base = values.get("base"), changes.get("base")
    if base is not None and own not in (base, str(Path(base).absolute())):
        raise UserError(f"--resume goes on in {run}, and so with {own}: leave out {base}.")
    return _merged(file, values, changes, resume=True)


def _merged(file: Path, values: dict[str, Any], changes: Mapping[str, Any], *, resume: bool = False) -> FinetuneConfig:
    lengths = dict.fromkeys(_LENGTHS) if any(name in changes for name in _LENGTHS) else {}
    merged: dict[str, Any] = {**values, **lengths, **changes}
    if "base" not in merged:
        raise UserError(f"{file} names no model: give one on the command line, or add the field base.")
    return check_consent(FinetuneConfig(**merged), file, changes, resume=resume)


def complete(
    config: FinetuneConfig, model: ModelConfig, task: str, *, examples: int = 0, **resolved: Any
) -> CompleteFinetuneConfig:
    """Fill in what was left open, by the base's config, the task and the number of examples.

    Args:
        resolved: Other fields that follow from the examples.

    Raises:
        UserError: A setting doesn't fit the model or the task.
    """
    longest = model.context_length
    if config.context is not None and longest is not None and config.context > longest:
        raise UserError(f"--context {config.context} is longer than the {longest} tokens that the model can read.")
    if config.lora is not None and config.lora > model.d_model:
        raise UserError(f"--lora {config.lora} is no low rank: the model is {model.d_model} wide.")
    for field in fields(config):
        value, tasks = getattr(config, field.name), tasks_of(field.name)
        if value and value != field.default and tasks and task not in tasks:
            raise UserError(f"{flag(field.name)} is for {listed(tasks)}, and the task is {task}.")
    record = TASKS[task]
    many = examples >= _ENOUGH and config.lora is None and not record.generates
    context = config.context or longest_text(model, task)
    rate, average = default_learning_rate(model, task, adapter=config.lora is not None), config.average
    if many and config.batch_size is None:
        rate *= 2  # with the square root of the batch, as Malladi et al. 2022 find for Adam
        average = average or "ema:0.99"
    batch_size = 16 if record.generates else 128 if many else 32
    if examples and record.smallest_batch < batch_size:
        most = int(_MOST_EPOCHS * examples / max(1, record.fewest_steps))
        batch_size = max(record.smallest_batch, min(batch_size, most))
    if record.is_stream:
        batch_size = max(1, _BATCH_TOKENS // context)
    batch_size = config.batch_size or batch_size
    epochs = None if config.epochs or config.steps or config.minutes else default_epochs(examples, task, batch_size)
    packs = config.device != "cpu" and config.context_parallel == 1 and "packing" in record.settings
    chosen: dict[str, Any] = {
        "task": task,
        "context": context,
        "batch_size": batch_size,
        "batch_tokens": config.batch_tokens or _BATCH_TOKENS,
        "learning_rate": config.learning_rate or rate,
        "average": average,
        "label_smoothing": config.label_smoothing or 0.0,
        "packing": packs if config.packing is None else config.packing,
        "epochs": config.epochs or epochs,
        "balance": config.balance is not False,
    }
    return CompleteFinetuneConfig(**{**vars(config), **chosen, **resolved})


def tasks_of(setting: str) -> list[str]:
    """The tasks that a setting is restricted to; none: it is for all."""
    return [name for name, task in TASKS.items() if setting in task.settings]


def longest_text(model: ModelConfig, task: str) -> int:
    """Default of the largest number of tokens in a text."""
    limits = [_CONTEXT, model.max_length, *([] if model.context_length is None else [model.context_length])]
    if TASKS[task].makes_vectors and model.pooling.max_tokens is not None:
        limits.append(model.pooling.max_tokens)
    return min(limits)


def default_epochs(examples: int, task: str, batch_size: int) -> float:
    """Default number of passes over the examples; 0 examples: their number isn't known."""
    if not examples:
        return EPOCHS
    epochs = max(1.0, min(EPOCHS, _ENOUGH / examples))
    return max(epochs, min(_MOST_EPOCHS, TASKS[task].fewest_steps * batch_size / examples))


def default_learning_rate(model: ModelConfig, task: str, *, adapter: bool) -> float:
    """The peak of the learning rate: smaller for wider models, ten times as large for an adapter.

    Devlin et al. 2019, appendix A.3, take 2e-5 to 5e-5 for a width of 768; Schulman et al. 2025, LoRA Without Regret,
    find the best rate of an adapter to be about ten times that of the weights.
    """
    rate = min(1e-4, 0.0384 / model.d_model)
    return rate * (10 if adapter else 1) * TASKS[task].learning_rate
