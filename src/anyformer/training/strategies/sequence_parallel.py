"""Sequence parallelism: the tokens of the residual stream are spread over some processes (Korthikanti et al. 2022,
Reducing Activation Recomputation in Large Transformer Models, section 4.2.2).

They are the processes that the matrices of each layer are spread over. Where a layer begins all tokens are gathered,
and where it ends its sums are scattered; norms, dropout and what the backward pass needs are of a process's own tokens.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Shard
from typing_extensions import override

from anyformer.blocks.attention import MultiHeadAttention
from anyformer.blocks.experts import Experts
from anyformer.blocks.kv_cache import KeysValues
from anyformer.blocks.linear import Dropout
from anyformer.blocks.pooling import select
from anyformer.blocks.position import DisentangledPosition
from anyformer.blocks.stack import Stack
from anyformer.kernels import RelativeVectors
from anyformer.kernels.autocast import matmul_dtype
from anyformer.training.strategies.parallel_layers import SAME, Parallel, enter, gather, leave, own_part, own_rows


class Tokens:
    """All tokens in each process: what a layer that is spread reads, and what its processes computed, summed."""

    def __init__(self, mesh: DeviceMesh) -> None:
        self.mesh = mesh

    def enter(self, x: Tensor) -> Tensor:
        """The input of a layer, whose gradients are summed."""
        return enter(x, self.mesh)

    def leave(self, x: Tensor) -> Tensor:
        """The sum of the outputs."""
        return leave(x, self.mesh)


class OwnTokens(Tokens):
    """The residual stream of a stack, [1, own tokens, d_model]: the rows of a batch one after the other, cut."""

    shape = torch.Size((0, 0))

    def begin(self, x: Float[Tensor, "batch time d_model"]) -> Float[Tensor, "1 own d_model"]:
        """This process's tokens of a batch."""
        self.shape = x.shape[:2]
        return self.own(x)

    def own(self, x: Float[Tensor, "batch time d_model"]) -> Float[Tensor, "1 own d_model"]:
        """This process's tokens, of vectors that are the same in all."""
        return own_part(x.flatten(0, 1), self.mesh, 0)[None]

    def all(self, x: Float[Tensor, "1 own width"], gradient: Placement = SAME) -> Float[Tensor, "batch time width"]:
        """All tokens; see `gather` for their gradients."""
        return gather(x[0], self.mesh, 0, self.shape.numel(), gradient).unflatten(0, self.shape)

    @override
    def enter(self, x: Tensor) -> Tensor:
        return self.all(x.to(matmul_dtype(x)), Partial())

    @override
    def leave(self, x: Tensor) -> Tensor:
        summed = DTensor.from_local(x.flatten(0, 1), self.mesh, [Partial()], run_check=False)
        return summed.redistribute(placements=[Shard(0)]).to_local()[None]


class SpreadLayer(Parallel):
    """A feed-forward block or self-attention whose matrices are spread."""

    stream: Tokens

    def forward(self, x: Tensor, *others: Any, **options: Any) -> Tensor:
        """Compute this process's heads, or inner activations, and sum up."""
        others = tuple(None if other is x else other for other in others)  # self-attention's keys are of x, too
        return self.stream.leave(super().forward(self.stream.enter(x), *others, **options))


class SpreadCrossAttention(SpreadLayer, MultiHeadAttention):
    """Attention to an encoder's output, which all processes have."""

    @override
    def keys_values(self, states: Tensor) -> KeysValues:
        return super().keys_values(enter(states, self.mesh))


class SpreadLatentAttention(Parallel):
    """Latent attention, whose processes make the latents of their own tokens."""

    stream: Tokens

    def forward(self, *inputs: Any, **options: Any) -> Tensor:
        """Compute this process's heads, and sum up."""
        return self.stream.leave(super().forward(*inputs, **options))


class Gathered(Parallel):
    """A layer of own tokens that layers which are spread follow."""

    stream: Tokens

    def forward(self, x: Tensor) -> Tensor:
        """Compute the outputs of own tokens, and gather those of all."""
        return self.stream.enter(super().forward(x))


class SpreadExperts(Parallel, Experts):
    """A mixture of experts of which each process has some; each chooses those of all tokens."""

    stream: OwnTokens

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.stream.own(super().forward(self.stream.all(x)))

    @override
    def network(self, x: Tensor, *ends: Tensor) -> Tensor:
        """Compute the rows of this process's experts, of rows that are sorted by expert."""
        own, (last,) = own_rows(self.count, self.mesh), ends
        begin, end = F.pad(last, (1, 0))[[own.start, own.stop]].tolist()
        out = super().network(enter(x, self.mesh)[begin:end], last[own] - begin)
        return leave(F.pad(out, (0, 0, begin, len(x) - end)), self.mesh)


class SpreadPosition(Parallel, DisentangledPosition):
    """Vectors of relative positions, which heads that are spread are compared with."""

    @override
    def relative_vectors(self, queries: Tensor, keys: Tensor) -> RelativeVectors:
        relative = super().relative_vectors(queries, keys)
        return relative._replace(vectors=enter(relative.vectors, self.mesh))


class SequenceDropout(Parallel, Dropout):
    """Dropout of own tokens. Each process draws for all of them: so they go on drawing the same numbers."""

    stream: OwnTokens

    @override
    def forward(self, x: Tensor) -> Tensor:
        if self.rate == 0.0:
            return x
        kept = super().forward(x.new_ones((*self.stream.shape, x.shape[-1]))) != 0.0
        return x.where(self.stream.own(kept), 0.0) / (1.0 - self.p)


class SequenceFinalNorm(Parallel):
    """The last norm of a stack, after which each process has all tokens."""

    stream: OwnTokens

    def forward(self, x: Tensor) -> Tensor:
        """Normalize own tokens."""
        return self.stream.all(super().forward(x))


class SequenceStack(Parallel, Stack):
    """A stack whose residual stream is spread by tokens."""

    stream: OwnTokens

    @override
    def forward(self, *inputs: Any, query_index: Tensor | None = None, **options: Any) -> Tensor:
        return select(super().forward(*inputs, **options), query_index)

    @override
    def embed(self, *inputs: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.stream.begin(super().embed(*inputs))
