"""Layers whose parameters are spread over some processes, each of which computes with its part.

A parameter is a DTensor over the processes. Its module sees the local tensor, and computes as a narrower one would, by
the same code and kernels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ParallelStyle
from typing_extensions import override

from anyformer.blocks.head import LanguageModelHead
from anyformer.blocks.linear import Embedding
from anyformer.kernels.autocast import autocast_disabled, matmul_dtype
from anyformer.kernels.cross_entropy import WithGradients, in_chunks

SAME = Replicate()
_BYTES = 1 << 26
"""Size of the logits of a chunk of tokens in float32."""


def enter(x: Tensor, mesh: DeviceMesh) -> Tensor:
    """The tensor, whose gradient is the sum of the gradients of all processes."""
    return DTensor.from_local(x, mesh, [SAME], run_check=False).to_local(grad_placements=[Partial()])


def redistribute(x: Tensor, mesh: DeviceMesh, placement: Placement, wanted: Placement) -> Tensor:
    """This process's tensor of one that is spread in a way, as it is where that is spread in another."""
    return DTensor.from_local(x, mesh, [placement], run_check=False).redistribute(placements=[wanted]).to_local()


def leave(x: Tensor, mesh: DeviceMesh) -> Tensor:
    """The sum over all processes."""
    return redistribute(x, mesh, Partial(), SAME)


def gather(x: Tensor, mesh: DeviceMesh, dim: int, size: int, gradient: Placement = SAME) -> Tensor:
    """The parts of all processes one after the other in a dimension, which is of this size then.

    Args:
        gradient: how its gradients are: the same in all processes, or their sum is meant.
    """
    whole = torch.empty((*x.shape[:dim], size, *x.shape[dim + 1 :]), device="meta")
    shape, stride = whole.shape, whole.stride()
    part = DTensor.from_local(x.contiguous(), mesh, [Shard(dim)], run_check=False, shape=shape, stride=stride)
    return part.redistribute(placements=[SAME]).to_local(grad_placements=[gradient])


def own_part(x: Tensor, mesh: DeviceMesh, dim: int) -> Tensor:
    """The inverse of `gather`: this process's part."""
    return redistribute(x, mesh, SAME, Shard(dim))


@dataclass(frozen=True)
class Part:
    """A process's part in a parameter.

    Attributes:
        placement: how the parameter is spread.
        gradient: how the gradients of the local tensors are.
        view: the local tensor as its module sees it.
    """

    placement: Placement
    gradient: Placement
    view: Callable[[Tensor, DeviceMesh], Tensor] = lambda local, mesh: local


def own_rows(rows: int, mesh: DeviceMesh) -> slice:
    """This process's rows of so many, as `Shard(0)` has them."""
    each = -(-rows // mesh.size())
    return slice(each * mesh.get_local_rank(), min(rows, each * (mesh.get_local_rank() + 1)))


ROWS, COLUMNS = Part(Shard(0), Shard(0)), Part(Shard(1), Shard(1))
WHOLE = Part(Replicate(), Replicate())
"""Used for the same in each process."""
SUMMED = Part(Replicate(), Partial())
"""Used between `enter` and `leave`: each process has its share of the gradient."""
SLICED = Part(Replicate(), Partial(), lambda local, mesh: local[own_rows(len(local), mesh)])
"""A vector, so small that it is spread by use alone."""
DIVIDED = Part(Replicate(), Partial(), lambda local, mesh: local / mesh.size())
"""Added before `leave`, which adds it up again."""


class Parallel(nn.Module):
    """A module that sees its part of each parameter.

    Attributes:
        parts: by the name of the parameter, or the buffer.
    """

    parts: Mapping[str, Part]
    mesh: DeviceMesh

    def __getattr__(self, name: str) -> Any:
        value: Any = super().__getattr__(name)
        part = self.__dict__.get("parts", {}).get(name)
        if part is None or value is None:
            return value
        if name in self._buffers:
            return part.view(value, self.mesh)
        # While FSDP has sharded it as well, it is of both dimensions of the mesh.
        if not isinstance(value, DTensor) or value.device_mesh.ndim > 1:
            return value
        return part.view(value.to_local(grad_placements=[part.gradient]), self.mesh)


class WidthNorm(Parallel):
    """A norm over all heads, which are spread."""

    width: int

    def forward(self, x: Tensor) -> Tensor:
        """Normalize all heads, and go on with those of this process."""
        last = x.dim() - 1
        return own_part(super().forward(gather(x, self.mesh, last, self.width)), self.mesh, last)


def become(module: nn.Module, kind: type[nn.Module], **attributes: Any) -> None:
    """Let a module be of a class as well that goes before its own, and give it what that needs."""
    for name, value in attributes.items():
        setattr(module, name, value)
    module.__class__ = type(f"{kind.__name__}{type(module).__name__}", (kind, type(module)), {})


class Style(ParallelStyle):
    """How a module is spread: the class that it becomes, the parts in its parameters, and what else the class needs."""

    def __init__(self, kind: type[Parallel], parts: Mapping[str, Part], **attributes: Any) -> None:
        self.kind, self.parts, self.attributes = kind, parts, attributes
        self.spread: dict[nn.Parameter, nn.Parameter] = {}

    @override
    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        for name, parameter in [*module.named_parameters(recurse=False)]:
            if parameter not in self.spread:
                placement = self.parts[name].placement
                whole = distribute_tensor(parameter.detach(), device_mesh, [placement], src_data_rank=None)
                self.spread[parameter] = nn.Parameter(whole, requires_grad=parameter.requires_grad)
            module.register_parameter(name, self.spread[parameter])
        become(module, self.kind, parts=self.parts, mesh=device_mesh, **self.attributes)
        return module


class VocabularyEmbedding(Parallel, Embedding):
    """A table whose rows are spread: a process looks its own up, and the sum has all."""

    def forward(self, ids: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Look up the rows of the ids."""
        rows = own_rows(self.num_embeddings, self.mesh)
        is_own = (ids >= rows.start) & (ids < rows.stop)
        own = super().forward((ids - rows.start).where(is_own, 0))
        return leave(own.masked_fill(~is_own[..., None], 0.0), self.mesh)


class VocabularyHead(Parallel, LanguageModelHead):
    """A head each of whose processes computes the logits of some tokens of the vocabulary.

    No process holds all logits of a token: of each chunk of tokens the processes exchange the largest logit, the sum of
    the exponentials and the logit of the target (Shoeybi et al. 2019, Megatron-LM, section 3).

    Attributes:
        vocab_size: of all processes.
    """

    vocab_size: int

    def forward(self, x: Tensor, tied_weight: Any = None) -> Tensor:
        """Score every token of the vocabulary."""
        logits = super().forward(x, tied_weight)
        return gather(logits, self.mesh, logits.dim() - 1, self.vocab_size)

    def cross_entropy(self, x: Tensor, weight: Any, targets: Tensor, label_smoothing: float) -> Tensor:
        """The mean loss, without ever holding all logits; hidden states get the gradient of the own rows alone."""
        dtype, bias = matmul_dtype(x), self.bias
        operands = x, weight, bias
        grads = [
            torch.zeros_like(part, dtype=torch.float32)
            if torch.is_grad_enabled() and part is not None and part.requires_grad
            else None
            for part in operands
        ]

        def forward(x: Tensor) -> Tensor:
            return F.linear(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))

        def backward(logits: Tensor, rows: slice) -> None:
            if grads[0] is not None:
                grads[0][rows] = (logits @ weight.to(dtype)).float()
            if grads[1] is not None:
                grads[1] += logits.t() @ x[rows].to(dtype)
            if grads[2] is not None:
                grads[2] += logits.sum(dim=0, dtype=torch.float32)

        most_rows, compute = max(1, _BYTES // (4 * max(1, len(weight)))), self._loss_and_grad_
        with torch.no_grad(), autocast_disabled(x):
            loss, scale = in_chunks(x, targets, label_smoothing, forward, backward, most_rows, dtype, compute)
            scaled = [grad if grad is None or scale is None else grad * scale for grad in grads]
            typed = [g if g is None or p is None else g.to(p.dtype) for g, p in zip(scaled, operands, strict=True)]
        return WithGradients.apply(loss, typed, *operands)  # pyright: ignore[reportReturnType]

    def _loss_and_grad_(
        self,
        logits: Float[Tensor, "rows own_vocab"],
        targets: Int[Tensor, "rows 1"],
        label_smoothing: float,
        grad_scale: float | Float[Tensor, "rows 1"],
    ) -> Float[Tensor, " rows"]:
        """`kernels.cross_entropy.loss_and_grad_` of the logits of this process."""
        group, own = self.mesh.get_group(), own_rows(self.vocab_size, self.mesh)
        scores, index = logits.float(), targets - own.start
        is_own = (index >= 0) & (index < scores.shape[1])
        index = index.where(is_own, 0)
        largest = scores.amax(dim=1, keepdim=True)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group)
        shifted = scores - largest
        exponentials = shifted.exp()
        sums = torch.cat(
            (exponentials.sum(1, True), shifted.gather(1, index).where(is_own, 0.0), shifted.sum(1, True)), dim=1
        )
        dist.all_reduce(sums, group=group)
        total, right, mean = sums[:, :1], sums[:, 1], sums[:, 2] / self.vocab_size
        losses = total[:, 0].log() - (1 - label_smoothing) * right - label_smoothing * mean
        grad = exponentials.div_(total)
        if label_smoothing:
            grad -= label_smoothing / self.vocab_size
        grad.scatter_add_(1, index, is_own.to(grad) * (label_smoothing - 1))
        logits.copy_(grad.mul_(grad_scale))
        return losses

    def _transform(self, x: Tensor) -> Tensor:
        return enter(super()._transform(x), self.mesh)
