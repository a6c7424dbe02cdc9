"""The dtype of a run's matrix products, and whether to compile. Trained weights and their state stay in float32."""

import math
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor

from anyformer import processes
from anyformer.errors import UserError
from anyformer.fastest_dtype import FLOATS, INT8, TYPICAL, Products, fastest, product_seconds
from anyformer.kernels.cpu import matmul
from anyformer.native import levels

_REPEATS = 8
_LEAST_GAIN = 1.1
"""Ratio of two times that int8 has to reach to be worth its rounding."""

FIXED_SHAPES = ("xla", "tpu")
"""Devices whose compiler makes a program for each shape."""


@dataclass(frozen=True, slots=True)
class Precision:
    """The device and the dtype of a run.

    Attributes:
        dtype: that of the operands of products other than int8.
        int8: linear layers learn by products of 8-bit integers (see `int8`).
    """

    device: torch.device
    dtype: torch.dtype
    reason: str
    int8: bool = False

    def autocast(self) -> AbstractContextManager[object]:
        """torch's autocast in this dtype; nothing for float32."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    @property
    def name(self) -> str:
        """The dtype's name, such as float32 or int8."""
        return INT8 if self.int8 else str(self.dtype).removeprefix("torch.")

    def __str__(self) -> str:
        return f"{self.name} on {self.device} ({self.reason})"


def choose_device(name: str | None, dtype: str | None = None, local_rank: int = 0) -> torch.device:
    """The device of this name, for products in this dtype.

    Args:
        name: such as cpu or cuda; None: an accelerator if there is one.
        dtype: its name; None: any.
        local_rank: the number of the accelerator, where several processes share a machine.

    Raises:
        UserError: there is no such device, or it gains nothing by int8.
    """
    device = _device(name)
    if dtype == INT8:
        _check_int8(device)
    return torch.device("cuda", local_rank) if device == torch.device("cuda") else device


def choose_precision(
    device: torch.device | str | None,
    dtype: str | None,
    products: Callable[[], Products] = lambda: TYPICAL,
    *,
    quantized: bool = False,
) -> Precision:
    """The precision of this dtype on a device, or the fastest one there. A CPU is measured (see `fastest_dtype`).

    Args:
        device: `choose_device`'s, or a name for it.
        dtype: its name; None: the fastest.
        products: called for the products of a step, where they are measured.
        quantized: whether the model's weights are quantized.

    Raises:
        UserError: as `choose_device`.
    """
    device = device if isinstance(device, torch.device) else choose_device(device, dtype)
    if dtype == INT8:
        return _with_int8(device, products())
    if dtype is not None:
        return Precision(device, getattr(torch, dtype), "as asked")
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision(device, torch.bfloat16, "the GPU has bfloat16")
        return Precision(device, torch.float16, "the GPU has no bfloat16")
    if hardware(device) == "tpu":
        return Precision(device, torch.bfloat16, "TPUs multiply in bfloat16")
    if device.type != "cpu":
        return Precision(device, torch.float32, f"the safe choice on {device.type}")
    if quantized:  # casts would take what the few products gain that are not of integers
        return Precision(device, torch.float32, "products with quantized weights are of integers")
    seconds = product_seconds(products())
    return Precision(device, getattr(torch, fastest(seconds)), _gain_of_bfloat16(seconds))


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile has what it needs: a C++ compiler for CPUs, Triton for GPUs; torch-tpu brings its own."""
    if device.type == "tpu":
        return True
    if device.type == "cuda":
        return find_spec("triton") is not None
    return sys.platform != "win32" and any(processes.find(name) for name in ("g++", "clang++", "c++"))


def choose_compilation(compiles: bool | None, device: torch.device, *, distributed: bool = False) -> tuple[bool, str]:
    """Whether to compile the model, and why, for people; None: where it pays.

    Raises:
        UserError: it is to be compiled and can't be.
    """
    if device.type == "xla":
        if compiles:
            raise UserError("--compile is not for --engine xla, which compiles every step anyway: leave it out.")
        return False, "compiled by XLA"
    able = can_compile(device)
    missing = "Triton" if device.type == "cuda" else "C++ compiler"
    if compiles and not able:
        raise UserError(f"--compile needs a {missing}, and none was found here: install one, or leave it out.")
    if compiles is not None:
        return compiles, "compiled, as asked" if compiles else "not compiled, as asked"
    if distributed:
        return False, "not compiled: no gain is proved for several processes"
    if device.type == "cuda" and able:
        return True, "compiled"
    if device.type == "tpu":
        return False, "not compiled: no gain is proved on TPUs"
    return False, "not compiled: it gains little on a CPU" if able else f"not compiled: there is no {missing}"


def peak_flops_per_second(precision: Precision) -> float:
    """Measured FLOPs per second of this machine's matrix products in the run's dtype: the best of several."""
    size = 1024 if hardware(precision.device) in ("cpu", "mps") else 4096
    x = torch.ones(size, size, dtype=torch.int8 if precision.int8 else precision.dtype, device=precision.device)
    product = torch.ops.aten._int_mm if precision.int8 else torch.mm
    times: list[float] = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        _wait_for(product(x, x))
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)


def hardware(device: torch.device) -> str:
    """The type of a device, or of those behind XLA: cpu, cuda, tpu ..."""
    return import_module("torch_xla.runtime").device_type().lower() if device.type == "xla" else device.type


def _wait_for(matrix: Tensor) -> None:
    device, accelerator = matrix.device, torch.accelerator.current_accelerator()
    if device.type == "xla":
        import_module("torch_xla").sync()  # else it would compute no more than the number that is read
        matrix[0, 0].item()
    elif accelerator is not None and accelerator.type == device.type:
        torch.accelerator.synchronize(device)


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # "meta" has no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        if name.startswith("tpu") and find_spec("torch_tpu") is None:
            reason = "torch-tpu is not installed (or there is --engine xla, see docs/tpu.md)"
        raise UserError(f"--device {name} can't be used: {reason}.") from error
    return device


def _check_int8(device: torch.device) -> None:
    """Raises UserError where products of 8-bit integers gain nothing, or can't be computed exactly."""
    if device.type != "cpu":
        raise UserError(f"--dtype int8 is for CPUs, and this run is on {device}: use bfloat16, or leave it out.")
    if not levels.features() & {"avx512vnni", "avxvnni"}:
        raise UserError("--dtype int8 needs a CPU with VNNI instructions, and this one has none: leave it out.")
    if not can_compile(device) and not matmul.supports_int8():
        raise UserError("--dtype int8 needs a C++ compiler, and none was found here: install one, or leave it out.")


def _with_int8(device: torch.device, products: Products) -> Precision:
    """The precision of int8 as it was asked for, with its gain for people, and the fastest dtype for the rest."""
    is_measured = matmul.supports_int8()
    seconds = product_seconds(products, (*FLOATS, INT8) if is_measured else FLOATS)
    rest = fastest(seconds)
    gain = "int8's gain is not measured without compiled code"
    if is_measured:
        ratio = seconds[rest] / seconds.get(INT8, math.inf)
        gain = f"those of int8 {ratio:.1f} times as fast as those of {rest}" if INT8 in seconds else "no fast int8 ones"
        gain += "" if ratio >= _LEAST_GAIN else ": int8 gains nothing here, leave --dtype out"
    return Precision(device, getattr(torch, rest), f"as asked; {_gain_of_bfloat16(seconds)}; {gain}", int8=True)


def _gain_of_bfloat16(seconds: Mapping[str, float]) -> str:
    if "bfloat16" not in seconds:
        return "this CPU has no fast bfloat16 products"
    ratio = seconds["float32"] / seconds["bfloat16"]
    return f"bfloat16 products run {ratio:.1f} times as fast on this CPU"
