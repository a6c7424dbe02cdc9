"""Dropout (Srivastava et al. 2014) by counter-based random numbers (Salmon et al. 2011, Parallel Random Numbers: As
Easy as 1, 2, 3); compiled code on a CPU (see cpu/dropout.cpp).

A number is kept or dropped as a hash of its counter says: of its row in the whole batch, its position and its feature,
or head, query and key. So neither the device nor the way in which a batch is divided changes a mask. A call has a key
of 64 bits from torch's generator on the host. Counters are integers of 64 bits::

    row << 42 | head << 32 | position << 16 | feature, or key
"""

import threading
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from anyformer.kernels.cpu import structs
from anyformer.kernels.cpu.library import Kernel
from anyformer.kernels.layout import DENSE, Layout
from anyformer.kernels.operation import operation

KERNEL = Kernel("dropout", structs.DropoutArgs, "dropout")
_LEVELS = 1 << 32
"""Steps of a probability."""
_ROW, _HEAD, _POSITION = 42, 32, 16
"""Lowest bits of the parts of a counter."""


class _Counting:
    """The counters of a batch: of each row's first token, and which tokens in which layout a stack computes.

    Args:
        queries: Positions of the tokens.
        share: Which of several equal shares of the heads is computed.
    """

    def __init__(
        self,
        rows: Int[Tensor, " batch"],
        queries: Int[Tensor, "#batch time"] | None = None,
        layout: Layout = DENSE,
        share: int = 0,
    ) -> None:
        self.rows, self.queries, self.layout, self.share = rows, queries, layout, share

    @cached_property
    def tokens(self) -> Int[Tensor, "#batch tokens"] | None:
        """The counter of each token that a stack computes."""
        if self.queries is None:
            return None
        return self.layout.gather(self.rows[:, None] + (self.queries << _POSITION))

    @cached_property
    def first_queries(self) -> Int[Tensor, " batch"]:
        """The counter of each row's first query."""
        return self.rows if self.queries is None else self.rows + (self.queries[:, 0] << _POSITION)


class _Local(threading.local):
    """The batch that a thread computes; None: each is a whole one."""

    counting: _Counting | None = None


_local = _Local()


@contextmanager
def _using(counting: _Counting | None) -> Generator[None]:
    before, _local.counting = _local.counting, counting
    try:
        yield
    finally:
        _local.counting = before


def counting_rows(rows: Int[Tensor, " batch"] | None) -> AbstractContextManager[None]:
    """Context in which a batch has these rows of a whole one; None: it is the whole one."""
    return nullcontext() if rows is None else _using(_Counting(rows << _ROW))


def counting_tokens(
    batch: int, queries: Int[Tensor, "#batch time"], layout: Layout = DENSE, *, training: bool = True
) -> AbstractContextManager[None]:
    """Context in which so many rows have tokens at these positions, of which a layout holds some or all."""
    if not training or torch.compiler.is_compiling():
        return nullcontext()
    return _using(_Counting(_rows(batch, queries.device), queries, layout))


def counting_heads(share: int) -> AbstractContextManager[None]:
    """Context in which attention computes one of several equal shares of the heads."""
    counting = _local.counting
    if counting is None:
        return nullcontext()
    return _using(_Counting(counting.rows, counting.queries, counting.layout, share))


def keep_counting(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as it is called here, for what calls it again elsewhere."""
    if torch.compiler.is_compiling() or (counting := _local.counting) is None:
        return function

    def call(*args: Any, **kwargs: Any) -> Any:
        with _using(counting):
            return function(*args, **kwargs)

    return call


def is_counted(device: torch.device) -> bool:
    """Whether masks are made of counters. Elsewhere torch's fused functions draw them: attention that holds no scores,
    and code of torch.compile's, have generators of their own."""
    return device.type in ("cpu", "xla") and not torch.compiler.is_compiling()


def dropout(
    input: Float[Tensor, "*shape"],
    p: float,
    training: bool = True,
    counters: Int[Tensor, "*vectors"] | None = None,
) -> Float[Tensor, "*shape"]:
    """``input * keep / (1 - p)``, where `keep` is 0 with probability p for each number, and 1 otherwise.

    Compiled code stores no mask: it computes the decisions again in the backward pass.

    Args:
        counters: Of the first number of each vector of the last dimension; None: `vector_counters`.
    """
    if not training or p == 0.0:
        return input
    threshold = round(p * _LEVELS)
    if not is_counted(input.device) or threshold == _LEVELS or not input.dim():
        return F.dropout(input, p)
    counters, seed = vector_counters(input) if counters is None else counters, draw()
    if input.is_cpu and input.dtype in structs.DTYPES and KERNEL.supported():
        return compiled_dropout(input, counters, seed, p)
    return input.where(_kept(counters, input.shape[-1], seed, threshold), 0.0) * (_LEVELS / (_LEVELS - threshold))


def dropout_weights(
    weights: Float[Tensor, "batch heads queries keys"], p: float
) -> Float[Tensor, "batch heads queries keys"]:
    """`dropout` of attention's weights."""
    if p == 0.0 or not is_counted(weights.device):
        return dropout(weights, p)
    heads, queries = (torch.arange(size, device=weights.device) for size in weights.shape[1:3])
    first = head_counters(weights)[:, None, None]
    return dropout(weights, p, True, first + (heads[:, None] << _HEAD) + (queries << _POSITION))


def vector_counters(x: Float[Tensor, "*vectors width"]) -> Int[Tensor, "*vectors"]:
    """The counters of vectors: of the tokens that a stack computes, or [batch, ...] of the rows of a batch."""
    counting, shape = _local.counting, x.shape[:-1]
    if counting is not None and (tokens := counting.tokens) is not None and tokens.shape == shape:
        return tokens
    if not shape:
        return torch.zeros(shape, dtype=torch.long, device=x.device)
    return _counters(_rows(shape[0], x.device), shape)


def shared_counters(x: Float[Tensor, "*vectors width"]) -> Int[Tensor, "*vectors"]:
    """The counters of vectors that all rows of a batch share."""
    return _counters(_first_rows(x.shape[0], x.device), x.shape[:-1])


def head_counters(x: Float[Tensor, "batch heads queries width"]) -> Int[Tensor, " batch"]:
    """The counters of each row's first query in the first head."""
    counting, (batch, heads) = _local.counting, x.shape[:2]
    if counting is None or len(counting.rows) != batch:
        return _first_rows(batch, x.device)
    return counting.first_queries + (counting.share * heads << _HEAD) if counting.share else counting.first_queries


def draw() -> Tensor:
    """64 random bits, of torch's generator on the host."""
    return torch.empty(1, dtype=torch.int64).random_(-(1 << 63), None)


def _rows(batch: int, device: torch.device) -> Int[Tensor, " batch"]:
    counting = _local.counting
    return counting.rows if counting is not None and len(counting.rows) == batch else _first_rows(batch, device)


def _first_rows(batch: int, device: torch.device) -> Int[Tensor, " batch"]:
    return torch.arange(batch, device=device) << _ROW


def _counters(rows: Tensor, shape: torch.Size) -> Int[Tensor, "*vectors"]:
    positions = torch.arange(shape[1:].numel(), device=rows.device) << _POSITION
    return (rows[:, None] + positions).view(shape)


def _kept(
    counters: Int[Tensor, "*vectors"], width: int, seed: Tensor, threshold: int
) -> Bool[Tensor, "*vectors {width}"]:
    """Whether each number is kept: the equation of `is_kept` in cpu/random.h."""
    first, second = seed.view(torch.int32).to(counters.device)
    plane, index = (counters >> 32).to(torch.int32)[..., None] * 2, counters.to(torch.int32)[..., None]
    keys = _random(plane, first, second), _random(plane + 1, first, second)
    bits = _random(index + torch.arange(width, dtype=torch.int32, device=index.device), *keys)
    return bits.bitwise_xor_(-(1 << 31)) >= threshold - (1 << 31)  # there are no unsigned numbers to compare


def _random(index: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """`random` of cpu/random.h, in integers that have a sign, which PyTorch/XLA shifts by rounding towards 0."""
    x = index + first
    x ^= (x & -1 << 16) >> 16 & 0xFFFF
    x *= 0x7FEB352D
    x += second
    x ^= (x & -1 << 15) >> 15 & 0x1FFFF
    x *= 0x846CA68B - (1 << 32)
    x ^= (x & -1 << 16) >> 16 & 0xFFFF
    return x


@operation("dropout")
def compiled_dropout(x: Tensor, counters: Tensor, seed: Tensor, p: float) -> Tensor:
    """``x * keep / (1 - p)``, where `keep` is a function of the seed, a number of 64 bits, and the counters."""
    x, threshold = x.contiguous(), round(p * _LEVELS)
    out = torch.empty_like(x)
    sizes = {"dtype": structs.DTYPES[x.dtype], "count": x.numel(), "width": x.shape[-1], "threshold": threshold}
    scale = _LEVELS / (_LEVELS - threshold)
    KERNEL.run(x=x, out=out, counters=counters.contiguous(), seed=seed, scale=scale, **sizes)
    return out


compiled_dropout.register_autograd(compiled_dropout.function, saved=lambda inputs, _, __: inputs[1:])
