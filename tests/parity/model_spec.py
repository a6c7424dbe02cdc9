"""A Hugging Face model as data, and a batch for it.

A `ModelSpec` is what a failing proof prints: the class, the fields of its config and the seed of its weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
import transformers
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers.integrations import moe

# torch's product of all experts takes widths of 16 bytes only; without it there is one for each expert.
moe._can_use_grouped_mm = lambda *_: False

CONTEXT = 64
"""Positions of every drawn model whose positions are counted."""

KINDS = {
    **dict.fromkeys(("gpt2", "opt", "llama", "mistral", "qwen2", "qwen3", "gemma"), "decoder"),
    **dict.fromkeys(("gemma2", "gemma3_text", "olmo2", "olmo3", "smollm3"), "decoder"),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "mixtral", "qwen3_moe", "olmoe", "granitemoe"), "decoder"),
    **dict.fromkeys(("gpt_oss",), "decoder"),
    **dict.fromkeys(("gpt_neox", "phi", "phi3", "granite", "cohere", "falcon", "nanochat"), "decoder"),
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "electra", "albert", "mpnet"), "encoder"),
    **dict.fromkeys(("deberta-v2", "modernbert", "distilbert"), "encoder"),
    **dict.fromkeys(("t5", "mt5", "marian", "bart", "mbart", "pegasus", "m2m_100"), "seq2seq"),
}


@dataclass(frozen=True)
class ModelSpec:
    """A Hugging Face model that has not been built yet."""

    family: str
    architecture: str
    options: dict[str, Any]
    seed: int
    untie_head: bool = False
    """Give the head a matrix of its own after building: T5 v1.1, whose config class ties it in any case."""
    neighbor: int = 0
    """Which of the models whose weights differ from those of number 0 in the last bit."""

    @property
    def kind(self) -> str:
        """decoder, encoder or seq2seq."""
        kind = KINDS[self.family]
        # A T5 that classifies tokens is its encoder.
        return "encoder" if kind == "seq2seq" and "TokenClassification" in self.architecture else kind

    @property
    def classifies_texts(self) -> bool:
        """Whether it has an answer for each text."""
        return "SequenceClassification" in self.architecture

    @property
    def vocab_size(self) -> int:
        """Tokens that may be read (by the decoder, of an encoder-decoder) and answered."""
        return self.options.get("decoder_vocab_size") or self.options["vocab_size"]

    @property
    def has_head(self) -> bool:
        """Whether it has logits."""
        return any(word in self.architecture for word in ("For", "LMHead", "MTModel"))

    @property
    def has_language_head(self) -> bool:
        """Whether the logits are scores of tokens."""
        return self.has_head and not self.finds_replaced and "Classification" not in self.architecture

    @property
    def finds_replaced(self) -> bool:
        """Whether it says of each token if it was replaced: ELECTRA's discriminator."""
        return self.architecture == "ElectraForPreTraining"

    def as_text(self, ids: Tensor) -> Tensor:
        """The ids, [time], as a text whose end Hugging Face's classifiers find: they look for ids, we have the mask."""
        if not self.classifies_texts or self.kind == "encoder":
            return ids
        special: int = self.options["pad_token_id" if self.kind == "decoder" else "eos_token_id"]
        text = ids.masked_fill(ids == special, special + 1)
        if self.kind == "seq2seq":
            text[-1] = special
        return text

    @property
    def is_dynamic(self) -> bool:
        """Whether the rotary angles depend on the length of the text."""
        parameters: dict[str, Any] = self.options.get("rope_parameters") or {}
        kinds = (parameters, *(each for each in parameters.values() if isinstance(each, dict)))
        return any(each.get("rope_type") in ("dynamic", "longrope") for each in kinds)

    def neighbors(self) -> list[ModelSpec]:
        """This one and three whose rounding differs: luck may spare one model, but hardly all."""
        return [replace(self, neighbor=number) for number in range(4)]

    def build(self) -> PreTrainedModel:
        """The model, in eval mode, every weight random."""
        kind = getattr(transformers, self.architecture)
        model: PreTrainedModel = kind(kind.config_class(**self.options))
        if self.untie_head:
            head: Any = model.lm_head
            head.weight = nn.Parameter(torch.empty_like(head.weight))
        randomize(model, self.seed)
        if self.neighbor:
            generator = torch.Generator().manual_seed(self.neighbor)
            with torch.no_grad():
                for weight in filter(lambda weight: weight.requires_grad, model.parameters()):
                    towards = torch.randn(weight.shape, generator=generator).sign() * torch.inf
                    weight.copy_(weight.nextafter(towards))
        if self.finds_replaced:
            model.register_forward_hook(partial(_with_one_label, dims=3))
        elif self.classifies_texts and self.options["num_labels"] == 1:
            model.register_forward_hook(partial(_with_one_label, dims=2))
        return model.eval()


def _with_one_label(model: nn.Module, args: Any, output: Any, dims: int) -> Any:
    """The output with logits [..., labels] of so many dimensions, the last of which Hugging Face may leave out."""
    if output.logits.dim() < dims:
        output["logits"] = output.logits[..., None]
    return output


_DRAWN = ("final_logits_bias", "e_score_correction_bias")
"""Buffers that are drawn as weights are."""


def randomize(model: nn.Module, seed: int) -> None:
    """Draw every trained weight, norms and biases included, so that nothing hides by being zero or one."""
    generator = torch.Generator().manual_seed(seed)
    weights = dict(model.named_parameters())
    weights |= {name: buffer for name, buffer in model.named_buffers() if name.endswith(_DRAWN)}
    with torch.no_grad():
        for name, weight in weights.items():
            if isinstance(weight, nn.Parameter) and not weight.requires_grad:
                continue
            noise = torch.randn(weight.shape, generator=generator)
            if weight.dim() > 1 and weight.shape[0] > 1:
                weight.copy_(noise * (0.8 * weight.shape[-1] ** -0.5))
            elif ("norm" in name.lower() and name.endswith("weight")) or (".ln_" in name and name.endswith("weight")):
                weight.copy_(1 + 0.2 * noise)
            else:
                weight.copy_(0.2 * noise)


@dataclass(frozen=True)
class Inputs:
    """One batch for a drawn model."""

    tokens: Tensor
    source: Tensor | None = None
    segments: Tensor | None = None
    mask: Tensor | None = None
    source_mask: Tensor | None = None
    targets: Tensor | None = None

    @cached_property
    def ours(self) -> dict[str, Tensor | None]:
        """Arguments of our model."""
        return {
            "tokens": self.tokens,
            "source": self.source,
            "segments": self.segments,
            "mask": self.mask,
            "source_mask": self.source_mask,
            "targets": self.targets,
        }

    @cached_property
    def theirs(self) -> dict[str, Any]:
        """Arguments of Hugging Face's, without the labels."""
        if self.source is not None:
            given = {
                "input_ids": self.source,
                "attention_mask": _integers(self.source_mask),
                "decoder_input_ids": self.tokens,
                "decoder_attention_mask": _integers(self.mask),
            }
        else:
            given = {"input_ids": self.tokens, "attention_mask": _integers(self.mask), "token_type_ids": self.segments}
        return {name: value for name, value in given.items() if value is not None}


def _integers(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.long()


def ragged(lengths: list[int], side: str) -> Tensor:
    """The mask of texts of these lengths, padded on this side."""
    where = torch.arange(max(lengths))[None]
    wanted = torch.tensor(lengths)[:, None]
    return where < wanted if side == "right" else where >= max(lengths) - wanted


@st.composite
def draw_inputs(draw: st.DrawFn, drawn: ModelSpec) -> Inputs:
    """A batch of random ids (pad tokens among them), targets for every answer, and right padding now and then."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    batch = draw(st.integers(1, 3))
    time = draw(st.integers(2, 40 if drawn.kind == "decoder" else 24))

    def ids(vocab: int, length: int) -> Tensor:
        return torch.randint(vocab, (batch, length), generator=generator)

    def lengths(longest: int) -> list[int]:
        return [draw(st.integers(1, longest)) for _ in range(batch - 1)] + [longest]

    padded = draw(st.booleans())
    # Dynamic angles are those of the longest text of a batch there, and of each text here.
    has_mask = (drawn.kind != "decoder" or drawn.classifies_texts) and not drawn.is_dynamic
    mask = ragged(lengths(time), "right") if padded and has_mask else None
    tokens = ids(drawn.vocab_size, time)
    if drawn.classifies_texts:
        ends = [time] * batch if mask is None else mask.sum(dim=1).tolist()
        rest = drawn.options.get("pad_token_id", 0)
        rows = (drawn.as_text(row[:end]) for row, end in zip(tokens, ends, strict=True))
        tokens = pad_sequence(list(rows), batch_first=True, padding_value=rest)
    source = source_mask = segments = None
    if drawn.kind == "seq2seq" and not drawn.classifies_texts:
        source = ids(drawn.options["vocab_size"], draw(st.integers(1, 24)))
        source_mask = ragged(lengths(source.shape[1]), "right") if padded else None
    if drawn.options.get("type_vocab_size", 1) > 1 and draw(st.booleans()):
        segments = torch.randint(drawn.options["type_vocab_size"], (batch, time), generator=generator)
    return Inputs(tokens, source, segments, mask, source_mask, _targets(drawn, tokens, mask, generator))


def _targets(drawn: ModelSpec, tokens: Tensor, mask: Tensor | None, generator: torch.Generator) -> Tensor | None:
    if not drawn.has_head:
        return None
    labels = drawn.options.get("num_labels", 2)
    if drawn.classifies_texts:
        texts, problem = len(tokens), drawn.options.get("problem_type")
        if problem == "multi_label_classification":
            return torch.randint(2, (texts, labels), generator=generator).float()
        if problem == "regression" or labels == 1:
            return torch.randn((texts,) if labels == 1 else (texts, labels), generator=generator)
        return torch.randint(labels, (texts,), generator=generator)
    classes = drawn.vocab_size if drawn.has_language_head else labels
    if drawn.kind == "decoder" and drawn.has_language_head:
        # Hugging Face's causal models shift the labels themselves, so the last position answers nothing.
        targets = torch.cat((tokens[:, 1:], torch.full_like(tokens[:, :1], -100)), dim=1)
    else:
        targets = torch.randint(classes, tokens.shape, generator=generator)
    ignored = torch.rand(tokens.shape, generator=generator) < (0.0 if drawn.finds_replaced else 0.2)
    ignored[:, 0] = False
    if mask is not None:
        ignored |= ~mask
    return targets.masked_fill(ignored, -100)


def labels(drawn: ModelSpec, inputs: Inputs) -> Tensor | None:
    """The targets in Hugging Face's convention: the same, or for a causal model one place to the right."""
    if drawn.kind != "decoder" or not drawn.has_language_head or inputs.targets is None:
        return inputs.targets
    return torch.cat((torch.full_like(inputs.targets[:, :1], -100), inputs.targets[:, :-1]), dim=1)
