"""Context parallelism: each sequence is spread over some processes, which gather its keys and values.

A process computes its stretch of the tokens, and of the targets: activations, gradients and logits are of that alone.
In each attention the keys and values of all stretches are gathered (Grattafiori et al. 2024, The Llama 3 Herd of
Models, section 3.3.2); in the backward pass their gradients are summed and go back to where they came from. Keys and
values are narrow beside the rest, and the scores of a stretch are of any mask: causal, windows, biases, padding.
"""

import dataclasses
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Partial
from typing_extensions import override

from anyformer.blocks.attention import MultiHeadAttention
from anyformer.blocks.block import TransformerBlock
from anyformer.blocks.kv_cache import KeysValues
from anyformer.blocks.stack import Positions, Stack
from anyformer.config import ModelConfig
from anyformer.data.batch import IGNORED, Batch
from anyformer.errors import UserError
from anyformer.model import Transformer
from anyformer.training.strategies.parallel_layers import become, gather

_SHORTEST = 2
"""Tokens of a stretch at least: a single query is taken for the newest token, which sees all."""


def stretch(batch: Batch, index: int, count: int) -> Batch:
    """The stretch of this index of the sequences of a batch, of as many of one length, the last of them padded."""
    if batch.documents is not None:
        raise UserError(
            "--context-parallel reads a row as one text, and these have several: leave --document-masking out."
        )
    names = ("tokens", "mask", "segments", "targets", "source", "source_mask")
    arrays: dict[str, Any] = {name: getattr(batch, name) for name in names if getattr(batch, name) is not None}
    for name, mask in (("tokens", "mask"), ("source", "source_mask")):
        if name in arrays and mask not in arrays and _lacking(arrays[name], count):
            arrays[mask] = np.ones(arrays[name].shape, dtype=bool)
    for name, array in arrays.items():
        filler = IGNORED if name == "targets" else 0
        padded = np.pad(array, ((0, 0), (0, _lacking(array, count))), constant_values=filler)
        arrays[name] = np.split(padded, count, axis=1)[index]
    return dataclasses.replace(batch, **arrays)


def make_context_parallel(model: Transformer, mesh: DeviceMesh) -> None:
    """Let a model read stretches of sequences, one in each process of a mesh of one dimension; in place.

    Raises:
        UserError: the model can't.
    """
    check_model(model.config)
    for module in [*model.modules()]:
        if isinstance(module, Stack):
            become(module, ContextStack, context=mesh)
        elif isinstance(module, TransformerBlock):
            become(module.attention, ContextAttention, context=mesh)
            if module.cross_attention is not None:
                become(module.cross_attention, ContextCrossAttention, context=mesh)


def check_model(config: ModelConfig) -> None:
    """Raise UserError for a model that can't read stretches of sequences."""
    if config.head.kind != "language_model":
        raise UserError(
            f"--context-parallel trains language models, and this one's head.kind is {config.head.kind}: leave it out."
        )
    if config.embedding.ngrams > 1:
        raise UserError("--context-parallel doesn't embed n-grams, which embedding.ngrams asks for: leave one out.")


class _InContext(nn.Module):
    """A module that sees other stretches of its sequences.

    Attributes:
        context: the processes that have them.
    """

    context: DeviceMesh

    def whole(self, x: Tensor, dim: int) -> Tensor:
        """The stretches of all processes one after the other; their gradients are summed."""
        return gather(x, self.context, dim, x.shape[dim] * self.context.size(), Partial())


class ContextAttention(_InContext):
    """Attention from the tokens of a stretch to those of all."""

    def project(self, *inputs: Any, **options: Any) -> tuple[Tensor, ...]:
        """Make own queries, and all keys and values, or the latents that latent attention has in their place."""
        query, *others = cast("Any", super()).project(*inputs, **options)
        return query, *(self.whole(each, 2) for each in others)


class ContextCrossAttention(_InContext, MultiHeadAttention):
    """Attention from the tokens of a stretch to those of all stretches of the source."""

    @override
    def keys_values(self, states: Tensor) -> KeysValues:
        return KeysValues(*(self.whole(each, 2) for each in super().keys_values(states)))


class ContextStack(_InContext, Stack):
    """A stack that reads a stretch of each sequence."""

    @override
    def forward(self, *inputs: Any, source_mask: Tensor | None = None, **options: Any) -> Tensor:
        return super().forward(*inputs, source_mask=self._whole_mask(source_mask), **options)

    @override
    def positions(self, tokens: Tensor, mask: Tensor | None, *_: Any, **__: Any) -> Positions:  # pyright: ignore[reportIncompatibleMethodOverride]
        time, index = tokens.shape[1], self.context.get_local_rank()
        own = slice(time * index, time * (index + 1))
        keys = torch.arange(time * self.context.size(), device=tokens.device)[None]
        mask = counted = self._whole_mask(mask)
        if self.skipped is not None:
            real = self.whole(tokens, 1) != self.skipped
            counted = real if mask is None else mask & real
        encoded = keys if counted is None else counted.cumsum(dim=1) * counted - 1
        return Positions(keys[:, own], keys, encoded[:, own], encoded.amax(dim=1, keepdim=True) + 1, mask)

    def _whole_mask(self, mask: Tensor | None) -> Tensor | None:
        return None if mask is None else self.whole(mask.to(torch.uint8), 1).bool()


def _lacking(array: Any, count: int) -> int:
    """Tokens that the rows lack for so many stretches of one length."""
    length: int = array.shape[1]
    return max(_SHORTEST, -(-length // count)) * count - length
