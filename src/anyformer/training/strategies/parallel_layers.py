"""Layers whose parameters are spread over some processes, each of which computes with its part.

A parameter is a DTensor over the processes. Its module sees the local tensor, and computes as a narrower one would, by
the same code and kernels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ParallelStyle
from typing_extensions import override

from anyformer.blocks.experts import Experts

_WHOLE = Replicate()


def enter(x: Tensor, mesh: DeviceMesh) -> Tensor:
    """The tensor, whose gradient is the sum of the gradients of all processes."""
    return DTensor.from_local(x, mesh, [Replicate()], run_check=False).to_local(grad_placements=[Partial()])


def leave(x: Tensor, mesh: DeviceMesh) -> Tensor:
    """The sum over all processes."""
    return DTensor.from_local(x, mesh, [Partial()], run_check=False).redistribute(placements=[Replicate()]).to_local()


def gather(x: Tensor, mesh: DeviceMesh, dim: int, size: int, gradient: Placement = _WHOLE) -> Tensor:
    """The parts of all processes one after the other in a dimension, which is of this size then.

    Args:
        gradient: how its gradients are: the same in all processes, or their sum is meant.
    """
    shape = [*x.shape]
    shape[dim] = size
    strides = [1]
    for length in reversed(shape[1:]):
        strides.insert(0, strides[0] * length)
    part = DTensor.from_local(
        x.contiguous(), mesh, [Shard(dim)], run_check=False, shape=torch.Size(shape), stride=tuple(strides)
    )
    return part.redistribute(placements=[_WHOLE]).to_local(grad_placements=[gradient])


def own_part(x: Tensor, mesh: DeviceMesh, dim: int) -> Tensor:
    """The inverse of `gather`: this process's part."""
    whole = DTensor.from_local(x, mesh, [Replicate()], run_check=False)
    return whole.redistribute(placements=[Shard(dim)]).to_local()


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


class Entrance:
    """`enter` for layers that read the same tensor, whose gradients are summed once.

    Args:
        parent: after its forward, or once as many layers have read a tensor as there are, it is let go.
        readers: the number of layers.
    """

    def __init__(self, mesh: DeviceMesh, parent: nn.Module, readers: int) -> None:
        self.mesh, self.readers = mesh, readers
        self._latest: tuple[Tensor, Tensor] | None = None
        self._reads = 0
        parent.register_forward_hook(self._forget)

    def __call__(self, x: Tensor) -> Tensor:
        """`enter`."""
        if self._latest is None or self._latest[0] is not x:
            self._latest, self._reads = (x, enter(x, self.mesh)), 0
        entered = self._latest[1]
        self._reads += 1
        if self._reads == self.readers:
            self._latest = None
        return entered

    def _forget(self, *_: Any) -> None:
        self._latest = None


class Column(Parallel):
    """A linear layer whose outputs are spread."""

    entrance: Entrance

    def forward(self, x: Tensor, *rest: Any) -> Tensor:
        """Compute this process's outputs."""
        return super().forward(self.entrance(x), *rest)


class Row(Parallel):
    """A linear layer whose inputs are spread."""

    def forward(self, x: Tensor, *rest: Any) -> Tensor:
        """Compute all outputs of this process's inputs."""
        return leave(super().forward(x, *rest), self.mesh)


class Fork(Parallel):
    """A layer whose outputs go different ways in the processes."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute all outputs."""
        return enter(super().forward(x), self.mesh)


class SpreadExperts(Parallel, Experts):
    """A mixture of experts of which each process has some."""

    def network(self, x: Tensor, *ends: Tensor) -> Tensor:
        """Compute the rows of this process's experts, of rows that are sorted by expert."""
        own, (last,) = own_rows(self.count, self.mesh), ends
        begin, end = F.pad(last, (1, 0))[[own.start, own.stop]].tolist()
        out = super().network(enter(x, self.mesh)[begin:end], last[own] - begin)
        return leave(F.pad(out, (0, 0, begin, len(x) - end)), self.mesh)


class WidthNorm(Parallel):
    """A norm over all heads, which are spread."""

    width: int

    def forward(self, x: Tensor) -> Tensor:
        """Normalize all heads, and go on with those of this process."""
        last = x.dim() - 1
        return own_part(super().forward(gather(x, self.mesh, last, self.width)), self.mesh, last)


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
        for name, value in {"parts": self.parts, "mesh": device_mesh, **self.attributes}.items():
            setattr(module, name, value)
        module.__class__ = type(f"{self.kind.__name__}{type(module).__name__}", (self.kind, type(module)), {})
        return module
