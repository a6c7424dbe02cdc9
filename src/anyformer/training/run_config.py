"""Settings of every run, whatever it trains."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from anyformer.errors import UserError, cut, nearest, quote
from anyformer.limits import RECORD_BYTES
from anyformer.schema import Section, flag
from anyformer.training.schedule import check_schedule

DATA, OBJECTIVE, LENGTH = Section("data"), Section("objective"), Section("batches and length")
OPTIMIZATION, HARDWARE, DIRECTORY = Section("optimization"), Section("hardware"), Section("run directory")
"""Sections of the help of `train`, `finetune` and `plan`, which the fields of a run name."""

OPTIMIZERS = ("adamw", "muon")
ENGINES = ("ddp", "fsdp", "deepspeed")

BATCH_TOKENS = 1 << 28
"""More than any model was trained with, and gigabytes."""
_MOST = 10**15
_LARGEST = {
    **dict.fromkeys(("context", "batch_size", "batch_tokens"), BATCH_TOKENS),
    **dict.fromkeys(("workers", "processes"), 1024),
}
"""The largest number that a setting may be, where that is less than `_MOST`."""
_DTYPES = ("float32", "bfloat16", "float16", "int8")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The data, the length and the place of a run, and how its steps are taken.

    Raises:
        UserError: a value that makes no sense, or two that contradict each other.
    """

    data: Annotated[tuple[str, ...], "PATH", DATA] = ()
    """Files, folders and globs of text (.txt .md .py .jsonl .csv .tsv .parquet, also .gz .zst), - for standard input,
    hf:NAME for a data set of the Hugging Face hub (default: the standard library of the running Python)."""
    validation: Annotated[tuple[str, ...], "PATH", DATA] = ()
    """Text to validate on, of parallel files the source, then the target (default: a tenth of the data is held out)."""
    max_record_bytes: Annotated[int, "N", DATA] = RECORD_BYTES
    """Bytes that a record may have, and a line of parallel files."""
    label_smoothing: Annotated[float | None, OBJECTIVE] = None
    """Share of the target's probability that is spread over the vocabulary (default: 0.1 for seq2seq, else 0)."""
    workers: Annotated[int | None, DATA] = None
    """Processes that tokenize (default: one for each core)."""
    cache: Annotated[Path | None, "FOLDER", DATA] = None
    """Where token files are kept for a second run on the same data (default: the user's cache folder)."""
    context: Annotated[int | None, LENGTH] = None
    """Tokens that the model reads at a time, and its max_length (default: the model's own max_length, 256 at most)."""
    batch_size: Annotated[int | None, LENGTH] = None
    """Texts in a batch, of all processes together (default: as many as have about 1024 tokens together)."""
    batch_tokens: Annotated[int | None, LENGTH] = None
    """For pairs, which come in batches of about equal length: tokens in a batch, with padding (default: 4096)."""
    grad_accumulation: Annotated[int, LENGTH] = 1
    """Parts that a batch is computed in, one after the other. Saves memory, changes nothing beyond rounding."""
    steps: Annotated[int | None, LENGTH] = None
    """Batches to train on."""
    minutes: Annotated[float | None, LENGTH] = None
    """How long the run may take in all, from reading the data to the sample, instead of --steps. Training gets at least
    half of it, however long the data takes to read (default: 2)."""
    optimizer: Annotated[str, "{adamw,muon}", OPTIMIZATION] = "adamw"
    """muon: Muon for the matrices inside the blocks and AdamW for everything else."""
    learning_rate: Annotated[float | None, OPTIMIZATION] = None
    """Peak of the learning rate (default: chosen by the model's width)."""
    schedule: Annotated[str, "{cosine,linear,inverse_sqrt,wsd}", OPTIMIZATION] = "cosine"
    """How the learning rate falls after its peak; wsd: warmup, stable, decay."""
    warmup: Annotated[float, OPTIMIZATION] = 0.05
    """Share of the run in which the learning rate rises to its peak."""
    decay: Annotated[float, OPTIMIZATION] = 0.2
    """Share of the run in which wsd's learning rate falls."""
    weight_decay: Annotated[float, OPTIMIZATION] = 0.1
    """Decay of matrices; vectors are not decayed."""
    beta2: Annotated[float, OPTIMIZATION] = 0.99
    """AdamW's decay rate of the mean of squared gradients; 0.95 is enough for large batches."""
    grad_clip: Annotated[float, OPTIMIZATION] = 1.0
    """Largest norm of the gradient; longer ones are scaled down to it."""
    average: Annotated[str | None, "{ema:DECAY,last:N}", OPTIMIZATION] = None
    """Weights to evaluate and save instead of the latest ones: ema:0.999 for a moving average, last:5 for the mean of
    the latest five checkpoints (Vaswani et al. 2017, section 6.1)."""
    gradient_checkpointing: Annotated[bool, HARDWARE] = False
    """Compute the activations of each block again in the backward pass, instead of keeping them: less memory, more
    time."""
    compile: Annotated[bool | None, HARDWARE] = None
    """Compile the model (default: where it pays and a compiler exists)."""
    engine: Annotated[str | None, "{ddp,fsdp,deepspeed}", HARDWARE] = None
    """How several processes train together (default: a single process)."""
    processes: Annotated[int, HARDWARE] = 1
    """How many to start on this machine; torchrun and deepspeed start them themselves."""
    zero_stage: Annotated[int, "{1,2,3}", HARDWARE] = 2
    """DeepSpeed: 1 shards the optimizer's state, 2 the gradients as well, 3 the weights as well."""
    save_every: Annotated[int | None, DIRECTORY] = None
    """Steps between two checkpoints to resume from (default: every five minutes, and at the end)."""
    keep: Annotated[int, DIRECTORY] = 2
    """Checkpoints that are kept."""
    keep_optimizer: Annotated[bool, DIRECTORY] = False
    """Keep the last checkpoint of a run that has finished, so that --resume can give it more steps. Without it no
    optimizer state stays: twice the trained weights, for AdamW."""
    evaluate_every: Annotated[int | None, DIRECTORY] = None
    """Steps between evaluations, each of which saves the model as well (default: before and after training only)."""
    log_every: Annotated[int | None, DIRECTORY] = None
    """Steps between two lines of metrics.jsonl (default: 10, or a twentieth of a run of less than 200 steps)."""
    track: Annotated[tuple[str, ...], "TRACKER", DIRECTORY] = ()
    """Where to send the metrics as well: tensorboard, wandb, trackio."""
    seed: Annotated[int, OPTIMIZATION] = 0
    """Decides the first weights, the order of the data, and dropout."""
    name: Annotated[str | None, DIRECTORY] = None
    """Name of the run directory (default: the preset's with a number)."""
    runs: Annotated[Path, "FOLDER", DIRECTORY] = Path("runs")
    """Where run directories are made."""
    device: Annotated[str | None, HARDWARE] = None
    """cpu, cuda, mps ... (default: an accelerator if there is one)."""
    dtype: Annotated[str | None, "{float32,bfloat16,float16,int8}", HARDWARE] = None
    """The dtype of matrix products; weights that are trained are kept in float32. int8 is the fastest on CPUs with VNNI
    but without AMX, at a little noise in what is learned (default: the fastest of the others here)."""

    def __post_init__(self) -> None:
        counts = (
            "context",
            "batch_size",
            "batch_tokens",
            "steps",
            "evaluate_every",
            "save_every",
            "log_every",
            "workers",
        )
        for name in counts:
            count: int | None = getattr(self, name)
            _require(count is None or count >= (2 if name == "context" else 1), name, count, "is too small")
            _require(count is None or count <= _LARGEST.get(name, _MOST), name, count, "is too large")
        for name in ("max_record_bytes", "grad_accumulation", "processes", "keep"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "is too small")
            _require(getattr(self, name) <= _LARGEST.get(name, _MOST), name, getattr(self, name), "is too large")
        for name in ("minutes", "learning_rate", "grad_clip"):
            rate: float | None = getattr(self, name)
            _require(rate is None or 0 < rate < float("inf"), name, rate, "must be positive, and not infinite")
        _require(0 < self.decay <= 1, "decay", self.decay, "is a share of the run, in (0, 1]")
        _require(0 <= self.weight_decay < float("inf"), "weight_decay", self.weight_decay, "must be a number from 0 on")
        _require(0 < self.beta2 < 1, "beta2", self.beta2, "must lie between 0 and 1")
        _require(0 <= self.seed < 1 << 63, "seed", self.seed, "must lie in [0, 2^63)")
        smoothing = self.label_smoothing
        _require(smoothing is None or 0 <= smoothing < 1, "label_smoothing", smoothing, "is a share, in [0, 1)")
        _require(self.zero_stage in (1, 2, 3), "zero_stage", self.zero_stage, "must be 1, 2 or 3")
        if self.steps is not None and self.minutes is not None:
            raise UserError("A run ends after --steps or after --minutes: give one of the two.")
        known = {"dtype": _DTYPES, "optimizer": OPTIMIZERS, "engine": ENGINES}
        for name, values in known.items():
            value: str | None = getattr(self, name)
            if value is not None and value not in values:
                raise UserError(f"--{name} {cut(value)}: there is no such {name} ({nearest(value, values)}).")
        check_schedule(self.schedule, self.warmup, self.decay)
        if self.name is not None and (Path(self.name).name != self.name or self.name in (".", "..")):
            raise UserError(f"--name {quote(self.name)} must be the name of a folder, without a path (see --runs).")
        if self.processes > 1 and self.engine is None:
            raise UserError(f"--processes {self.processes} needs an --engine: ddp, fsdp or deepspeed.")
        if self.dtype == "int8" and self.engine not in (None, "ddp"):
            raise UserError(f"--dtype int8 does not work with --engine {self.engine}: use ddp, or another --dtype.")
        if self.optimizer == "muon" and self.engine == "deepspeed":
            raise UserError(
                "--optimizer muon needs whole matrices, and DeepSpeed's ZeRO cuts the weights into flat pieces: "
                "use --optimizer adamw, or --engine ddp or fsdp."
            )
        if self.average is not None and self.average.startswith("last:") and self.save_every is None:
            raise UserError(f"--average {self.average} is the mean of checkpoints: say how often by --save-every.")

    @property
    def label(self) -> str:
        """The beginning of the name of the run's directory."""
        raise NotImplementedError

    @property
    def log_interval(self) -> int:
        """Steps between two lines of metrics.jsonl."""
        return self.log_every or (10 if self.steps is None else max(1, min(10, self.steps // 20)))

    @property
    def is_quantized(self) -> bool:
        """Whether the weights that are trained on are quantized."""
        return False


@dataclass(frozen=True, kw_only=True)
class CompleteRunConfig(RunConfig):
    """A RunConfig that leaves nothing open."""

    context: int = 1
    batch_size: int = 1
    batch_tokens: int = 1
    label_smoothing: float = 0.0
    learning_rate: float = 1e-3


def defaults(kind: type[RunConfig]) -> dict[str, Any]:
    """The default of each setting that has one; None is chosen to suit the model and the data."""
    return {field.name: field.default for field in fields(kind) if field.default is not MISSING}


def _require(condition: bool, name: str, value: object, reason: str) -> None:
    if not condition:
        raise UserError(f"{flag(name)} {cut(str(value))} {reason}.")
