"""Training steps on tensors without memory, whose storages, products and kernels are counted.

The real model, optimizer and engine run on a CPU's tensors whose storages have sizes and lifetimes, but no memory:
no kernel may run on them. What an operation returns is asked of torch's fake tensors, once for each of its layouts.
What depends on the batch alone, such as which tokens are masked, is computed as well, for sizes follow from it.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
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
from anyformer.kernels.packed_weight import PackedWeight, empty_transpose, transpose
from anyformer.plan.internals import (
    TorchDispatchMode,
    asks_for_shapes,
    called_by_autograd,
    has_cpu_kernel,
    no_modes,
    storage_without_memory,
)
from anyformer.plan.tensor_layout import Layout, layout, results, returns_view, tensors_of, written

PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "batch")
"""Parts of memory. Activations are all that a step computes on its way, temporary tensors among them."""

_KNOWN_NUMBERS = 1 << 22
"""Larger tensors of the batch's making are not computed."""
_aten = torch.ops.aten
linear: Any = import_module("anyformer.kernels.linear")  # where a function of the package has its name
_in_chunks, _loss_and_grad_ = cross_entropy.in_chunks, cross_entropy.loss_and_grad_
_quantized_product = linear.quantized_product
_READS = {_aten._local_scalar_dense.default, _aten.item.default, _aten.is_nonzero.default}
_INDEXING = {_aten.index.Tensor, _aten.index_put.default, _aten._index_put_impl_.default}
_DRAWS = {"uniform_", "normal_", "random_", "bernoulli_"}


@dataclass(slots=True)
class Phase:
    """A part of a step.

    Attributes:
        name: tells it from others.
        begin: bytes that are allocated when it begins, by part.
        flops: of the step before it.
        peak: bytes when they were most in it, by part.
    """

    name: str
    begin: Counter[str]
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
        resize, size = torch.UntypedStorage.resize_, torch.UntypedStorage.size

        def counted_resize(storage: Any, size: int) -> Any:
            self._release(id(storage))
            self._resize(storage, size)
            self._allocate(storage)
            return storage

        def counted_size(storage: Any) -> int:
            return self._resized.get(id(storage), size(storage))

        # FSDP frees weights in this way, which is no operation that a mode would be told of.
        torch.UntypedStorage.resize_ = counted_resize  # pyright: ignore[reportAttributeAccessIssue]
        torch.UntypedStorage.size = counted_size  # pyright: ignore[reportAttributeAccessIssue]
        cross_entropy.in_chunks, cross_entropy.loss_and_grad_ = self._in_few_chunks, _loss_and_grad_of_few
        cross_entropy.quantized_product = linear.quantized_product = self._quantized_product_of_few
        quantized.transpose = empty_transpose
        try:
            with intercepted(self._kernel), self:
                yield
        finally:
            torch.UntypedStorage.resize_, torch.UntypedStorage.size = resize, size
            cross_entropy.in_chunks, cross_entropy.loss_and_grad_ = _in_chunks, _loss_and_grad_
            cross_entropy.quantized_product = linear.quantized_product = _quantized_product
            quantized.transpose = transpose

    def restart(self) -> None:
        """Forget how much memory there was before, and what was computed."""
        self.phases.clear()
        self.flops = 0
        self.begin("start")

    def begin(self, phase: str) -> None:
        """Begin a phase, whose memory is counted by itself."""
        self.phases.append(Phase(phase, self.live.copy(), self.flops, self.live.copy()))
        self._most = self.live.total()

    @contextmanager
    def part(self, name: str) -> Generator[None]:
        """Count allocations in this context for a part."""
        before, self._part = self._part, name
        try:
            yield
        finally:
            self._part = before

    def within(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, all of whose allocations are for a part."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return counted

    def assign(self, name: str, tensors: Iterable[Tensor]) -> None:
        """These tensors turned out to be of a part."""
        for tensor in tensors:
            block = self._blocks.get(id(tensor.untyped_storage()))
            if block is not None:
                self.live[block.part] -= block.size
                self.live[name] += block.size
                block.part = name

    def sizes(self, tensors: Iterable[Tensor]) -> Counter[str]:
        """Bytes of these tensors' storages, by part."""
        blocks = (self._blocks.get(key) for key in {id(tensor.untyped_storage()) for tensor in tensors})
        found = Counter[str]()
        for block in blocks:
            if block is not None:
                found[block.part] += block.size
        return found

    def known(self, array: npt.NDArray[Any]) -> Tensor:
        """A tensor like an array, whose data is remembered."""
        with no_modes():
            value = torch.from_numpy(array)
        tensor = torch.empty(value.shape, dtype=value.dtype)
        tensor._known = value  # pyright: ignore[reportAttributeAccessIssue]
        return tensor

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if asks_for_shapes():
            return func(*args, **kwargs)
        if not all(kind in (Tensor, nn.Parameter) for kind in types):
            return NotImplemented  # a DTensor: the operations on what this process has of it come here as well
        name = func._schema.name.partition("::")[2]
        if name in _DRAWS:
            return args[0]
        if func is _aten.add.Tensor and _is_accumulation(args):
            return args[0]
        if func in _INDEXING:
            args = (args[0], [*self._replaced_indices(args[1])], *args[2:])
        values = [_value(part) for part in tensors_of((args, kwargs))]
        is_known = bool(values) and all(value is not None for value in values)
        if func in _READS:
            if not is_known:
                return 1  # all is finite: training goes well
            with no_modes():
                return values[0].item()  # pyright: ignore[reportOptionalMemberAccess]
        if is_known:
            out = self._computed(func, args, kwargs)
        elif func.namespace == "anyformer" and name in OPERATIONS:
            with self:
                out = OPERATIONS[name](*args, **kwargs)
        else:
            out = self._parts_of(func, args, kwargs)
            if out is not NotImplemented:
                return out
            out = self._outputs(func, args, kwargs)
        if func._overloadpacket in flop_registry:
            self.flops += flop_registry[func._overloadpacket](*args, **kwargs, out_val=out)
        for part in tensors_of(out):
            self._allocate(part.untyped_storage())
        return out

    def _in_few_chunks(self, x: Tensor, target: Tensor, *given: Any) -> Any:
        """The loss of all rows, of which two chunks tell what all take: they are computed one after another."""
        rows = 2 * cross_entropy.chunk_rows(len(x), given[-2])
        if rows >= len(target):
            return _in_chunks(x, target, *given)
        before = self.flops
        found = _in_chunks(x[:rows], target[:rows], *given)
        self.flops = before + (self.flops - before) * len(x) // rows
        return found

    def _quantized_product_of_few(self, x: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
        """The product with a weight, a few blocks of which tell what all take: one is dequantized after the other."""
        few = weight.blocks(0, 2 * linear.blocks_at_a_time(weight))
        if few.rows == weight.rows or matmul.supports_quantized(x):
            return _quantized_product(x, weight, bias)
        _quantized_product(x, few, None if bias is None else bias[: few.rows])
        self.flops += 2 * x.numel() * (weight.rows - few.rows)
        return x.new_empty(*x.shape[:-1], weight.rows)

    def _replaced_indices(self, indices: Iterable[Tensor | None]) -> Generator[Tensor | None]:
        """Indices, those of known masks as numbers: how many there are decides about sizes."""
        for index in indices:
            value = None if index is None or index.dtype != torch.bool else _value(index)
            if value is None:
                yield index
                continue
            with no_modes():
                places = value.numpy().nonzero()
            for numbers in places:
                yield self.known(numbers)

    def _outputs(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Results of a function, without data."""
        tensors = [*tensors_of((args, kwargs))]
        if returns_view(func) or func.namespace == "profiler" or any(each.is_meta for each in tensors):
            return func(*args, **kwargs)
        if func.namespace == "c10d":  # other processes, which aren't there
            nothing = tree_map_only(Tensor, lambda tensor: tensor.new_empty(0), (args, kwargs))
            return args[0], *func(*nothing[0], **nothing[1])[1:]
        if func._schema.is_mutable:
            return written(func, args, kwargs)
        return self._results(func, args, kwargs, tensors)

    def _results(self, func: Any, args: Any, kwargs: Any, tensors: Sequence[Tensor]) -> Any:
        """Results of a function that computes something, without data."""
        return results(func, args, kwargs, tensors, self._empty)

    def _empty(self, found: Layout) -> Tensor:
        """A tensor of a layout, without memory."""
        return torch.empty(0, dtype=found.dtype).set_(storage_without_memory(found.size), 0, found.shape, found.stride)

    def _parts_of(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Results of a function made of others, which are counted; NotImplemented: it is none."""
        if func._overloadpacket in flop_registry or func.namespace == "prim" or has_cpu_kernel(func.name()):
            return NotImplemented
        with self:
            return func.decompose(*args, **kwargs)

    def _computed(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Known results of a function of known tensors."""
        with no_modes():
            real = func(*tree_map_only(Tensor, _value, args), **tree_map_only(Tensor, _value, kwargs))
        if func._schema.is_mutable:
            return args[0]
        sized_by_data = torch.Tag.dynamic_output_shape in func.tags
        out = tree_map_only(Tensor, self._like, real) if sized_by_data else self._outputs(func, args, kwargs)
        for part, value in zip(tensors_of(out), tensors_of(real), strict=True):
            if value.numel() <= _KNOWN_NUMBERS:
                part._known = value  # pyright: ignore[reportAttributeAccessIssue]
        return out

    def _like(self, tensor: Tensor) -> Tensor:
        return self._empty(layout(tensor))

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
        self.flops += _KERNEL_FLOPS.get(name, _no_flops)(**arguments)


def _loss_and_grad_of_few(logits: Tensor, targets: Tensor, label_smoothing: float, grad_scale: Any) -> Tensor:
    """The losses of many rows, a few of which tell what all take: they are computed one chunk after the other."""
    rows = slice(2 * cross_entropy.rows_at_a_time(logits))
    scale = grad_scale[rows] if isinstance(grad_scale, Tensor) else grad_scale
    _loss_and_grad_(logits[rows], targets[rows], label_smoothing, scale)
    return torch.empty(len(logits))


def _is_accumulation(operands: tuple[Any, ...]) -> bool:
    """Whether autograd adds a gradient to another of the same tensor: into its memory, were no mode entered."""
    first, second = operands
    alike = isinstance(second, Tensor) and first.shape == second.shape and first.dtype == second.dtype
    return alike and first.is_contiguous() and called_by_autograd()


def _value(tensor: Tensor) -> Tensor | None:
    return getattr(tensor, "_known", None)


def _attention_flops(
    *,
    batch: int,
    heads: int,
    queries: int,
    keys: int,
    head_dim: int,
    causal: bool,
    grad_out: Tensor | None = None,
    **_: Any,
) -> int:
    """Two products forward, five backward, of which one computes the scores again (Dao 2023, section 3.1)."""
    products = 2 if grad_out is None else 5
    scores = batch * heads * queries * keys
    return products * 2 * scores * head_dim // (2 if causal else 1)


def _matmul_flops(*, rows: int, columns: int, depth: int, **_: Any) -> int:
    return 2 * rows * columns * depth


def _linear_flops(*, rows: int, out_features: int, in_features: int, **_: Any) -> int:
    return 2 * rows * out_features * in_features


def _no_flops(**_: Any) -> int:
    return 0


_KERNEL_FLOPS: dict[str, Callable[..., int]] = {
    "attention": _attention_flops,
    "attention_fp32": _attention_flops,
    "bf16_matmul": _matmul_flops,
    "int8_matmul": _matmul_flops,
    "quantized_matmul": _linear_flops,
}
"""FLOPs of compiled code, which torch's counter can't look into."""
