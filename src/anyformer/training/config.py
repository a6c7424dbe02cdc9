"""Settings of training from scratch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

from typing_extensions import override

from anyformer.config import ModelConfig
from anyformer.errors import UserError, cut, nearest, quote
from anyformer.spec import DEFAULT_PRESET
from anyformer.training.run_config import BATCH_TOKENS, DATA, OBJECTIVE, CompleteRunConfig, RunConfig

MINUTES = 2.0
"""How long a run takes that was given neither steps nor minutes."""

OBJECTIVES = {
    "causal": "a decoder-only model",
    "masked": "an encoder-only model",
    "span_corruption": "an encoder-decoder",
    "seq2seq": "an encoder-decoder",
}
"""Models that each objective trains."""

_CONTEXT = 256
_PAIR_TOKENS = 4096


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
            kind, fitting = "an encoder-decoder", "seq2seq" if self.source is not None else "span_corruption"
        elif model.is_encoder_only:
            kind, fitting = "an encoder-only model", "masked"
        else:
            kind, fitting = "a decoder-only model", "causal"
        chosen = self.objective or fitting
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
    context: int = _CONTEXT
    batch_size: int = 1
    batch_tokens: int = _PAIR_TOKENS
    label_smoothing: float = 0.0
    learning_rate: float = 1e-3


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
