"""One process. The engines for several are this one with another way to spread the model and to add up."""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from anyformer.blocks.block import TransformerBlock
from anyformer.blocks.head import LanguageModelHead
from anyformer.blocks.linear import Linear
from anyformer.data.batch import IGNORED, Batch
from anyformer.data.feistel_shuffle import mix_seed
from anyformer.model import Transformer
from anyformer.training.checkpoints import read_state, write_state
from anyformer.training.optimizer import flatten_state, load_flat_state, set_learning_rate
from anyformer.training.strategies.base import Plan, Step, Strategy
from anyformer.training.strategies.group import Group
from anyformer.training.strategies.launch import check_engine

_DROPOUT = 0x0D


class Single:
    """Trains on one device.

    Args:
        model: with its first weights; is trained in place.
        plan: how.
        group: the processes; one.
    """

    def __init__(self, model: Transformer, plan: Plan, group: Group) -> None:
        self.plan, self.group = plan, group
        self.model = self._placed(model)
        if plan.precision.int8:
            use_int8(self.model)
        for stack in (self.model.encoder, self.model.decoder):
            if stack is not None:
                if plan.gradient_checkpointing:
                    for block in stack.blocks:
                        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
                if plan.compile:
                    # The loss, which sorts out what is to be predicted, gains nothing by it.
                    stack.compile()
        self.wrapped = self._wrap()
        self.optimizer = plan.optimizer(self.model)
        scales = plan.precision.dtype == torch.float16
        self._scaler = torch.amp.GradScaler(plan.precision.device.type, enabled=scales)

    def step(self, number: int, batch: Batch, learning_rate: float) -> Step:
        """See `Strategy`."""
        set_learning_rate(self.optimizer, learning_rate)
        self.wrapped.train()
        device = self.plan.precision.device
        total = torch.zeros((), device=device)
        parts = batch.split(self.plan.grad_accumulation)
        for place, part in enumerate(parts):
            mine = self._mine(part)
            self._seed_dropout(number, place)
            with self._last(place == len(parts) - 1):
                share = self._loss(mine) * (mine.predicted / max(batch.predicted, 1))
                self._scaler.scale(share * self.group.world_size).backward()
            total += share.detach()
        self._scaler.unscale_(self.optimizer)
        norm = self._clip()
        loss = self.group.sum(total).item()
        finite = math.isfinite(loss) and math.isfinite(norm)
        if self._scaler.is_enabled():
            # It leaves out a step whose gradient is infinite, and tries the next one with a smaller scale.
            scale = self._scaler.get_scale()
            self._scaler.step(self.optimizer)
            self._scaler.update()
            norm = norm if finite or scale < 1 else 0.0
        elif finite:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if finite and self.plan.average is not None:
            self.plan.average.update(self._weights())
        return Step(loss, norm)

    def evaluate(self, batch: Batch) -> float:
        """See `Strategy`."""
        training = self.wrapped.training
        self.wrapped.eval()
        with torch.no_grad(), self._eager():
            mine = self._mine(batch)
            nats = self._loss(mine, smoothing=0.0) * mine.predicted
        self.wrapped.train(training)
        return self.group.sum(nats.detach().float()).item()

    def averaged(self) -> AbstractContextManager[None]:
        """See `Strategy`."""
        average = self.plan.average
        return nullcontext() if average is None else average.applied(self._weights())

    @contextmanager
    def gathered(self) -> Generator[Transformer | None]:
        """See `Strategy`."""
        with self.averaged(), self._eager():
            yield self.model if self.group.is_main else None

    def snapshot(self) -> None:
        """See `Strategy`."""
        if self.plan.average is not None:
            self.plan.average.snapshot(self._weights())

    def save(self, folder: Path) -> None:
        """See `Strategy`."""
        write_state(folder, self._state())

    def load(self, folder: Path) -> None:
        """See `Strategy`."""
        self._load_state(read_state(folder))

    def close(self) -> None:
        """See `Strategy`."""

    def __str__(self) -> str:
        return "one process"

    def _placed(self, model: Transformer) -> Transformer:
        return model.to(self.plan.precision.device)

    def _wrap(self) -> nn.Module:
        """What is called to compute: the model as it is spread over the processes."""
        return self.model

    def _last(self, last: bool) -> AbstractContextManager[object]:
        """Gradients have to be added up over the processes only after the last part of a batch."""
        del last
        return nullcontext()

    def _clip(self) -> float:
        """Shorten the gradient of all processes together; returns how long it was."""
        return nn.utils.clip_grad_norm_(self.model.parameters(), self.plan.grad_clip).item()

    def _mine(self, batch: Batch) -> Batch:
        """The rows of this process. One that has none reads a row for nothing, for all must call the model."""
        rows = batch.split(self.group.world_size)
        if self.group.rank < len(rows):
            return rows[self.group.rank]
        return replace(rows[0], targets=rows[0].targets * 0 + IGNORED)

    def _loss(self, batch: Batch, smoothing: float | None = None) -> Tensor:
        precision = self.plan.precision
        with precision.autocast():
            return self._forward(
                **model_inputs(batch, precision.device),
                return_logits=False,
                label_smoothing=self.plan.label_smoothing if smoothing is None else smoothing,
            )

    def _forward(self, **inputs: Any) -> Tensor:
        """The loss of the model as it is spread over the processes."""
        return self.wrapped(**inputs).loss

    def _seed_dropout(self, step: int, part: int) -> None:
        torch.manual_seed(mix_seed(self.plan.seed, _DROPOUT, step, part, self.group.rank) >> 1)

    def _eager(self) -> AbstractContextManager[object]:
        """Compiling for other shapes, and without gradients, would take longer than it saves."""
        return torch.compiler.set_stance("force_eager") if self.plan.compile else nullcontext()

    def _weights(self) -> dict[str, Tensor]:
        """The trained tensors, as they lie on this process."""
        return {name: parameter.data for name, parameter in self.model.named_parameters()}

    def _names(self) -> dict[nn.Parameter, str]:
        return {parameter: name for name, parameter in self.model.named_parameters()}

    def _state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, by name."""
        state = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        state |= {f"optimizer.{name}": tensor for name, tensor in flatten_state(self.optimizer, self._names()).items()}
        if self.plan.average is not None:
            state |= {f"average.{name}": tensor for name, tensor in self.plan.average.state().items()}
        if self._scaler.is_enabled():
            scaler = self._scaler.state_dict()
            state |= {f"scaler.{name}": torch.tensor(float(value)) for name, value in scaler.items()}
        return state

    def _load_state(self, state: dict[str, Tensor]) -> None:
        def part(name: str) -> dict[str, Tensor]:
            return {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}

        self.model.load_state_dict(part("model"))
        load_flat_state(self.optimizer, self._names(), part("optimizer"))
        if self.plan.average is not None:
            self.plan.average.load_state(part("average"))
        if self._scaler.is_enabled():
            kinds = self._scaler.state_dict()
            self._scaler.load_state_dict({name: type(kinds[name])(value) for name, value in part("scaler").items()})


def model_inputs(batch: Batch, device: torch.device) -> dict[str, Tensor]:
    """The arguments of `Transformer.forward`, whose names are those of a batch's fields."""
    arrays = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return {name: torch.from_numpy(array).to(device) for name, array in arrays.items() if array is not None}


def make_strategy(name: str | None, model: Transformer, plan: Plan, group: Group, *, zero_stage: int = 2) -> Strategy:
    """The engine that was asked for, and no other.

    Args:
        name: one of ENGINES; None: a single process.
        model: with its first weights, the same on all processes.
        plan: how a step is taken.
        group: the processes.
        zero_stage: what DeepSpeed shards: 1 the optimizer's state, 2 the gradients as well, 3 the weights as well.

    Raises:
        UserError: there is no such engine, it isn't installed, or it does not fit the number of processes.
    """
    check_engine(name, group.world_size)
    if name is None:
        return Single(model, plan, group)
    # Each imports a library that takes seconds to load and that the others have no use for.
    if name == "ddp":
        from anyformer.training.strategies.ddp import DDP

        return DDP(model, plan, group)
    if name == "fsdp":
        from anyformer.training.strategies.fsdp import FSDP

        return FSDP(model, plan, group)
    from anyformer.training.strategies.deepspeed import DeepSpeed

    return DeepSpeed(model, plan, group, zero_stage)


def use_int8(model: nn.Module) -> None:
    """Let the linear layers of the blocks, and the head, train in products of 8-bit integers."""
    for module in model.modules():
        if isinstance(module, LanguageModelHead):
            module.matmul = "int8"
        elif isinstance(module, TransformerBlock):
            for part in module.modules():
                if isinstance(part, Linear):
                    part.matmul = "int8"
