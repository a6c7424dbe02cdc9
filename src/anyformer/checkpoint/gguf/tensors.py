"""Tensors of a GGUF file: floating point, or the integers, scales and minima of a quantized one; read and written."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anyformer.checkpoint.gguf.container import NAMED, Container, TensorType
from anyformer.errors import UserError, nearest
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
    gguf = package(f"{container.path} has quantized weights, and reading them")
    try:
        with np.errstate(all="ignore"):  # scales that are no numbers make weights that are none
            values = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType(info.type.number))
    except (NotImplementedError, ValueError) as error:
        raise UserError(
            f"{container.path}: {name} is stored as {info.type.name}, which can't be turned into floating point."
        ) from error
    return torch.from_numpy(cast("NDArray[np.float32]", values)).reshape(info.shape)


def quantized(container: Container, name: str) -> QuantizedWeight | None:
    """A matrix, or a stack of them, of one of the `QUANTIZED` types, as stored; None for any other tensor. A copy.

    In a block of 4 bits as in ours, byte j holds weight j in its low bits and weight j + 16 in its high ones.
    """
    info = container.tensors[name]
    kind = info.type.name
    if kind not in QUANTIZED or len(info.shape) not in (2, 3):
        return None
    blocks = container.blocks(name).reshape(*info.shape[:-1], -1, info.type.bytes)
    header = 4 if kind == "Q4_1" else 2
    numbers = torch.from_numpy(blocks[..., :header].copy()).view(torch.float16)
    integers = torch.from_numpy(blocks[..., header:].copy()).flatten(-2)
    scales = numbers[..., 0].contiguous()
    if kind == "Q8_0":
        return QuantizedWeight(integers.view(torch.int8), scales, None)
    minima = numbers[..., 1].contiguous() if kind == "Q4_1" else -8 * scales
    return None if minima.isinf().any() else QuantizedWeight(integers, scales, minima)


def package(purpose: str) -> Any:
    """The package gguf. Raises UserError where it is not installed, saying what needs it."""
    try:
        import gguf
    except ImportError as error:
        raise UserError(f"{purpose} needs a package that is not installed: pip install 'anyformer[gguf]'.") from error
    return gguf


FORMATS = {name.lower(): NAMED[name] for name in ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")}
"""Types that a file can be written in, K-quants excepted: llama.cpp's quantizer makes those from F16 or F32."""

_EXACT = ("position_embd.weight", "token_types.weight", "attn_rel_b.weight", "ffn_gate_inp.weight")
"""Small tables that llama.cpp adds or reads as they are, and routers, whose choice rounding would change."""
_OUTER = ("token_embd.weight", "output.weight")
_AT_ONCE = 2**22
"""Weights that are quantized at once: the quantizer needs several times their room."""
_LARGEST_F16 = 65504.0


def format_named(name: str) -> TensorType:
    """The format of this name, such as q8_0. Raises UserError for one that can't be written."""
    if name not in FORMATS:
        raise UserError(f"There is no type {name!r} to convert to ({nearest(name, FORMATS)}).")
    return FORMATS[name]


def stored_as(name: str, shape: Sequence[int], file_type: TensorType) -> TensorType:
    """The format of one tensor in a file of this type.

    Vectors, biases of experts and small tables stay F32. Where weights get fewer than 8 bits, the token table and the
    head, on which quality hangs most, get 8; rows that are no whole number of blocks fall back to F16.
    """
    if len(shape) < 2 or name.endswith((*_EXACT, ".bias")):
        return NAMED["F32"]
    if file_type.block > 1 and shape[-1] % file_type.block:
        return NAMED["F16"]
    return NAMED["Q8_0"] if file_type.block > 1 and name in _OUTER else file_type


def encode(name: str, tensor: Tensor, kind: TensorType) -> NDArray[Any]:
    """The bytes of a tensor in this format, [..., bytes of a row]; F32 and F16 as numbers.

    Raises:
        UserError: a number too large for F16.
    """
    if kind.name == "F32":
        return cast("NDArray[np.float32]", tensor.float().contiguous().numpy())
    if kind.name == "F16":
        if tensor.numel() and float(tensor.abs().max()) > _LARGEST_F16:
            raise UserError(f"The weight {name} has numbers too large for f16: convert with --type bf16 or f32.")
        return cast("NDArray[np.float16]", tensor.half().contiguous().numpy())
    if kind.name == "BF16":
        return cast("NDArray[np.uint8]", tensor.bfloat16().contiguous().view(torch.uint8).numpy())
    import gguf

    rows = tensor.reshape(-1, tensor.shape[-1])
    quantized = np.empty((rows.shape[0], rows.shape[1] // kind.block * kind.bytes), dtype=np.uint8)
    step = max(1, _AT_ONCE // rows.shape[1])
    for start in range(0, rows.shape[0], step):
        part = rows[start : start + step].float().numpy()
        quantized[start : start + step] = gguf.quantize(part, gguf.GGMLQuantizationType(kind.number))
    return quantized.reshape(*tensor.shape[:-1], -1)
