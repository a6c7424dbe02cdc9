"""Tensors of a GGUF file: in floating point, or as the integers, scales and minima of a quantized one."""

from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anyformer.checkpoint.gguf.container import Container
from anyformer.errors import UserError
from anyformer.kernels.quantization import QuantizedWeight

_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
QUANTIZED = ("Q8_0", "Q4_0", "Q4_1")
"""Types that `quantized` reads: those whose blocks are groups of ours."""


def stored_dtype(container: Container, name: str) -> torch.dtype:
    """The dtype that `dense` gives: as stored, float32 for what is quantized."""
    return _FLOATS.get(container.tensors[name].type.name, torch.float32)


def dense(container: Container, name: str) -> Tensor:
    """One tensor in floating point; a copy, which does not hold on to the file.

    Raises:
        UserError: a format that can't be turned into floats, or the package that does it is not installed.
    """
    info = container.tensors[name]
    blocks = container.blocks(name)
    if info.type.name in _FLOATS:
        return torch.from_numpy(blocks.reshape(-1).copy()).view(_FLOATS[info.type.name]).reshape(info.shape)
    gguf = _package(container)
    try:
        with np.errstate(all="ignore"):  # scales that are no numbers make weights that are none
            values = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType(info.type.number))
    except (NotImplementedError, ValueError) as error:
        raise UserError(
            f"{container.path}: {name} is stored as {info.type.name}, which can't be turned into floating point."
        ) from error
    return torch.from_numpy(cast("NDArray[np.float32]", values)).reshape(info.shape)


def quantized(container: Container, name: str) -> QuantizedWeight | None:
    """A matrix of one of the `QUANTIZED` types, as it is stored; None for any other tensor. A copy.

    In a block of 4 bits as in ours, byte j holds weight j in its low bits and weight j + 16 in its high ones.
    """
    info = container.tensors[name]
    kind = info.type.name
    if kind not in QUANTIZED or len(info.shape) != 2:
        return None
    blocks = torch.from_numpy(container.blocks(name).copy()).view(info.shape[0], -1, info.type.bytes)
    header = 4 if kind == "Q4_1" else 2
    numbers, integers = blocks[..., :header].contiguous().view(torch.float16), blocks[..., header:].flatten(1)
    scales = numbers[..., 0].contiguous()
    if kind == "Q8_0":
        return QuantizedWeight(integers.view(torch.int8), scales, None)
    minima = numbers[..., 1].contiguous() if kind == "Q4_1" else -8 * scales
    return None if minima.isinf().any() else QuantizedWeight(integers, scales, minima)


def _package(container: Container) -> Any:
    try:
        import gguf
    except ImportError as error:
        raise UserError(
            f"{container.path} has quantized weights, and reading them needs a package that is not installed: "
            "pip install 'anyformer[gguf]'."
        ) from error
    return gguf
