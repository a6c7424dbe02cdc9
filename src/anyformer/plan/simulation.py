"""Training steps on tensors without memory, whose storages, products and kernels are counted.

The real model, optimizer and engine run on a CPU's tensors whose storages have sizes and lifetimes, but no memory:
no kernel may run on them. What an operation returns is asked of torch, once for each layout of its arguments.
What depends on the batch alone, such as which tokens are masked, is computed as well, for sizes follow from it.
"""

import math
import weakref
from collections import Counter
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry
from typing_extensions import override

from anyformer.blocks import quantized
from anyformer.kernels import cross_entropy
from anyformer.kernels.cpu import matmul
from anyformer.kernels.cpu.library import intercepted
from anyformer.kernels.operation import OPERATIONS
from anyformer.kernels.packed_weight import PackedWeight, empty_transpose
from anyformer.plan.internals import (
    Layout,
    TorchDispatchMode,
    asks_for_shapes,
    called_by_autograd,
    kind_of,
    layout,
    no_modes,
    results,
    storage_without_memory,
    tensors_of,
    written,
)

PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "batch")
"""Parts of memory. Activations are all that a step computes on its way, temporary tensors among them."""

_MOST_NUMBERS = 1 << 22
"""Data of larger tensors is not remembered."""
_in_chunks, _loss_and_grad_ = cross_entropy.in_chunks, cross_entropy.loss_and_grad_
# Functions of the package have their names.
linear: Any = import_module("anyformer.kernels.linear")
grouped_linear: Any = import_module("anyformer.kernels.grouped_linear")
_each_group = grouped_linear.each_group
_quantized_product = linear.quantized_product
_PLAIN = {Tensor, nn.Parameter}
_ATTENTION_SIZES = ("batch", "heads", "queries", "keys", "head_dim")
_KERNEL_SIZES = {
    "attention": _ATTENTION_SIZES,
    "attention_fp32": _ATTENTION_SIZES,
    "fp32_matmul": ("rows", "columns", "depth"),
    "bf16_matmul": ("rows", "columns", "depth"),
    "int8_matmul": ("rows", "columns", "depth"),
    "quantized_matmul": ("rows", "out_features", "in_features"),
}
"""Sizes of the matrix products of compiled kernels, by the names of their arguments."""


@contextmanager
def replaced(owner: Any, **attributes: Any) -> Generator[None]:
    """Replace attributes of a class or module in this context."""
    before = {name: getattr(owner, name) for name in attributes}
    try:
        for name, value in attributes.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


@dataclass(slots=True)
class Phase:
    """A part of a step.

    Attributes:
        flops: of the step before it.
        peak: bytes when they were most in it, by part.
    """

    name: str
    flops: int
    peak: Counter[str]


@dataclass(slots=True)
class _Block:
    size: int
    part: str


class Simulation(TorchDispatchMode):
    """Counts what happens to tensors while it is running.

    Attributes:
        live: bytes that are allocated, by part.
        phases: since the last restart.
        flops: of matrix products and attention, a multiply-add being two.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live: Counter[str] = Counter()
        self.phases: list[Phase] = []
        self.flops = 0
        self._part = "weights"
        self._most = 0
        self._blocks: dict[int, _Block] = {}
        self._watched: set[int] = set()
        self._resized: dict[int, int] = {}

    @contextmanager
    def running(self) -> Generator[None]:
        """In here no tensor has memory, and all are counted; no kernel runs."""
        size = torch.UntypedStorage.size

        def counted_resize(storage: Any, size: int) -> Any:
            self._release(id(storage))
            self._resize(storage, size)
            self._allocate(storage)
            return storage

        def counted_size(storage: Any) -> int:
            return self._resized.get(id(storage), size(storage))

        # FSDP frees weights in this way, which is no operation that a mode would be told of.
        storages = replaced(torch.UntypedStorage, resize_=counted_resize, size=counted_size)
        transposes = replaced(quantized, transpose=empty_transpose)  # without its many small operations
        # What is computed in many equal parts, one after another, is told by two of them.
        losses = replaced(cross_entropy, in_chunks=self._in_few_chunks, loss_and_grad_=_loss_and_grad_of_few)
        groups = replaced(grouped_linear, each_group=self._few_groups)
        with ExitStack() as contexts:
            for module in (cross_entropy, linear, grouped_linear):
                contexts.enter_context(replaced(module, quantized_product=self._product_of_few))
            for context in (storages, transposes, losses, groups, intercepted(self._kernel), self):
                contexts.enter_context(context)
            yield

    def restart(self) -> None:
        """Forget how much memory there was before, and what was computed."""
        self.phases.clear()
        self.flops = 0
        self.begin("start")

    def begin(self, phase: str, *_: object) -> None:
        """Begin a phase, whose memory is counted by itself. It is called as a hook, too, whose arguments it ignores."""
        self.phases.append(Phase(phase, self.flops, self.live.copy()))
        self._most = self.live.total()

    @contextmanager
    def part(self, name: str) -> Generator[None]:
        """Count allocations in this context, or in the function that it decorates, for a part."""
        before, self._part = self._part, name
        try:
            yield
        finally:
            self._part = before

    def assign(self, name: str, tensors: Iterable[Tensor]) -> None:
        """These tensors turned out to be of a part."""
        for tensor in tensors:
            block = self._blocks.get(id(tensor.untyped_storage()))
            if block is not None:
                self.live[block.part] -= block.size
                self.live[name] += block.size
                block.part = name

    def remember(self, array: npt.NDArray[Any]) -> Tensor:
        """A tensor like an array, whose data is remembered."""
        with no_modes():
            data = torch.from_numpy(array)
        tensor = torch.empty(data.shape, dtype=data.dtype)
        tensor._data = data  # pyright: ignore[reportAttributeAccessIssue]
        return tensor

    @classmethod
    @override
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing here is compiled, and each operation would pay for that

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if asks_for_shapes():
            return func(*args, **kwargs)
        if not _PLAIN.issuperset(types):
            return NotImplemented  # a DTensor: the operations on what this process has of it come here as well
        kind = kind_of(func)
        if kind == "draw" or (kind == "sum" and _is_accumulation(args)):
            return args[0]
        if kind == "indexing":
            args = (args[0], [*self._replaced_indices(args[1])], *args[2:])
        tensors = tensors_of((args, kwargs))
        have_data = bool(tensors) and all(_data(part) is not None for part in tensors)
        if kind == "read":
            if not have_data:
                return 1  # all is finite: training goes well
            with no_modes():
                return _data(tensors[0]).item()  # pyright: ignore[reportOptionalMemberAccess]
        if have_data:
            out = self._computed(func, args, kwargs)
        elif kind == "ours":
            with self:
                out = OPERATIONS[func._opname](*args, **kwargs)
        elif kind == "composite":
            with self:
                return func.decompose(*args, **kwargs)
        else:
            out = self._outputs(func, args, kwargs, tensors)
        if kind == "counted":
            self.flops += flop_registry[func._overloadpacket](*args, **kwargs, out_val=out)
        for part in tensors_of(out):
            self._allocate(part.untyped_storage())
        return out

    def _in_few_chunks(self, x: Tensor, target: Tensor, *rest: Any) -> Any:
        """The loss of two chunks of rows for that of all."""
        rows = 2 * cross_entropy.chunk_rows(len(x), rest[3])
        if rows >= len(target):
            return _in_chunks(x, target, *rest)
        before = self.flops
        loss = _in_chunks(x[:rows], target[:rows], *rest)
        self.flops = before + (self.flops - before) * len(x) // rows
        return loss

    def _product_of_few(self, x: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
        """The product with a few blocks of a quantized weight for that with all, which torch dequantizes one by one."""
        few = weight.blocks(0, 2 * linear.blocks_at_a_time(weight))
        if few.rows == weight.rows or matmul.supports_quantized(x):
            return _quantized_product(x, weight, bias)
        _quantized_product(x, few, None if bias is None else bias[: few.rows])
        self.flops += 2 * x.numel() * (weight.rows - few.rows)
        return x.new_empty(*x.shape[:-1], weight.rows)

    def _few_groups(self, ends: Tensor, count: int) -> Generator[tuple[int, slice]]:
        """The first two groups of rows for all, each of which has a product of its own."""
        groups = [*_each_group(ends, count)]
        few = groups[:2]
        rows = few[-1][1].stop
        before = self.flops
        yield from few if rows else groups
        if rows:
            self.flops = before + (self.flops - before) * count // rows

    def _replaced_indices(self, indices: Iterable[Tensor | None]) -> Generator[Tensor | None]:
        """Indices, masks whose data is remembered as numbers: how many there are decides about sizes."""
        for index in indices:
            mask = None if index is None or index.dtype != torch.bool else _data(index)
            if mask is None:
                yield index
                continue
            with no_modes():
                numbers = mask.numpy().nonzero()
            yield from map(self.remember, numbers)

    def _outputs(self, func: Any, args: Any, kwargs: Any, tensors: Sequence[Tensor]) -> Any:
        if any(each.is_meta for each in tensors):
            return func(*args, **kwargs)
        kind = kind_of(func)
        if kind == "view":
            return func(*args, **kwargs)
        if kind == "communication":  # with other processes, which aren't there
            nothing = tree_map_only(Tensor, lambda tensor: tensor.new_empty(0), (args, kwargs))
            return args[0], *func(*nothing[0], **nothing[1])[1:]
        if func._schema.is_mutable:
            return written(func, args, kwargs)
        return self._results(func, args, kwargs, tensors)

    def _results(self, func: Any, args: Any, kwargs: Any, tensors: Sequence[Tensor]) -> Any:
        """Results of a function that computes something, without data."""
        return results(func, args, kwargs, tensors, self._empty)

    def _empty(self, like: Layout) -> Tensor:
        return torch.empty(0, dtype=like.dtype).set_(storage_without_memory(like.size), 0, like.shape, like.stride)

    def _computed(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Results of a function of tensors whose data is remembered, with theirs."""
        with no_modes():
            real = func(*tree_map_only(Tensor, _data, args), **tree_map_only(Tensor, _data, kwargs))
        if func._schema.is_mutable:
            return args[0]
        sized_by_data = torch.Tag.dynamic_output_shape in func.tags
        if sized_by_data:
            out = tree_map_only(Tensor, lambda tensor: self._empty(layout(tensor)), real)
        else:
            out = self._outputs(func, args, kwargs, tensors_of((args, kwargs)))
        for part, data in zip(tensors_of(out), tensors_of(real), strict=True):
            if data.numel() <= _MOST_NUMBERS:
                part._data = data  # pyright: ignore[reportAttributeAccessIssue]
        return out

    def _resize(self, storage: torch.UntypedStorage, size: int) -> None:
        self._resized[id(storage)] = size

    def _allocate(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        size = self._resized.get(key, storage.nbytes())
        if key not in self._watched:
            self._watched.add(key)
            weakref.finalize(storage, self._gone, key)
        if key in self._blocks or not size:
            return
        self._blocks[key] = _Block(size, self._part)
        self.live[self._part] += size
        if self.phases and (total := self.live.total()) > self._most:
            self._most, self.phases[-1].peak = total, self.live.copy()

    def _release(self, key: int) -> None:
        block = self._blocks.pop(key, None)
        if block is not None:
            self.live[block.part] -= block.size

    def _gone(self, key: int) -> None:
        self._watched.remove(key)
        self._resized.pop(key, None)
        self._release(key)

    def _kernel(self, name: str, arguments: Mapping[str, Any]) -> None:
        """Count the FLOPs of compiled code, which torch's counter can't look into."""
        if name in _KERNEL_SIZES:
            flops = 2 * math.prod(arguments[size] for size in _KERNEL_SIZES[name])
            if "causal" in arguments:
                # Two products forward, five backward, of which one computes the scores again (Dao 2023, section 3.1).
                products = 2 if arguments.get("grad_out") is None else 5
                flops = products * flops // (2 if arguments["causal"] else 1)
            self.flops += flops


def _loss_and_grad_of_few(logits: Tensor, targets: Tensor, label_smoothing: float, grad_scale: Any) -> Tensor:
    """The losses of two parts of the rows for those of all."""
    rows = slice(2 * cross_entropy.rows_at_a_time(logits))
    scale = grad_scale[rows] if isinstance(grad_scale, Tensor) else grad_scale
    _loss_and_grad_(logits[rows], targets[rows], label_smoothing, scale)
    return torch.empty(len(logits))


def _is_accumulation(operands: tuple[Any, ...]) -> bool:
    """Whether autograd adds a gradient to another of the same tensor: into its memory, were no mode entered."""
    first, second = operands
    alike = isinstance(second, Tensor) and first.shape == second.shape and first.dtype == second.dtype
    return alike and first.is_contiguous() and called_by_autograd()


def _data(tensor: Tensor) -> Tensor | None:
    return getattr(tensor, "_data", None)
