"""Training on TPUs by XLA: one process drives all devices, and XLA's compiler partitions its programs (SPMD).

PyTorch/XLA records operations and compiles them, once for each shape of a batch. A tensor that is marked as sharded
lies on all devices in pieces, and the compiler adds the communication (Xu et al. 2021, GSPMD). Batches are sharded by
rows. So are weights, gradients and the optimizer's state by their first dimension, as in FSDP, or each device has a
copy of them, as in DDP.
"""

from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten
from typing_extensions import override

from anyformer.data.batch import Batch
from anyformer.model import Transformer
from anyformer.training.precision import hardware
from anyformer.training.strategies.base import Plan, Sharded
from anyformer.training.strategies.group import Group, start_xla


class XLA(Sharded):
    """Training on all devices of one host.

    Args:
        shard: weights, gradients and the optimizer's state lie in pieces on the devices; False: each has all of them.
    """

    def __init__(self, model: Transformer, plan: Plan, group: Group, *, shard: bool = True) -> None:
        self.engine = "xla" if shard else "xla-ddp"
        self._xla, self._shard = start_xla(), shard
        self.devices = import_module("torch_xla.runtime").global_runtime_device_count()
        self._spmd: Any = import_module("torch_xla.distributed.spmd")
        self._mesh = self._spmd.Mesh(np.arange(self.devices), (self.devices,), ("data",))
        if plan.precision.dtype == torch.float32:
            # Its default for products of float32 is bfloat16.
            import_module("torch_xla.backends").set_mat_mul_precision("highest")
        super().__init__(model, plan, group)

    @override
    def step(self, number: int, batch: Batch, learning_rate: float) -> Float[Tensor, "2"]:
        figures = super().step(number, batch, learning_rate)
        self._mark_state()
        self._xla.sync()
        return figures

    @override
    def evaluate(self, batch: Batch) -> Float[Tensor, ""]:
        nats = super().evaluate(batch)
        self._xla.sync()
        return nats

    @override
    def _full_weights(self) -> Iterator[tuple[str, Tensor]]:
        self._xla.sync()
        return ((name, tensor.cpu()) for name, tensor in self.model.state_dict().items())

    @override
    def state(self) -> dict[str, Tensor]:
        # Copies: reading them in another thread would cut the step's program in two.
        self._xla.sync()
        return {name: tensor.cpu() for name, tensor in super().state().items()}

    @override
    def load(self, folder: Path) -> None:
        super().load(folder)
        self._mark_state()
        self._xla.sync()

    @override
    def __str__(self) -> str:
        kept = "sharded weights" if self._shard else "a copy of the weights on each"
        devices = f"{self.devices} device{'s' * (self.devices != 1)} ({hardware(self.plan.precision.device)})"
        return f"{self.engine}, {devices}, {kept}"

    @override
    def _placed(self, model: Transformer) -> Transformer:
        model = model.to(self.plan.precision.device)
        for parameter in model.parameters():
            self._mark(parameter, self._shard)
        return model

    @override
    def _inputs(self, batch: Batch) -> dict[str, Tensor]:
        inputs = super()._inputs(batch)
        for tensor in inputs.values():
            self._mark(tensor, True)
        return inputs

    @override
    def _checkpoint(self) -> Callable[..., Any]:
        return _checkpoint

    def _mark_state(self) -> None:
        """Lay the optimizer's state out as the weights are."""
        for parameter, state in self.optimizer.state.items():
            for tensor in state.values():
                if tensor.shape == parameter.shape:
                    self._mark(tensor, self._shard)

    def _mark(self, tensor: Tensor, shard: bool) -> None:
        """Cut a tensor along its first dimension, if that can be done evenly, or have a copy of it on each device."""
        cuts = shard and tensor.dim() > 0 and len(tensor) % self.devices == 0
        spec = ("data" if cuts else None, *(None,) * (tensor.dim() - 1)) if tensor.dim() else ()
        self._spmd.mark_sharding(tensor, self._mesh, spec)


def _checkpoint(function: Callable[..., Tensor], *args: Any, use_reentrant: bool, **kwargs: Any) -> Tensor:
    """`torch.utils.checkpoint.checkpoint`, which keeps XLA from computing once what is written twice.

    PyTorch/XLA's own takes tensors one by one, one of which at least has to need a gradient.
    """
    if not torch.is_grad_enabled():
        return function(*args, **kwargs)
    leaves, spec = tree_flatten((args, kwargs))
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    tensors: list[Tensor] = [leaves[place] for place in places]
    if not any(tensor.requires_grad for tensor in tensors):
        tensors[0] = tensors[0].detach().requires_grad_()

    def call(*tensors: Tensor) -> Tensor:
        values = dict(zip(places, tensors, strict=True))
        args, kwargs = tree_unflatten([values.get(place, leaf) for place, leaf in enumerate(leaves)], spec)
        return function(*args, **kwargs)

    return import_module("torch_xla.utils.checkpoint").checkpoint(call, *tensors)
