"""Settings of runs, and of training from scratch."""

from __future__ import annotations

import math
from collections.abc import Callable, Container
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from typing_extensions import override

from anyformer.config import ModelConfig
from anyformer.data.input_files import check_encoding
from anyformer.errors import UserError, cut, nearest, quote
from anyformer.limits import RECORD_BYTES
from anyformer.schema import Section, flag
from anyformer.spec import DEFAULT_PRESET
from anyformer.training.schedule import check_schedule

DATA, OBJECTIVE, LENGTH = Section("data"), Section("objective"), Section("batches and length")
OPTIMIZATION, HARDWARE, DIRECTORY = Section("optimization"), Section("hardware"), Section("run directory")
"""Sections of the help of `train`, `finetune` and `plan`, which the fields of a run name."""

OPTIMIZERS = ("adamw", "muon")
ENGINES = ("ddp", "fsdp", "deepspeed", "xla", "xla-ddp")
ONE_PROCESS = ("xla", "xla-ddp")
"""Engines of which one process drives all devices."""
OBJECTIVES = {
    "causal": "a decoder-only model",
    "masked": "an encoder-only model",
    "span_corruption": "an encoder-decoder",
    "seq2seq": "an encoder-decoder",
}
"""Models that each objective trains."""

BATCH_TOKENS = 1 << 28
"""More than any model was trained with, and gigabytes."""
MINUTES = 2.0
"""Default length of a run."""

_BOUNDS = {
    "context": (2, BATCH_TOKENS),
    **dict.fromkeys(("batch_size", "batch_tokens"), (1, BATCH_TOKENS)),
    **dict.fromkeys(("workers", "processes", "tensor_parallel", "context_parallel"), (1, 1024)),
    "restarts": (0, 1024),
    **dict.fromkeys(("steps", "evaluate_every", "save_every", "log_every"), (1, 10**15)),
    **dict.fromkeys(("max_record_bytes", "grad_accumulation", "keep"), (1, 10**15)),
}
_CHOICES = {"dtype": ("float32", "bfloat16", "float16", "int8"), "optimizer": OPTIMIZERS, "engine": ENGINES}

_CONTEXT = 256
_PAIR_TOKENS = 4096


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
    encoding: Annotated[str | None, "NAME", DATA] = None
    """The encoding of files that are not UTF-8, such as cp1252; skip leaves them out (default: they are refused, unless
    a byte-order mark says that they are UTF-16 or UTF-32)."""
    max_record_bytes: Annotated[int, "N", DATA] = RECORD_BYTES
    """Bytes that a record may have, and a line of parallel files."""
    label_smoothing: Annotated[float | None, OBJECTIVE] = None
    """Share of the target's probability that is spread over the vocabulary (default: 0.1 for seq2seq, else 0)."""
    workers: Annotated[int | None, DATA] = None
    """Processes that tokenize, of less than 32 MB threads (default: one for each core)."""
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
    """Limit of the run's time, from reading the data to the sample, instead of --steps. Training gets at least half of
    it, however long the data takes to read (default: 2)."""
    optimizer: Annotated[str, "{adamw,muon}", OPTIMIZATION] = "adamw"
    """muon: Muon for the matrices inside the blocks and AdamW for everything else."""
    learning_rate: Annotated[float | None, OPTIMIZATION] = None
    """Peak of the learning rate (default: chosen by the model's width)."""
    schedule: Annotated[str, "{cosine,linear,inverse_sqrt,wsd}", OPTIMIZATION] = "cosine"
    """Fall of the learning rate after its peak; wsd: warmup, stable, decay."""
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
    engine: Annotated[str | None, "{ddp,fsdp,deepspeed,xla,xla-ddp}", HARDWARE] = None
    """Engine by which several processes train together, or by which one drives all TPUs of a machine (default: a single
    process on one device)."""
    processes: Annotated[int, HARDWARE] = 1
    """Processes to start on this machine; torchrun and deepspeed start them themselves."""
    tensor_parallel: Annotated[int, "N", HARDWARE] = 1
    """Processes that share the matrices of each layer and read the same texts, beside --engine fsdp."""
    context_parallel: Annotated[int, "N", HARDWARE] = 1
    """Processes that share each text, for a --context that is too long for one, beside --engine fsdp."""
    restarts: Annotated[int, HARDWARE] = 0
    """Times that the run begins again by itself, from its last checkpoint, after one of its processes was killed. A run
    of this --name that was killed is then taken up again, as torchrun --max-restarts needs it."""
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
        for name, (least, most) in _BOUNDS.items():
            count: int | None = getattr(self, name)
            _require(count is None or count >= least, name, count, "is too small")
            _require(count is None or count <= most, name, count, "is too large")
        for name in ("minutes", "learning_rate", "grad_clip"):
            rate: float | None = getattr(self, name)
            _require(rate is None or 0 < rate < math.inf, name, rate, "must be positive, and not infinite")
        _require(0 < self.decay <= 1, "decay", self.decay, "is a share of the run, in (0, 1]")
        _require(0 <= self.weight_decay < math.inf, "weight_decay", self.weight_decay, "must be a number from 0 on")
        _require(0 < self.beta2 < 1, "beta2", self.beta2, "must lie between 0 and 1")
        _require(0 <= self.seed < 1 << 63, "seed", self.seed, "must lie in [0, 2^63)")
        smoothing = self.label_smoothing
        _require(smoothing is None or 0 <= smoothing < 1, "label_smoothing", smoothing, "is a share, in [0, 1)")
        _require(self.zero_stage in (1, 2, 3), "zero_stage", self.zero_stage, "must be 1, 2 or 3")
        if self.steps is not None and self.minutes is not None:
            raise UserError("A run ends after --steps or after --minutes: give one of the two.")
        for name, values in _CHOICES.items():
            value: str | None = getattr(self, name)
            if value is not None and value not in values:
                raise UserError(f"--{name} {cut(value)}: there is no such {name} ({nearest(value, values)}).")
        check_encoding(self.encoding)
        check_schedule(self.schedule, self.warmup, self.decay)
        if self.name is not None and (Path(self.name).name != self.name or self.name in (".", "..")):
            raise UserError(f"--name {quote(self.name)} must be the name of a folder, without a path (see --runs).")
        if self.processes > 1 and self.engine is None:
            raise UserError(f"--processes {self.processes} needs an --engine: ddp, fsdp or deepspeed.")
        for name in ("tensor_parallel", "context_parallel"):
            if (size := getattr(self, name)) > 1 and self.engine != "fsdp":
                raise UserError(f"{flag(name, size)} goes with --engine fsdp alone: use that, or {flag(name, 1)}.")
        if self.processes > 1 and self.engine in ONE_PROCESS:
            raise UserError(f"--engine {self.engine} drives all devices by one process: leave --processes out.")
        if self.device is not None and self.device.startswith("xla"):
            raise UserError(f"--device {quote(self.device)} comes with an engine: give --engine xla instead.")
        if self.dtype == "float16" and self.engine in ONE_PROCESS:
            raise UserError(f"--dtype float16 does not work with --engine {self.engine}: use bfloat16 or float32.")
        for name in ("document_masking", "packing"):
            if self.context_parallel > 1 and getattr(self, name, None):
                raise UserError(f"{flag(name)} does not work with --context-parallel: leave one of them out.")
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

    @property
    def tokens_per_step(self) -> int:
        """Tokens of the largest batch."""
        return self.batch_size * self.context


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig):
    """Train a model from scratch on your own text.

    Decoder-only models learn to predict the next token, encoders to fill in masked ones. What is left open is chosen
    to suit the model and the data, printed, and written to config.yaml in the run directory, which repeats the run.
    """

    preset: str = DEFAULT_PRESET
    field: Annotated[str, DATA] = "text"
    """The field that holds the text, in records such as lines of jsonl, csv or parquet."""
    source: Annotated[str | None, DATA] = None
    """For sequence to sequence: the file to read from; with --data the name of the field."""
    target: Annotated[str | None, DATA] = None
    """The file to write to, line by line parallel to the source; with --data the name of the field."""
    objective: Annotated[str | None, "{causal,masked,span_corruption,seq2seq}", OBJECTIVE] = None
    """Training objective (default: that of the model's paper)."""
    document_masking: Annotated[bool, OBJECTIVE] = False
    """Causal: attention and positions begin anew with each document of a window."""
    whole_word_masking: Annotated[bool, OBJECTIVE] = False
    """Masked: hide whole words instead of single tokens."""
    tokenizer: Annotated[str | None, DATA] = None
    """char, bpe:N, wordpiece:N or unigram:N to train one of N tokens, or the path of one (default: what the model's
    paper has, bpe, wordpiece or unigram, with N to suit the data)."""
    scheduler: Annotated[str | None, "ADDRESS", DATA] = None
    """Give text of more than 64 MB to the workers of a dask scheduler, such as tcp://node0:8786, to tokenize, in the
    place of processes here. They need --data and --cache under the same paths."""
    model: ModelConfig
    """The model: the preset's fields, to be changed one by one; its vocab_size and max_length are settled by the two
    fields below."""
    vocab_size: int | None = None
    """The model's; None: as many as the tokenizer has tokens."""
    max_length: int | None = None
    """The model's; None: the context."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.objective is not None and self.objective not in OBJECTIVES:
            hint = nearest(self.objective, OBJECTIVES)
            raise UserError(f"--objective {cut(self.objective)}: there is no such objective ({hint}).")
        if (self.source is None) != (self.target is None):
            raise UserError("Pairs need both --source and --target.")

    @property
    @override
    def label(self) -> str:
        return self.preset

    def complete(self) -> CompleteConfig:
        """Fill in what was left open and depends on the model alone.

        Raises:
            UserError: the context and the model's max_length contradict each other, or the objective and the model.
        """
        objective = self.objective_of_model()
        context = self.context or self.max_length or min(self.model.max_length, _CONTEXT)
        model = self.model.replace(max_length=self.max_length or context)
        if model.context_length is not None and context > model.context_length:
            raise UserError(
                f"--context {context} is longer than the model's max_length of {model.max_length}: "
                "shorten the one or raise the other."
            )
        batch_size = self.batch_size or max(1, 1024 // context)
        if batch_size * context > BATCH_TOKENS:
            raise UserError(
                f"--batch-size {batch_size} and --context {context} make a batch of more than {BATCH_TOKENS:,} "
                "tokens: lower one of them."
            )
        smoothing = 0.1 if objective == "seq2seq" else 0.0
        chosen: dict[str, Any] = {
            "model": model,
            "objective": objective,
            "context": context,
            "batch_size": batch_size,
            "batch_tokens": self.batch_tokens or _PAIR_TOKENS,
            "label_smoothing": smoothing if self.label_smoothing is None else self.label_smoothing,
            "learning_rate": self.learning_rate or default_learning_rate(model, self.optimizer),
            "minutes": self.minutes if self.minutes or self.steps else MINUTES,
        }
        return CompleteConfig(**{**vars(self), **chosen})

    def objective_of_model(self) -> str:
        """The objective of the run, or else of the model: an encoder-decoder without pairs restores corrupted spans.

        Raises:
            UserError: the objective and the model contradict each other, or the objective and the data.
        """
        model = self.model
        if model.head.kind != "language_model":
            kind = model.head.kind
            raise UserError(f"model.head.kind: training from scratch needs a language_model head, not {quote(kind)}.")
        if model.is_encoder_decoder:
            default = "seq2seq" if self.source is not None else "span_corruption"
        else:
            default = "masked" if model.is_encoder_only else "causal"
        chosen, kind = self.objective or default, OBJECTIVES[default]
        if OBJECTIVES[chosen] != kind:
            raise UserError(f"--objective {chosen} trains {OBJECTIVES[chosen]}, and {self.preset} is {kind}.")
        if (chosen == "seq2seq") != (self.source is not None):
            pairs = "needs pairs: give --source and --target" if chosen == "seq2seq" else "has no use for --source"
            raise UserError(f"The objective {chosen} {pairs}.")
        return chosen


@dataclass(frozen=True, kw_only=True)
class CompleteConfig(TrainConfig, CompleteRunConfig):
    """A TrainConfig that leaves nothing open but the tokenizer."""

    objective: str = "causal"

    @property
    @override
    def tokens_per_step(self) -> int:
        return super().tokens_per_step if self.source is None else self.batch_tokens


def defaults(kind: type[RunConfig]) -> dict[str, Any]:
    """The default of each setting that has one; None is chosen to suit the model and the data."""
    return {field.name: field.default for field in fields(kind) if field.default is not MISSING}


_SERVES: dict[str, tuple[Callable[[TrainConfig], bool], str]] = {
    "document_masking": (lambda config: config.objective_of_model() == "causal", "--objective causal"),
    "whole_word_masking": (lambda config: config.objective_of_model() == "masked", "--objective masked"),
    "batch_tokens": (lambda config: config.source is not None, "pairs, of --source and --target"),
    "scheduler": (lambda config: config.source is None, "text, and not for pairs"),
    "zero_stage": (lambda config: config.engine == "deepspeed", "--engine deepspeed"),
    "decay": (lambda config: config.schedule == "wsd", "--schedule wsd; weights decay by --weight-decay"),
}
"""Settings that serve one kind of run, and would do nothing in another."""


def check_used(config: TrainConfig, given: Container[str]) -> None:
    """Raise UserError for a setting that was given and would do nothing in this run."""
    for field, (serves, purpose) in _SERVES.items():
        if field in given and not serves(config):
            raise UserError(f"{flag(field)} would do nothing here: it is for {purpose}.")


def _require(condition: bool, name: str, value: object, reason: str) -> None:
    if not condition:
        raise UserError(f"{flag(name)} {cut(str(value))} {reason}.")


def default_learning_rate(model: ModelConfig, optimizer: str = "adamw") -> float:
    """Inversely proportional to the width, as GPT-3's table has it (Brown et al. 2020, table 2.1), up to 4e-3.

    Muon's updates bear more (docs/measurements/quality.md). Post-norm models bear less (Xiong et al. 2020).
    """
    rate = min(1e-2, 2.5 / model.d_model) if optimizer == "muon" else min(4e-3, 0.5 / model.d_model)
    return rate if model.norm.placement == "pre" else rate / 4


def default_tokenizer(objective: str, characters: int) -> str:
    """A vocabulary that grows with the square root of the text (Heaps' law), as a power of two."""
    size = 2 ** round(math.log2(0.6 * math.sqrt(max(characters, 1))))
    kind = {"masked": "wordpiece", "span_corruption": "unigram"}.get(objective, "bpe")
    return f"{kind}:{min(max(size, 512), 32768)}"
