"""Everything that a training run needs to know."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import tyro

from anyformer.config import ModelConfig
from anyformer.errors import UserError, nearest
from anyformer.families import PRESETS

DEFAULT_PRESET = "llama-nano"
MINUTES = 2.0
"""How long a run takes that was given neither steps nor minutes."""

_CONTEXT = 256
_TOKENS_PER_BATCH = 1024
_DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a model from scratch on your own text.

    Decoder-only models learn to predict the next token, encoders to fill in masked ones. What is left open is chosen
    to suit the model and the data, printed, and written to config.yaml in the run directory, which repeats the run.
    """

    preset: Annotated[str, tyro.conf.Suppress] = DEFAULT_PRESET
    data: tuple[Path, ...] = ()
    """Files and folders of text (.txt .md .py .jsonl, also .gz); none: the standard library of the running Python."""
    validation: tuple[Path, ...] = ()
    """Text to validate on; none: a tenth of the data is held out."""
    tokenizer: str | None = None
    """char, bpe:N, wordpiece:N or unigram:N to train one of N tokens, or the path of one; none: bpe for decoders,
    wordpiece for encoders, N to suit the data."""
    context: int | None = None
    """Tokens that the model reads at a time, and its max_length; none: the model's own max_length, 256 at most."""
    batch_size: int | None = None
    """Texts in a batch; none: as many as have about 1024 tokens together."""
    steps: int | None = None
    """Batches to train on."""
    minutes: float | None = None
    """How long the run may take in all, from reading the data to the sample, instead of --steps; if neither is given,
    2. Training gets at least half of it, however long the data takes to read."""
    learning_rate: float | None = None
    """Its peak, after which it falls along a cosine to a tenth; none: chosen by the model's width."""
    warmup: float = 0.05
    """Share of the run in which the learning rate rises to its peak."""
    weight_decay: float = 0.1
    """AdamW's decay of matrices; vectors are not decayed."""
    beta2: float = 0.99
    """AdamW's memory of squared gradients; large batches are content with 0.95."""
    clip: float = 1.0
    """Longest gradient: longer ones are shortened to it."""
    evaluate_every: int | None = None
    """Steps between evaluations, each of which saves the model as well; none: before and after training only."""
    log_every: int = 10
    """Steps between two lines of metrics.jsonl."""
    seed: int = 0
    """Decides the first weights, the order of the data, and dropout."""
    name: str | None = None
    """Name of the run directory; none: the preset's with a number."""
    runs: Path = Path("runs")
    """Where run directories are made."""
    device: str | None = None
    """cpu, cuda, mps ...; none: an accelerator if there is one."""
    dtype: str | None = None
    """float32 or bfloat16, of the products (weights are always kept in float32); none: whichever is faster here."""
    model: ModelConfig
    """The model: the preset's fields, to be changed one by one. vocab_size follows the tokenizer and max_length the
    context unless they are given."""

    def __post_init__(self) -> None:
        for name in ("context", "batch_size", "steps", "evaluate_every", "log_every"):
            value: int | None = getattr(self, name)
            _require(value is None or value >= (2 if name == "context" else 1), name, value, "is too small")
        for name in ("minutes", "learning_rate", "clip"):
            rate: float | None = getattr(self, name)
            _require(rate is None or 0 < rate < float("inf"), name, rate, "must be positive")
        _require(0 <= self.warmup < 1, "warmup", self.warmup, "is a share of the run, in [0, 1)")
        _require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "can't be negative")
        _require(0 < self.beta2 < 1, "beta2", self.beta2, "must lie between 0 and 1")
        _require(self.seed >= 0, "seed", self.seed, "can't be negative")
        if self.steps is not None and self.minutes is not None:
            raise UserError("A run ends after --steps or after --minutes: give one of the two.")
        if self.dtype is not None and self.dtype not in _DTYPES:
            raise UserError(f"There is no training in dtype {self.dtype!r} ({nearest(self.dtype, _DTYPES)}).")
        if self.name is not None and (Path(self.name).name != self.name or self.name in (".", "..")):
            raise UserError(f"--name {self.name!r} must be the name of a folder, without a path (see --runs).")

    def complete(self, given: frozenset[str]) -> CompleteConfig:
        """Fill in what was left open and depends on the model alone.

        Args:
            given: the fields of the model that the user has set, which nothing may change.

        Raises:
            UserError: the context and the model's max_length contradict each other.
        """
        model = self.model
        limit = model.max_length if "max_length" in given else min(model.max_length, _CONTEXT)
        context = self.context or limit
        if "max_length" not in given:
            model = model.replace(max_length=context)
        if model.context_length is not None and context > model.context_length:
            raise UserError(
                f"--context {context} is longer than the model's max_length of {model.max_length}: "
                "shorten the one or raise the other."
            )
        chosen: dict[str, Any] = {
            "model": model,
            "context": context,
            "batch_size": self.batch_size or max(1, _TOKENS_PER_BATCH // context),
            "learning_rate": self.learning_rate or default_learning_rate(model),
            "minutes": self.minutes if self.minutes or self.steps else MINUTES,
        }
        return CompleteConfig(**{**{field.name: getattr(self, field.name) for field in fields(self)}, **chosen})


@dataclass(frozen=True, kw_only=True)
class CompleteConfig(TrainConfig):
    """A TrainConfig that leaves nothing open but the tokenizer."""

    context: int = _CONTEXT
    batch_size: int = 1
    learning_rate: float = 1e-3


def default_learning_rate(model: ModelConfig) -> float:
    """Inversely proportional to the width, as GPT-3's table has it (Brown et al. 2020, table 2.1), up to 4e-3.

    Post-norm models bear less (Xiong et al. 2020).
    """
    rate = min(4e-3, 0.5 / model.d_model)
    return rate if model.norm.placement == "pre" else rate / 4


def default_tokenizer(model: ModelConfig, characters: int) -> str:
    """A vocabulary that grows with the square root of the text (Heaps' law), as a power of two."""
    size = 2 ** round(math.log2(0.6 * math.sqrt(max(characters, 1))))
    size = min(max(size, 512), 32768)
    return f"{'wordpiece' if model.is_encoder_only else 'bpe'}:{size}"


def objective_name(model: ModelConfig, preset: str) -> str:
    """What this model is trained to do: `causal` or `masked`.

    Raises:
        UserError: it is an encoder-decoder, or has no language-model head.
    """
    if model.is_encoder_decoder:
        ready = sorted(name for name, config in PRESETS.items() if not config.is_encoder_decoder)
        raise UserError(
            f"{preset} is an encoder-decoder, and training one (span corruption, sequence to sequence) isn't "
            f"available yet: choose a decoder-only or an encoder-only preset, such as {', '.join(ready)}."
        )
    if model.head.kind != "language_model":
        raise UserError(f"model.head.kind: training from scratch needs a language_model head, not {model.head.kind!r}.")
    return "causal" if model.is_decoder_only else "masked"


def _require(condition: bool, name: str, value: object, reason: str) -> None:
    if not condition:
        raise UserError(f"--{name.replace('_', '-')} {value} {reason}.")
