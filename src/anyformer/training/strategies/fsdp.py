"""A shard of everything on each process: PyTorch's FSDP2 (`fully_shard`; Zhao et al. 2023, PyTorch FSDP).

Weights, gradients and the optimizer's state are cut along their first dimension (DTensors). A block's whole weights
exist only while it computes. Embeddings, final norm and head are one group with the root, so tied weights are together.
A model comes cut already, or is cut here, a weight at a time.
"""

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils.weak import WeakIdKeyDictionary
from typing_extensions import override

from anyformer.adapters import add_adapter
from anyformer.blocks.initialization import Cut
from anyformer.data.batch import Batch
from anyformer.model import Transformer, skeleton
from anyformer.training.dtensor import cut_rows, full_tensor, is_dtensor
from anyformer.training.strategies.base import Sharded
from anyformer.training.strategies.shards import read_shards, write_shards


class FSDP(Sharded):
    """Training on several processes, each of which holds a share of weights, gradients and the optimizer's state."""

    engine = "fsdp"
    is_spread = True

    @override
    def evaluate(self, batch: Batch) -> float:
        nats = super().evaluate(batch)
        # Without a way back nothing would take the root's whole weights away again, and they would be mistaken for it.
        self.wrapped.reshard()
        return nats

    @override
    def _full_weights(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, full_tensor(tensor)) for name, tensor in self.model.state_dict().items())

    @override
    def write(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        write_shards(folder, state)

    @override
    def load(self, folder: Path) -> None:
        self._load_state(read_shards(folder, dict(self.model.named_parameters())))

    @override
    @contextmanager
    def saved(self) -> Generator[Transformer | None]:
        with self.averaged():
            if not self.model.adapter_configs:
                yield self.model
                return
            trained = {name: full_tensor(tensor) for name, tensor in self._weights().items()}
            yield self._adapter_alone(trained) if self.group.is_main else None

    def _adapter_alone(self, trained: dict[str, Tensor]) -> Transformer:
        """A model whose trained weights alone have storage."""
        model = skeleton(self.model.config)
        model.origin = self.model.origin
        for name, config in self.model.adapter_configs.items():
            add_adapter(model, config, name)
        model.load_state_dict(trained, assign=True, strict=False)
        return model

    @override
    def _placed(self, model: Transformer) -> Transformer:
        # Wrapping moves it, a weight at a time: the whole model may not fit on one device.
        return model

    @override
    def _wrap(self) -> nn.Module:
        dtype, mesh, module = self.plan.precision.dtype, self._mesh(), self.plan.loss(self.model)
        pieces = _take_pieces(module, mesh)
        policy = MixedPrecisionPolicy(None if dtype == torch.float32 else dtype, reduce_dtype=torch.float32)
        for stack in (self.model.encoder, self.model.decoder):
            for block in () if stack is None else stack.blocks:
                fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(module, mesh=mesh, mp_policy=policy)
        module.load_state_dict(pieces, assign=True, strict=False)
        return module

    def _mesh(self) -> DeviceMesh:
        return _mesh(self.plan.precision.device.type, self.group.world_size)

    @override
    def _clip(self) -> Tensor:
        return full_tensor(super()._clip())


def cut(device: str, processes: int) -> Cut:
    """The rows of each weight that this process keeps, on a device of its own."""
    return partial(cut_rows, mesh=_mesh(device, processes))


def _mesh(device: str, processes: int) -> DeviceMesh:
    return init_device_mesh(device, (processes,))


def _take_pieces(module: nn.Module, mesh: DeviceMesh) -> dict[str, nn.Parameter]:
    """This process's pieces of all weights, by name; the module keeps their shapes alone."""
    pieces = dict[str, nn.Parameter]()
    taken = WeakIdKeyDictionary()  # adapters share weights, and what is whole shall go once it is cut
    for prefix, part in module.named_modules():
        for name, parameter in [*part.named_parameters(recurse=False)]:
            if parameter not in taken:
                trained, piece = parameter.requires_grad, parameter
                if not is_dtensor(parameter):
                    piece = nn.Parameter(cut_rows(parameter, mesh), requires_grad=trained)
                shape = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
                taken[parameter] = piece, nn.Parameter(shape, requires_grad=trained)
            piece, shape = taken[parameter]
            setattr(part, name, shape)
            pieces[f"{prefix}.{name}"] = piece
    return pieces
