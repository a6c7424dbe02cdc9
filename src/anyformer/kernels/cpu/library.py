"""Libraries with one operation each, whose arguments are a structure."""

import ctypes
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from ctypes import c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from anyformer.kernels.autocast import matmul_dtype
from anyformer.kernels.cpu.build import Library
from anyformer.kernels.cpu.structs import DTYPES, MatmulArgs, address
from anyformer.kernels.cpu_features import enabled, has_avx512_bf16
from anyformer.kernels.operation import constant_result

_interceptor: ContextVar[Callable[[str, Mapping[str, Any]], None] | None] = ContextVar("interceptor", default=None)


@contextmanager
def intercepted(interceptor: Callable[[str, Mapping[str, Any]], None]) -> Generator[None]:
    """In here no kernel runs: each call allocates its workspace, and the interceptor gets its name and arguments."""
    token = _interceptor.set(interceptor)
    try:
        yield
    finally:
        _interceptor.reset(token)


def is_intercepted() -> bool:
    """Whether no kernel runs, as tensors have no memory."""
    return _interceptor.get() is not None


def was_intercepted(name: str, arguments: Mapping[str, Any]) -> bool:
    """Whether a kernel must not run; then the interceptor has been told of it."""
    interceptor = _interceptor.get()
    if interceptor is None:
        return False
    interceptor(name, arguments)
    return True


class Kernel(Library):
    """A library that exports `supported`, `workspace_size` and `run`, which takes a structure of arguments."""

    def __init__(self, name: str, arguments: type[ctypes.Structure]) -> None:
        super().__init__(name, supported=(c_int64,), workspace_size=(c_int64, c_void_p), run=(None, c_void_p, c_void_p))
        self._arguments = arguments
        self._types: dict[str, Any] = {name: kind for name, kind, *_ in arguments._fields_}

    @constant_result
    def supported(self) -> bool:
        """Whether it is compiled, and this processor has its instructions.

        It waits for the compiler, so that results, which differ from torch's by rounding, do not change during a run.
        """
        library: Any = self.get(wait=True)
        return library is not None and library.supported() > 0

    def run(self, **arguments: Tensor | float | None) -> None:
        """Run it with torch's number of threads, in a workspace of its own.

        On tensors without memory nothing is done, unless it is `intercepted`.
        """
        if not is_intercepted() and any(isinstance(value, FakeTensor) for value in arguments.values()):
            return
        values: dict[str, Any] = {"num_threads": torch.get_num_threads()}
        for name, value in arguments.items():
            kind = self._types[name]
            is_tensor = isinstance(value, Tensor)
            values[name] = value if not is_tensor else address(value) if kind is c_void_p else kind.of(value)
        library: Any = self.get(wait=True)
        struct = self._arguments(**values)
        workspace = torch.empty(library.workspace_size(ctypes.addressof(struct)), dtype=torch.uint8)
        if not was_intercepted(self._name, arguments):
            library.run(ctypes.addressof(struct), workspace.data_ptr())


class MatmulKernel(Kernel):
    """A library that computes ``left @ right.T + bias``."""

    def __init__(self, name: str) -> None:
        super().__init__(name, MatmulArgs)

    def multiply(
        self,
        left: Tensor,
        right: Tensor,
        bias: Tensor | None,
        out: Tensor,
        sums: Tensor | None,
        *,
        add: bool,
        stochastic: bool = False,
    ) -> Tensor:
        """Run it on operands of any strides; returns `out`."""
        left, right = (side if 1 in side.stride() else side.contiguous() for side in (left, right))
        self.run(
            left=left,
            right=right,
            rows=len(left),
            columns=len(right),
            depth=left.shape[1],
            bias=None if bias is None else bias.float().contiguous(),
            row_sums=sums,
            out=out,
            dtype=DTYPES[out.dtype],
            accumulate=add,
            stochastic_rounding=stochastic,
        )
        return out


def supports_bf16(x: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether the bfloat16 kernels for training may be used, which need AVX-512's dot products.

    Args:
        x: The input of the operation.
        dtype: The dtype to compute in; None: autocast's, or that of x.
    """
    return x.device.type == "cpu" and (dtype or matmul_dtype(x)) == torch.bfloat16 and _has_avx512_bf16()


@constant_result
def _has_avx512_bf16() -> bool:
    return enabled() and has_avx512_bf16()
