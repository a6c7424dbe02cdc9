"""The head, the pooling, the initialization and the special tokens of a model, as data."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import mode
from typing import Annotated, Literal

from typing_extensions import override

from anyformer.config.types import Count, Factor, Rate, Softcap
from anyformer.errors import UserError, nearest, quote
from anyformer.schema import Checked, Rule

HeadKind = Literal["none", "language_model", "classification", "token_classification"]
"""Kinds of heads, see `HeadConfig`."""
ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
"""Losses of a classifier, see `HeadConfig`."""


@dataclass(frozen=True, kw_only=True)
class HeadConfig(Checked, part="head"):
    """From hidden states to logits."""

    kind: HeadKind = "language_model"
    """none: hidden states only; language_model: logits over the vocabulary (next token, or the masked one);
    classification: one answer a sequence; token_classification: one a token."""
    transform: str | None = None
    """An activation name; a dense layer, it and a norm come before the logits over the vocabulary (BERT), or before
    those over labels, after pooling (ModernBERT)."""
    transform_norm: bool = True
    """token_classification: the transform ends with the norm (it does not in ELECTRA's discriminator)."""
    transform_bias: bool = True
    """A bias of its dense layer."""
    bias: Literal["none", "learned", "fixed"] = "none"
    """language_model: a bias over the vocabulary; fixed: stored and added but not trained (Marian, BART)."""
    scaled: bool = False
    """language_model: divide the hidden states by sqrt(d_model) (T5 v1.0)."""
    scale: Factor = 1.0
    """language_model: factor on the hidden states (Cohere's logit_scale, the inverse of Granite's logits_scaling)."""
    softcap: Softcap | None = None
    """language_model: bound on the logits, ``softcap * tanh(logits / softcap)`` (Gemma 2, section 2)."""
    pooling: Literal["first", "last", "mean"] = "first"
    """classification: the vector of the text, that of its first token (BERT) or its last (decoders, BART), or the mean
    of all."""
    pooler: str | None = None
    """none, classification: an activation name; a dense layer and it on that vector (BERT's pooler)."""
    labels: Count = 2
    """classification, token_classification: number of labels."""
    label_names: tuple[str, ...] = ()
    """Their names, `id2label` in config.json; empty: LABEL_0, LABEL_1 ..."""
    label_bias: bool = True
    """A bias over the labels (Hugging Face's decoders that classify texts have none)."""
    problem_type: ProblemType | None = None
    """classification: one label is right, or any number of them, or each is a number; None: a regression if there is
    one label, and otherwise as the targets are (see `anyformer.blocks.head.loss`). token_classification: None, or
    multi_label_classification of a single label, which a token has or not (ELECTRA's discriminator)."""
    dropout: Rate = 0.0
    """Dropout before the classifier."""

    @override
    def _faults(self) -> Iterator[str]:
        if len(self.label_names) not in (0, self.labels):
            yield f"label_names: {len(self.label_names)} names don't fit {self.labels} labels"
        if len({*self.label_names}) < len(self.label_names):
            yield f"label_names: {quote(mode(self.label_names))} is the name of more than one label"
        is_binary = self.kind == "token_classification" and self.problem_type == "multi_label_classification"
        if self.problem_type is not None and self.kind != "classification" and not is_binary:
            yield f"problem_type: only a classification head has one, not {self.kind}"
        if is_binary and self.labels != 1:
            yield f"problem_type: a head that labels tokens has one label with it, not {self.labels}"
        if self.problem_type == "single_label_classification" and self.labels == 1:
            yield "problem_type: of one label alone none can be chosen: take two labels, or regression"


@dataclass(frozen=True, kw_only=True)
class PoolingConfig(Checked, part="pooling"):
    """Pooling, by which `anyformer.embed` makes one vector of a text (the pooling files of sentence-transformers)."""

    kind: Literal["mean", "first", "last", "max"] = "mean"
    dense: Annotated[tuple[Count, ...], Rule(lambda widths: len(widths) <= 8, "has at most 8 layers")] = ()
    """Widths of linear layers on the pooled vector (EmbeddingGemma: 3,072 and 768)."""
    dense_bias: bool = False
    """Their biases (LaBSE)."""
    dense_activation: str | None = None
    """The name of an activation after each of them (LaBSE: tanh); None: none."""
    normalize: bool = False
    """Divide the vector by its length."""
    max_tokens: int | None = None
    """Texts are cut to this many tokens; None: to the model's `max_length`."""
    prompt_names: tuple[str, ...] = ()
    """Names of the words that may be put before a text, such as query and document (E5, EmbeddingGemma)."""
    prompts: tuple[str, ...] = ()
    """The words, in the order of their names."""
    default_prompt: str | None = None
    """The name of those that are put before every text; None: none."""

    def prompt(self, name: str | None = None) -> str:
        """The words of that name, or of the default one. Raises UserError where there are none."""
        name = self.default_prompt if name is None else name
        known = dict(zip(self.prompt_names, self.prompts, strict=True))
        if name is not None and name not in known:
            hint = nearest(name, known) if known else "it has none"
            raise UserError(f"The model has no prompt {quote(name)} ({hint}).")
        return "" if name is None else known[name]

    @override
    def _faults(self) -> Iterator[str]:
        if len(self.prompt_names) != len(self.prompts):
            yield f"prompts: has {len(self.prompts)} for {len(self.prompt_names)} prompt_names"
        elif self.default_prompt not in (None, *self.prompt_names):
            yield f"default_prompt: {quote(self.default_prompt)} is none of prompt_names"


@dataclass(frozen=True, kw_only=True)
class InitConfig(Checked, part="init"):
    """Initialization of fresh weights; docs/initialization.md gives each family's source."""

    kind: str = "normal"
    """A name in `anyformer.blocks.initialization.INITIALIZERS`: normal, truncated_normal, xavier or t5."""
    std: Annotated[float, Rule(lambda std: 0 <= std < math.inf, "is a standard deviation, from 0 on")] = 0.02
    scale_residual: bool = False
    """Divide the std of the projections that write to the residual stream by sqrt(2 * layers) (GPT-2)."""


@dataclass(frozen=True, kw_only=True)
class SpecialTokens(Checked, part="special_tokens"):
    """Ids that generation and batching need. They describe the tokenizer that the weights were trained with."""

    bos: int | None = None
    eos: Annotated[tuple[int, ...], Rule(lambda ids: len(ids) <= 1000, "has at most 1000 tokens")] = ()
    """Generation stops at any of these."""
    pad: int | None = None
    decoder_start: int | None = None
    """Encoder-decoders: the first token that the decoder reads."""
