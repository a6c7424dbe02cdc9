"""DeepSpeed's ZeRO: stage 1 cuts up the optimizer's state, 2 the gradients as well, 3 the weights as well.

Rajbhandari et al. 2020, ZeRO: Memory Optimizations Toward Training Trillion Parameter Models. DeepSpeed's own engine
does backward, reduction, clipping and the step. Weights stay in float32, and products are computed in the plan's format
by its torch_autocast.
"""

import logging
import math
import os
import warnings
from collections.abc import Collection, Generator, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from anyformer.blocks.block import TransformerBlock
from anyformer.blocks.head import LanguageModelHead
from anyformer.data.batch import Batch
from anyformer.errors import UserError, quote
from anyformer.model import Transformer
from anyformer.training.optimizer import set_learning_rate
from anyformer.training.strategies.base import Plan, Sharded
from anyformer.training.strategies.group import Group
from anyformer.training.strategies.shards import names, read_shards

_MOMENTS = ("exp_avg", "exp_avg_sq")
_KEPT_WHOLE = 100_000
"""Stage 3 leaves smaller weights whole on every process (DeepSpeed's own default)."""


class DeepSpeed(Sharded):
    """Training on several processes through DeepSpeed, with ZeRO of a stage from 1 to 3.

    Raises UserError for any optimizer but AdamW, for the weights are cut without regard to rows and columns.
    """

    def __init__(self, model: Transformer, plan: Plan, group: Group, stage: int) -> None:
        self.stage, self.engine = stage, f"deepspeed ZeRO-{stage}"
        self._file = f"shard-{group.rank + 1:05}"
        self._frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        if model.pooler is not None and isinstance(model.head, LanguageModelHead):
            # No loss reaches it, but DeepSpeed would give it gradients of zeros, and the optimizer decay it.
            model.pooler.requires_grad_(False)
        super().__init__(model, plan, group)
        if not isinstance(self.optimizer, torch.optim.AdamW):
            raise UserError(
                "--engine deepspeed trains with --optimizer adamw alone, for ZeRO cuts matrices into flat pieces: "
                "leave --optimizer out, or use --engine ddp or fsdp."
            )
        self._trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        self.wrapped = self._initialize(plan.loss(model))
        self._remember()

    @override
    def step(self, number: int, batch: Batch, learning_rate: float) -> Float[Tensor, "2"]:
        # DeepSpeed reads the norm itself, and a gradient that is not finite is noticed only after the step.
        set_learning_rate(self.wrapped.optimizer, learning_rate)
        loss = self._loss_and_gradient(number, batch).item()
        if not math.isfinite(loss):
            return torch.tensor([loss, math.nan])
        self.wrapped.step()
        norm = float(self.wrapped.get_global_grad_norm() or 0.0)
        if math.isfinite(norm) and self.plan.average is not None:
            self.plan.average.update(self._weights())
        return torch.tensor([loss, norm])

    @override
    def _backward(self, loss: Tensor, last: bool) -> None:
        self.wrapped.set_gradient_accumulation_boundary(is_boundary=last)
        self.wrapped.backward(loss)
        if not last:
            self.wrapped.step()

    @override
    @contextmanager
    def averaged(self) -> Generator[None]:
        try:
            with super().averaged():
                self._forget()
                yield
        finally:
            self._forget()

    @override
    def _full_weights(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self.model.named_parameters():
            yield name, self._whole(tensor, self._local(tensor))
        yield from self._buffers().items()

    @override
    def state(self) -> dict[str, Tensor]:
        # Each process keeps some of the whole tensors, about as many bytes each, and writes them.
        mine: dict[str, Tensor] = {}
        sizes = [0] * self.group.world_size
        for name, tensor in self._whole_state():
            writer = sizes.index(min(sizes))
            sizes[writer] += tensor.nbytes
            if writer == self.group.rank:
                mine[name] = tensor.detach().to("cpu", copy=True)
        return mine

    @override
    def load(self, folder: Path) -> None:
        # Each process reads one whole tensor after the other and keeps its piece.
        utils, extent = self._deepspeed.utils, "local" if self.stage == 3 else "full"
        set_weight = getattr(utils, f"safe_set_{extent}_fp32_param")
        set_moment = getattr(utils, f"safe_set_{extent}_optimizer_state")
        stored = names(folder)
        parameters = dict(self.model.named_parameters())
        self._check(folder, stored)
        steps = 0.0
        with torch.no_grad():
            for name, parameter in parameters.items():
                keys = [f"optimizer.{key}.{name}" for key in (*_MOMENTS, "step")]
                if f"model.{name}" not in stored:  # frozen, and as in the model it was made from
                    continue
                state = read_shards(folder, only={f"model.{name}", *keys})
                value = state[f"model.{name}"].to(self.plan.precision.device)
                if value.shape != self._shape(parameter):
                    raise _misfit(folder, f"{quote(name)} has the shape {tuple(value.shape)}")
                self._local(parameter).copy_(self._piece(parameter, value))
                if name not in self._trained:
                    continue
                moments = [state.get(key, torch.zeros_like(value)).to(value.device) for key in keys[:-1]]
                steps = max(steps, float(state.get(keys[-1], torch.zeros(()))))
                set_weight(parameter, self._piece(parameter, value))
                for key, moment in zip(_MOMENTS, moments, strict=True):
                    set_moment(parameter, self._piece(parameter, moment), key)
        for name, buffer in self._buffers().items():
            if f"model.{name}" in stored:
                buffer.copy_(read_shards(folder, only={f"model.{name}"})[f"model.{name}"])
        for flat in self._flat():
            self.optimizer.state[flat]["step"].fill_(steps)
        self._forget()
        if self.plan.average is not None:
            pieces: dict[str, Tensor] = {}
            for key in sorted(name.removeprefix("average.") for name in stored if name.startswith("average.")):
                (value,) = read_shards(folder, only={f"average.{key}"}).values()
                parameter = parameters.get(key.partition(".")[2])
                pieces[key] = value if parameter is None else self._piece(parameter, value).clone()
            self.plan.average.load_state(pieces)

    @override
    def close(self) -> None:
        self.wrapped.destroy()
        super().close()

    def _initialize(self, module: nn.Module) -> Any:
        precision = self.plan.precision
        if precision.device.type == "cpu":
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
            os.environ.setdefault("LOCAL_SIZE", str(self.group.world_size))
        # Its import compiles kernels for the accelerator that it finds, so it has to be told first.
        deepspeed: Any = import_module("deepspeed")
        self._deepspeed = deepspeed
        # For inference on CPUs DeepSpeed compiles a kernel when it starts; nothing here calls it.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        # It calls collectives by names that torch 2.13 is about to drop.
        warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        settings: dict[str, Any] = {
            # Batches have any number of rows, and step() says where one ends, so neither of these counts.
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": self.plan.grad_clip,
            "zero_allow_untested_optimizer": True,
            "zero_optimization": {"stage": self.stage, "stage3_param_persistence_threshold": _KEPT_WHOLE},
            "steps_per_print": 2**62,
        }
        if precision.dtype != torch.float32:
            settings["torch_autocast"] = {"enabled": True, "dtype": precision.name}
        engine, *_ = deepspeed.initialize(
            model=module, optimizer=self.optimizer, config=settings, dist_init_required=False
        )
        if self.stage == 3:
            blocks = [module for module in self.model.modules() if isinstance(module, TransformerBlock)]
            inside = {id(parameter) for block in blocks for parameter in block.parameters()}
            for parameter in self.model.parameters():
                if id(parameter) not in inside:
                    # Tied tables and heads are used outside their own module's forward, which is all DeepSpeed watches.
                    deepspeed.zero.register_external_parameter(module, parameter)
        return engine

    def _remember(self) -> None:
        """Make AdamW's state now: DeepSpeed looks for all of it after the step of the first group alone."""
        fused = bool(self.optimizer.defaults["fused"])
        for flat in self._flat():
            step = torch.zeros((), device=flat.device if fused else "cpu")
            self.optimizer.state[flat] = {"step": step, **{key: torch.zeros_like(flat) for key in _MOMENTS}}
        zero = self.wrapped.optimizer
        if self.stage < 3:
            for group, flat in zip(zero.bit16_groups, self._flat(), strict=True):
                self._deepspeed.utils.lazy_init_hp_params_optimizer_state(group, flat, self.optimizer.state)

    def _forget(self) -> None:
        """Empty stage 3's cache of whole weights, whose pieces have changed."""
        if self.stage == 3:
            self.wrapped.empty_partition_cache()

    def _flat(self) -> list[Tensor]:
        """This process's pieces of all weights, end to end, as the optimizer has them."""
        zero = self.wrapped.optimizer
        return zero.fp32_partitioned_groups_flat if self.stage == 3 else zero.single_partition_of_fp32_groups

    @override
    def _weights(self) -> dict[str, Tensor]:
        return {name: self._local(parameter) for parameter, name in self._names().items()}

    def _buffers(self) -> dict[str, Tensor]:
        """The tensors that are stored with the weights and that nothing trains, whole on every process."""
        stored = self.model.state_dict().keys()
        return {name: buffer for name, buffer in self.model.named_buffers() if name in stored}

    def _local(self, parameter: Tensor) -> Tensor:
        """This process's share of a parameter: in stage 3 an equal part of all weights end to end, zero-padded."""
        return getattr(parameter, "ds_tensor", parameter).data

    def _shape(self, parameter: Tensor) -> torch.Size:
        return getattr(parameter, "ds_shape", parameter.shape)

    def _whole(self, parameter: Tensor, piece: Tensor) -> Tensor:
        """Put the processes' pieces together; all processes must call it."""
        if self.stage < 3:
            return piece
        pieces = [torch.empty_like(piece) for _ in range(self.group.world_size)]
        dist.all_gather(pieces, piece)
        shape = self._shape(parameter)
        return torch.cat(pieces)[: shape.numel()].view(shape)

    def _piece(self, parameter: Tensor, value: Tensor) -> Tensor:
        """This process's piece of whole weights, or of something that is laid out as they are."""
        if self.stage < 3:
            return value
        size = self._local(parameter).numel()
        padded = value.new_zeros(size * self.group.world_size)
        padded[: value.numel()] = value.flatten()
        return padded[size * self.group.rank : size * (self.group.rank + 1)]

    def _whole_state(self) -> Iterator[tuple[str, Tensor]]:
        """Everything that the next step depends on, whole and one after the other, in the same order everywhere."""
        utils = self._deepspeed.utils
        step: Tensor = self.optimizer.state[self._flat()[0]]["step"]
        for name, parameter in self.model.named_parameters():
            if name in self._frozen:  # as in the model it was made from
                continue
            if name not in self._trained:
                yield f"model.{name}", self._whole(parameter, self._local(parameter))
                continue
            yield f"model.{name}", utils.safe_get_full_fp32_param(parameter)
            if step:
                yield f"optimizer.step.{name}", step
                for key in _MOMENTS:
                    yield f"optimizer.{key}.{name}", utils.safe_get_full_optimizer_state(parameter, key)
        if not self._frozen:
            yield from ((f"model.{name}", buffer) for name, buffer in self._buffers().items())
        if self.plan.average is not None:
            parameters = dict(self.model.named_parameters())
            for name, piece in self.plan.average.state().items():
                parameter = parameters.get(name.partition(".")[2])
                yield f"average.{name}", piece if parameter is None else self._whole(parameter, piece)

    def _check(self, folder: Path, stored: Collection[str]) -> None:
        """Raise UserError where a checkpoint is of another model or another optimizer."""
        missing = sorted(name for name in self._trained if f"model.{name}" not in stored)
        if missing:
            raise _misfit(folder, f"it has no {quote(missing[0])}")
        for name in stored:
            kind, key, *_ = *name.split(".", 2), ""
            if kind == "optimizer" and key not in (*_MOMENTS, "step"):
                raise _misfit(folder, f"its optimizer remembers {key}, which AdamW does not")


def _misfit(folder: Path, what: str) -> UserError:
    return UserError(
        f"The checkpoint {folder} doesn't fit this run: {what}. Resume it with the model and the --optimizer that it "
        "was saved with."
    )
