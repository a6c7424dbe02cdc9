"""Models that are spread over processes (DTensors, as FSDP2 makes of weights), and ordinary ones.

torch.distributed is imported for the former alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar, cast

from torch import Tensor, nn

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """The processes that a model is spread over, all of which call the same methods in the same order."""

    rank: int = 0
    size: int = 1

    def broadcast(self, value: T) -> T:
        """The value that process 0 has."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def wait(self) -> None:
        """Wait until all processes have come here."""
        if self.size > 1:
            import torch.distributed as dist

            dist.barrier()


def processes_of(model: nn.Module) -> Processes:
    """The processes that hold a share each of a model's weights; one alone for an ordinary model."""
    if not any(hasattr(parameter, "full_tensor") for parameter in model.parameters()):
        return Processes()
    import torch.distributed as dist

    return Processes(dist.get_rank(), dist.get_world_size())


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, in every process; where it is spread, all of them call this."""
    return cast("Any", tensor).full_tensor() if hasattr(tensor, "full_tensor") else tensor
