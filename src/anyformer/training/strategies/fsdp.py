"""A shard of everything on each process: PyTorch's FSDP2 (`fully_shard`; Zhao et al. 2023, PyTorch FSDP).

Weights, gradients and the optimizer's state are cut along their first dimension (DTensors). A block's whole weights
exist only while it computes. Embeddings, final norm and head are one group with the root, so tied weights are together.
A model comes cut already, or is cut here, a weight at a time.
"""

import logging
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils.weak import WeakIdKeyDictionary
from typing_extensions import override

from anyformer.blocks.initialization import Cut
from anyformer.data.batch import Batch
from anyformer.dtensor import cut_rows, full_tensor, is_dtensor, local_tensor
from anyformer.errors import UserError
from anyformer.model import Transformer, skeleton
from anyformer.quantization import quantized_weights
from anyformer.training.losses import LossModule
from anyformer.training.strategies.base import Plan, Sharded, like, rows
from anyformer.training.strategies.group import Group
from anyformer.training.strategies.shards import read_shards, write_shards


class FSDP(Sharded):
    """Training on several processes, each of which holds a share of weights, gradients and the optimizer's state."""

    engine = "fsdp"
    is_spread = True

    def __init__(
        self, model: Transformer, plan: Plan, group: Group, *, tensor_parallel: int = 1, context_parallel: int = 1
    ) -> None:
        self._tensor_parallel, self._context_parallel = tensor_parallel, context_parallel
        super().__init__(model, plan, group)

    @override
    def __str__(self) -> str:
        parts = (("tensor", self._tensor_parallel), ("context", self._context_parallel))
        return super().__str__() + "".join(f", {name} parallel {size}" for name, size in parts if size > 1)

    @override
    @contextmanager
    def _evaluating(self) -> Generator[None]:
        with super()._evaluating():
            yield
        # Without a way back nothing would take the root's whole weights away again, and they would be mistaken for it.
        self.wrapped.reshard()

    @override
    def _full_weights(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, full_tensor(tensor)) for name, tensor in self.model.state_dict().items())

    @override
    def write(self, folder: Path, state: Mapping[str, Tensor], part: str = "") -> Path:
        return write_shards(folder, state, part)

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
            model = like(self.model, skeleton) if self.group.is_main else None
            if model is not None:  # its trained weights alone have storage
                model.load_state_dict(trained, assign=True, strict=False)
            yield model

    @override
    def _placed(self, model: Transformer) -> Transformer:
        # Wrapping moves it, a weight at a time: the whole model may not fit on one device.
        return model

    @override
    def _wrap(self) -> nn.Module:
        dtype, module = self.plan.precision.dtype, self.plan.loss(self.model)
        if self._context_parallel > 1 and type(module) is not LossModule:
            raise UserError("--context-parallel trains the loss of single tokens, and not this task: leave it out.")
        for _, weight in quantized_weights(self.model):
            weight.spread(partial(cut_rows, mesh=self._flat_mesh()))
        pieces = _take_pieces(module, self._flat_mesh())
        mesh = self._mesh()
        policy = MixedPrecisionPolicy(None if dtype == torch.float32 else dtype, reduce_dtype=torch.float32)
        for stack in (self.model.encoder, self.model.decoder):
            for block in () if stack is None else stack.blocks:
                fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(module, mesh=mesh, mp_policy=policy)
        if self._tensor_parallel > 1:
            pieces = _spread(pieces, module, mesh)
        module.load_state_dict(pieces, assign=True, strict=False)
        return module

    def _flat_mesh(self) -> DeviceMesh:
        """All processes, by whose number each weight is cut first."""
        return _mesh(self.plan.precision.device.type, self.group.world_size)

    def _mesh(self) -> DeviceMesh:
        """The processes that share the weights, once the model's modules are those of its layout."""
        device, processes, tensor = self.plan.precision.device.type, self.group.world_size, self._tensor_parallel
        if self._context_parallel > 1:
            from anyformer.training.strategies.context_parallel import make_context_parallel

            sizes = processes // tensor // self._context_parallel, self._context_parallel, tensor
            mesh = init_device_mesh(device, sizes, mesh_dim_names=("data", "context", "tensor"))
            make_context_parallel(self.model, mesh["context"])
        if tensor == 1:
            return self._flat_mesh()
        from anyformer.training.strategies.tensor_parallel import make_tensor_parallel

        # It warns of gathering a tensor in two steps, one for each dimension of the mesh.
        logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
        mesh = init_device_mesh(device, (processes // tensor, tensor), mesh_dim_names=("fsdp", "tensor"))
        make_tensor_parallel(self.model, mesh["tensor"])
        self.data_group = self.group.along(mesh["fsdp"])
        return mesh["fsdp"]

    @override
    def _mine(self, batch: Batch) -> tuple[Batch, int]:
        if self._context_parallel == 1:
            return super()._mine(batch)
        from anyformer.training.strategies.context_parallel import stretch

        index, place = divmod(self.data_group.rank, self._context_parallel)
        mine, predicted = rows(batch, index, self.data_group.world_size // self._context_parallel)
        mine = stretch(mine, place, self._context_parallel)
        return mine, mine.predicted if predicted else 0

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


def _spread(pieces: dict[str, nn.Parameter], module: nn.Module, mesh: DeviceMesh) -> dict[str, nn.Parameter]:
    """Pieces that are spread as the module's weights, over two dimensions; one weight at a time is whole."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    spread = dict[nn.Parameter, nn.Parameter]()
    found = dict[str, nn.Parameter]()
    for name in [*pieces]:
        piece, shape = pieces.pop(name), module.get_parameter(name.removeprefix("."))
        if shape not in spread:
            like, part = cast("DTensor", shape), full_tensor(piece.detach())
            if like.device_mesh.ndim > 1:
                placement = like.placements[1]
                part = distribute_tensor(part, like.device_mesh["tensor"], [placement], src_data_rank=None).to_local()
            own = local_tensor(cut_rows(part, mesh))
            whole = DTensor.from_local(
                own, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
            )
            spread[shape] = nn.Parameter(whole, requires_grad=shape.requires_grad)
        found[name] = spread[shape]
    return found
