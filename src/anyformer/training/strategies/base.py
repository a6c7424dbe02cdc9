"""Steps of training: on one process, on copies of the model (DDP), and the base of sharded models."""

from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint
from typing_extensions import override

from anyformer import kernels
from anyformer.adapters import add_adapter
from anyformer.blocks.block import TransformerBlock
from anyformer.blocks.experts import Experts
from anyformer.blocks.head import LanguageModelHead
from anyformer.blocks.linear import Dropout, Linear
from anyformer.config import ModelConfig
from anyformer.data.batch import Batch
from anyformer.data.batches import mix_seed
from anyformer.errors import UserError, cut
from anyformer.model import Transformer, build
from anyformer.training.averaging import Average
from anyformer.training.batcher import padded
from anyformer.training.losses import LossModule, WholeBatch
from anyformer.training.optimizer import clip_grad_norm_, flatten_state, load_flat_state, set_learning_rate
from anyformer.training.precision import FIXED_SHAPES, Precision
from anyformer.training.strategies.group import Group
from anyformer.training.strategies.state_files import read_state, write_state

_DROPOUT = 0x0D


@dataclass(frozen=True, slots=True)
class Plan:
    """Settings of a step, the same for every strategy.

    Attributes:
        optimizer: makes the optimizer of a model's parameters, once they are where they will stay.
        grad_clip: largest norm of the gradient.
        grad_accumulation: number of parts that a batch is computed in.
        label_smoothing: share of each target that is spread over the vocabulary.
        seed: decides dropout.
        compile: compile the stacks.
        gradient_checkpointing: compute the activations of each block again in the backward pass.
        loss: makes the module that computes the loss of a batch, whose fields are its arguments, from a model.
    """

    precision: Precision
    optimizer: Callable[[Transformer], Optimizer]
    average: Average | None = None
    grad_clip: float = 1.0
    grad_accumulation: int = 1
    label_smoothing: float = 0.0
    seed: int = 0
    compile: bool = False
    gradient_checkpointing: bool = False
    loss: Callable[[Transformer], nn.Module] = LossModule


class Strategy:
    """Training on one device, and the base of training on several processes.

    All processes call the same methods in the same order. A batch is always the whole batch of all processes, so
    nothing depends on their number. Dropout is drawn from (seed, step), for each row: no generator is to be saved.

    Args:
        model: with its first weights; is trained in place.

    Attributes:
        data_group: the processes that a batch is spread over.
    """

    engine = ""
    devices = 1
    """Devices that this process drives."""
    is_spread = False
    """Whether no process ever holds the whole model."""
    _file = "state"

    def __init__(self, model: Transformer, plan: Plan, group: Group) -> None:
        self.plan, self.group, self.data_group = plan, group, group
        self.before_change: Callable[[], None] = lambda: None  # called before weights or the optimizer's state change
        self.model = self._placed(model)
        if plan.precision.int8:
            use_int8(self.model)
        for stack in (self.model.encoder, self.model.decoder):
            if stack is not None:
                if plan.gradient_checkpointing:
                    for block in stack.blocks:
                        block.forward = partial(_checkpointed, self._checkpoint(), block.forward)
                if plan.compile:
                    # The loss, which sorts out what is to be predicted, gains nothing by it.
                    stack.compile()
        self.wrapped: Any = self._wrap()
        self._threads, self._pool = torch.get_num_threads(), ThreadPoolExecutor(torch.get_num_threads())
        self._at_once = 1
        self.optimizer = plan.optimizer(self.model)
        device = plan.precision.device.type
        self._scaler = torch.amp.GradScaler(device, enabled=plan.precision.dtype == torch.float16)
        # The host need not know whether a step is finite where the optimizer can leave it out itself.
        self._waits = device == "cpu" or not getattr(self.optimizer, "_step_supports_amp_scaling", False)

    def step(self, number: int, batch: Batch, learning_rate: float) -> Float[Tensor, "2"]:
        """Learn from a batch. Where loss or gradient are not finite, the weights stay as they are.

        Returns:
            The mean loss over all predicted tokens of the batch, in nats, before the step; and the norm of the
            gradient before clipping, 0 where float16's loss scale was too large and the step was left out. They are
            on the device: reading them waits for the step.
        """
        set_learning_rate(self.optimizer, learning_rate)
        loss = self._loss_and_gradient(number, batch)
        self._scaler.unscale_(self.optimizer)
        norm = self._clip()
        self.before_change()
        finite = loss.isfinite() & norm.isfinite()
        taken = True
        if self._scaler.is_enabled():
            # It leaves out a step whose gradient is infinite, and tries the next one with a smaller scale.
            taken = bool(finite)
            norm = norm if taken or self._scaler.get_scale() < 1 else torch.zeros_like(norm)
            self._scaler.step(self.optimizer)
            self._scaler.update()
        elif not self._waits:
            self.optimizer.found_inf = (~finite).float()  # pyright: ignore[reportAttributeAccessIssue]
            self.optimizer.step()
        elif taken := bool(finite):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if taken and self.plan.average is not None:
            self.plan.average.update(self._weights())
        return torch.stack([loss, norm])

    def use_threads(self, count: int) -> int:
        """Let this number of torch's threads compute together, and return how many compute in all.

        Where no more than rounding depends on it, the others compute other examples of the batch at the same time:
        they wait for each other once a step, instead of in each operation.
        """
        torch.set_num_threads(count)
        self._at_once = max(1, self._threads // count) if self._splits_freely() else 1
        return count * self._at_once

    def evaluate(self, batch: Batch) -> Float[Tensor, ""]:
        """The summed loss of a batch in nats, over all processes and on the device; nothing changes."""

        @torch.no_grad()
        def summed_loss(part: Batch) -> Tensor:
            mine, predicted = self._mine(part)
            return (self._loss(mine, label_smoothing=0.0, **whole) * predicted).float()

        with self._evaluating():
            whole = self._whole_batch(batch, [batch])
            nats = self._in_parts(summed_loss, batch)
        return self.data_group.sum(nats)

    def evaluate_rows(self, batch: Batch, **settings: bool) -> Float[Tensor, " rows"]:
        """A number for each row of a batch, which the loss returns with these settings; nothing changes."""
        with self._evaluating():
            mine, predicted = self._mine(batch)
            numbers = self._loss(mine, **settings).float()
        whole = numbers.new_zeros(len(batch.tokens))
        if predicted:
            before = batch.split(self.data_group.world_size)[: self.data_group.rank]
            begin, count = sum(len(part.tokens) for part in before), len(mine.tokens)
            whole[begin : begin + count] = numbers[:count]  # behind it may be rows that were padded
        return self.data_group.sum(whole)

    @contextmanager
    def _evaluating(self) -> Generator[None]:
        """Context without gradients and dropout."""
        training = self.model.training
        self.wrapped.eval()
        with torch.no_grad(), self._eager():
            yield
        self.wrapped.train(training)

    def averaged(self) -> AbstractContextManager[None]:
        """Context in which the weights are the averaged ones, where there is an average."""
        average = self.plan.average
        if average is None:
            return nullcontext()
        self.before_change()
        return average.applied(self._weights())

    @contextmanager
    def gathered(self) -> Generator[Transformer | None]:
        """Yield an ordinary model with the whole weights, averaged if there is an average; None but in process 0."""
        with self.averaged(), self._eager():
            yield self.model if self.group.is_main else None

    def saved(self) -> AbstractContextManager[Transformer | None]:
        """Context with the model to save: as `gathered`, or in every process one that is spread over all of them."""
        return self.gathered()

    def snapshot(self) -> None:
        """Offer the weights to an average of snapshots, such as that of the latest five."""
        if self.plan.average is not None:
            self.plan.average.snapshot(self._weights())

    def save(self, folder: Path) -> None:
        """Write this process's share of everything that the next step depends on into a folder, as safetensors."""
        self.write(folder, self.state())

    def write(self, folder: Path, state: Mapping[str, Tensor], part: str = "") -> Path | None:
        """Write a `state`, or a part of it, in whatever thread, and return the file; None: another process has it.

        Raises OSError or SafetensorError.
        """
        return write_state(folder, state, f"{self._file}{part}.safetensors") if state else None

    def load(self, folder: Path) -> None:
        """Read what `save` wrote, on any number of processes. Raises UserError where it does not fit the model."""
        self._load_state(read_state(folder))

    def close(self) -> None:
        """Let go of all tensors: those that are shared must be gone before the group is."""
        self._pool.shutdown()
        del self.optimizer, self.wrapped, self.model

    @override
    def __str__(self) -> str:
        """Active parts, for people: `ddp, 2 processes (gloo)`."""
        processes = f"{self.group.world_size} processes ({self.group.backend})"
        return f"{self.engine}, {processes}" if self.engine else "one process"

    def _placed(self, model: Transformer) -> Transformer:
        device = self.plan.precision.device
        return model if model.device == device else model.to(device)

    def _wrap(self) -> Any:
        return self.plan.loss(self.model)

    def _last(self, last: bool) -> AbstractContextManager[object]:
        """Context of a part of a batch: gradients have to be added up over the processes after the last one alone."""
        return nullcontext()

    def _loss_and_gradient(self, number: int, batch: Batch) -> Tensor:
        """The mean loss over all processes; each computes the gradient of its rows, part by part."""
        self.wrapped.train()
        batch = replace(batch, rows=np.arange(len(batch.tokens)))
        total = torch.zeros((), device=self.plan.precision.device)
        parts = batch.split(self.plan.grad_accumulation)
        whole = self._whole_batch(batch, parts, number)
        for index, part in enumerate(parts):
            last = index == len(parts) - 1
            self._seed_dropout(number, index)
            add_gradient = partial(self._add_gradient, predicted=batch.predicted, whole=whole, last=last)
            with self._last(last):
                total += self._in_parts(add_gradient, part)
        return self.data_group.sum(total)

    def _in_parts(self, function: Callable[[Batch], Tensor], batch: Batch) -> Tensor:
        """The sum of a function of a batch over the parts of it that are computed at the same time."""
        own, *others = batch.split(self._at_once)
        threads = torch.get_num_threads()
        computed = [self._pool.submit(_in_threads, threads, function, other) for other in others]
        return sum((each.result() for each in computed), function(own))

    def _add_gradient(self, part: Batch, predicted: int, whole: Mapping[str, Any], last: bool) -> Tensor:
        """Add the gradient of a part of a batch with so many predictions; returns its share of the loss."""
        mine, of_mine = self._mine(part)
        # On the device: a compiler would take a number of Python's for a constant.
        share = torch.tensor(of_mine / max(predicted, 1), device=self.plan.precision.device)
        loss = self._loss(mine, **whole)
        # Gradients become their mean over the processes. A part that knows the whole batch has its whole loss.
        self._backward(loss * (bool(of_mine) if whole else share) * self.data_group.world_size, last)
        return loss.detach() * share

    def _splits_freely(self) -> bool:
        """Whether a step is the same up to rounding however its batch is split, which no engine or compiler does."""
        if self.engine or self.plan.compile or self.plan.precision.device.type != "cpu":
            return False
        parts = list(self.model.modules())
        drops = any(isinstance(part, Dropout) and part.p for part in parts)
        balances = any(isinstance(part, Experts) and part.balance for part in parts)
        return not drops and not balances and not self.wrapped.compares_examples

    def _whole_batch(self, batch: Batch, parts: Sequence[Batch], number: int | None = None) -> dict[str, Any]:
        """Vectors of all examples, for a loss that compares each with all others of a batch in parts.

        Dropout is the same as in the parts that gradients go through; without a step's number nothing is dropped.
        """
        compares = getattr(self.wrapped, "module", self.wrapped).compares_examples
        if not compares or len(parts) * self.data_group.world_size == 1:
            return {}
        device, texts = self.plan.precision.device, len(batch.tokens) // batch.examples
        whole = torch.zeros(batch.examples, texts, self.model.config.d_model, device=device)
        for index, part in enumerate(parts):
            mine, predicted = self._mine(part)
            if number is not None:
                self._seed_dropout(number, index)
            with torch.no_grad():
                vectors = self._loss(mine, return_vectors=True)
            if predicted:
                whole[self._inputs(mine)["slots"]] = vectors
        return {"whole": WholeBatch(self.data_group.sum(whole), torch.from_numpy(batch.targets).to(device))}

    def _seed_dropout(self, number: int, part: int) -> None:
        """Masks are of the rows of a batch, whatever computes them; what torch draws has to differ by itself."""
        is_counted = kernels.is_counted(self.plan.precision.device) and not self.plan.compile
        place = () if is_counted else (part, self.data_group.rank)
        torch.manual_seed(mix_seed(self.plan.seed, _DROPOUT, number, *place) >> 1)

    def _checkpoint(self) -> Callable[..., Any]:
        """The function that calls another, and computes its activations again in the backward pass."""
        return checkpoint

    def _backward(self, loss: Tensor, last: bool) -> None:
        self._scaler.scale(loss).backward()

    def _clip(self) -> Tensor:
        """Shorten the gradient of all processes together; returns how long it was."""
        return clip_grad_norm_(self.model.parameters(), self.plan.grad_clip)

    def _mine(self, batch: Batch) -> tuple[Batch, int]:
        """The examples of this process, and the number of predictions that count.

        A process that has none computes one for nothing, for all must call the model.
        """
        return rows(batch, self.data_group.rank, self.data_group.world_size)

    def _loss(self, batch: Batch, **settings: Any) -> Tensor:
        precision = self.plan.precision
        settings = {"return_logits": False, "label_smoothing": self.plan.label_smoothing, **settings}
        inputs = self._inputs(batch)
        with kernels.counting_rows(inputs.pop("rows", None)), precision.autocast():
            return self.wrapped(**inputs, **settings)

    def _inputs(self, batch: Batch) -> dict[str, Tensor]:
        device = self.plan.precision.device
        if device.type in FIXED_SHAPES:
            batch = padded(batch, self.model.config, self.devices)
        return model_inputs(batch, device)

    def _eager(self) -> AbstractContextManager[object]:
        """Compiling for other shapes, and without gradients, would take longer than it saves."""
        return torch.compiler.set_stance("force_eager") if self.plan.compile else nullcontext()

    def _weights(self) -> dict[str, Tensor]:
        """The trained tensors: this process's share of them."""
        return {name: parameter.data for parameter, name in self._names().items()}

    def _names(self) -> dict[nn.Parameter, str]:
        return {parameter: name for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def _trained_state(self) -> dict[str, Tensor]:
        """The model's state without frozen weights, which are those of the model it was made from."""
        frozen = any(not parameter.requires_grad for parameter in self.model.parameters())
        return self._weights() if frozen else self.model.state_dict()

    def state(self) -> dict[str, Tensor]:
        """This process's share of everything that the next step depends on, by name; not copies."""
        parts = {
            "model": self._trained_state(),
            "optimizer": flatten_state(self.optimizer, self._names()),
            "average": {} if self.plan.average is None else self.plan.average.state(),
            "scaler": {name: torch.tensor(float(value)) for name, value in self._scaler.state_dict().items()},
        }
        return {f"{part}.{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}

    def _load_state(self, state: dict[str, Tensor]) -> None:
        parts: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
        for key, value in state.items():
            part, _, name = key.partition(".")
            parts[part][name] = value
        model, own = parts["model"], self._trained_state()
        absent = [f"it has no {name}" for name in own if name not in model]
        foreign = [f"it has {cut(name)}, which the model has not" for name in model if name not in own]
        if misfit := absent + foreign:
            raise UserError(f"The checkpoint does not hold this run's model: {misfit[0]}.")
        try:
            self.model.load_state_dict(model, strict=False)
        except RuntimeError as error:
            first = " ".join(str(error).split("\n\t")[1:2]) or str(error)
            raise UserError(f"The checkpoint does not hold this run's model: {first}") from error
        load_flat_state(self.optimizer, self._names(), parts["optimizer"])
        if self.plan.average is not None:
            self.plan.average.load_state(parts["average"])
        if scaler := self._scaler.state_dict():
            self._scaler.load_state_dict({name: type(scaler[name])(value) for name, value in parts["scaler"].items()})


class DDP(Strategy):
    """A copy of the model on each process, whose gradients are added up (Li et al. 2020, PyTorch Distributed)."""

    engine = "ddp"

    @override
    def state(self) -> dict[str, Tensor]:
        # All processes have the same.
        return super().state() if self.group.is_main else {}

    @override
    def _wrap(self) -> DistributedDataParallel:
        device, module = self.plan.precision.device, self.plan.loss(self.model)
        if self.model.pooler is not None and isinstance(self.model.head, LanguageModelHead):
            # It is no part of a language model's loss, and to look for such parts takes time, or fails (torch-tpu).
            pooler = set(self.model.pooler.parameters())
            unused = [name for name, parameter in module.named_parameters() if parameter in pooler]
            ignore: Any = DistributedDataParallel._set_params_and_buffers_to_ignore_for_model  # pyright: ignore[reportPrivateUsage]
            ignore(module, unused)
        ids = [device] if device.type in ("cuda", "xpu") else None
        return DistributedDataParallel(module, device_ids=ids, gradient_as_bucket_view=True)

    @override
    def _last(self, last: bool) -> AbstractContextManager[object]:
        return nullcontext() if last else self.wrapped.no_sync()


class Sharded(Strategy):
    """Training of a model whose weights are spread over the processes."""

    _gathered: Transformer | None = None

    @override
    @contextmanager
    def gathered(self) -> Generator[Transformer | None]:
        with self.averaged():
            if self._gathered is None and self.group.is_main:
                self._gathered = like(self.model, build)
            targets = {} if self._gathered is None else self._gathered.state_dict()
            with torch.no_grad():
                for name, tensor in self._full_weights():
                    if name in targets:
                        targets[name].copy_(tensor)
        yield self._gathered

    def _full_weights(self) -> Iterator[tuple[str, Tensor]]:
        """The whole weights one by one; all processes must iterate over them."""
        raise NotImplementedError


def like(model: Transformer, make: Callable[[ModelConfig], Transformer]) -> Transformer:
    """A model that `make` makes of a model's config, with the same adapters."""
    other = make(model.config)
    other.origin = model.origin
    for name, config in model.adapter_configs.items():
        add_adapter(other, config, name)
    return other


def _checkpointed(checkpoint: Callable[..., Any], function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return checkpoint(kernels.keep_counting(function), *args, use_reentrant=False, **kwargs)


def _in_threads(count: int, function: Callable[[Batch], Tensor], part: Batch) -> Tensor:
    """Call a function in another thread of Python, where this number of torch's threads compute it."""
    torch.set_num_threads(count)  # which holds for the calling thread alone
    return function(part)


def rows(batch: Batch, index: int, count: int) -> tuple[Batch, int]:
    """The examples of one of several processes, and the number of predictions that count."""
    parts = batch.split(count)
    return (parts[index], parts[index].predicted) if index < len(parts) else (parts[0], 0)


def model_inputs(batch: Batch, device: torch.device) -> dict[str, Tensor]:
    """The arguments of `Transformer.forward`, whose names are those of a batch's fields."""
    arrays = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return {name: torch.from_numpy(array).to(device) for name, array in arrays.items() if array is not None}


def use_int8(model: nn.Module) -> None:
    """Let the linear layers of the blocks, and the head, train in products of 8-bit integers."""
    for module in model.modules():
        if isinstance(module, LanguageModelHead):
            module.matmul = "int8"
        elif isinstance(module, TransformerBlock):
            for part in module.modules():
                if isinstance(part, Linear):
                    part.matmul = "int8"
