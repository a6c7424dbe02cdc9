"""Tensors of a GGUF file: as floats, or as the integers, scales and minima that a quantized one is stored as."""

from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anyformer.checkpoint.gguf.container import Container
from anyformer.errors import UserError

_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
GROUPED = {"Q8_0": 8, "Q4_0": 4, "Q4_1": 4}
"""Formats that `grouped` reads, and the bits of their integers."""
GROUP = 32


class Grouped(NamedTuple):
    """A quantized matrix: ``weight = code * scale + minimum``, with a scale for every 32 neighbors in a row."""

    codes: Tensor
    """[rows, columns]: int8 in Q8_0, uint8 of 0 to 15 in Q4_0 and Q4_1."""
    scales: Tensor
    """[rows, columns / 32], float16."""
    minima: Tensor | None
    """[rows, columns / 32], float16; None in Q8_0, where all are 0."""


def stored_format(container: Container, name: str) -> torch.dtype:
    """The number format that `dense` gives: as stored, float32 for what is quantized."""
    return _PLAIN.get(container.tensors[name].type.name, torch.float32)


def dense(container: Container, name: str) -> Tensor:
    """One tensor in floating point; a copy, which does not hold on to the file.

    Raises:
        UserError: a format that can't be turned into floats, or the package that does it is not installed.
    """
    info = container.tensors[name]
    blocks = container.blocks(name)
    if info.type.name in _PLAIN:
        return torch.from_numpy(blocks.reshape(-1).copy()).view(_PLAIN[info.type.name]).reshape(info.shape)
    gguf = _package(container)
    try:
        with np.errstate(all="ignore"):  # scales that are no numbers make weights that are none
            values = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType(info.type.number))
    except (NotImplementedError, ValueError) as error:
        raise UserError(
            f"{container.path}: {name} is stored as {info.type.name}, which can't be turned into floating point."
        ) from error
    return torch.from_numpy(cast("NDArray[np.float32]", values)).reshape(info.shape)


def grouped(container: Container, name: str) -> Grouped:
    """The integers, scales and minima of a matrix in one of the `GROUPED` formats; copies, rows as in the file.

    The rows of a `llama` file's queries and keys are in its own order: the operation of the tensor's row in the table
    of names moves the rows of all three as it does those of the weight.

    Raises:
        UserError: the tensor is in another format.
    """
    info = container.tensors[name]
    kind = info.type.name
    if kind not in GROUPED:
        raise UserError(f"{container.path}: {name} is stored as {kind}, not as one of {', '.join(GROUPED)}.")
    blocks = torch.from_numpy(container.blocks(name).copy()).view(-1, info.shape[-1] // GROUP, info.type.bytes)
    heads = 4 if kind == "Q4_1" else 2
    halves, packed = blocks[..., :heads].contiguous().view(torch.float16), blocks[..., heads:]
    scales = halves[..., 0].contiguous()
    if kind == "Q8_0":
        return Grouped(packed.contiguous().view(torch.int8).flatten(1), scales, None)
    # A byte holds the weight of its own place in the low bits, and that 16 places further in the high ones.
    codes = torch.cat([packed & 15, packed >> 4], dim=-1).flatten(1)
    return Grouped(codes, scales, halves[..., 1].contiguous() if kind == "Q4_1" else -8 * scales)


def _package(container: Container) -> Any:
    try:
        import gguf
    except ImportError as error:
        raise UserError(
            f"{container.path} has quantized weights, and reading them needs a package that is not installed: "
            "pip install 'anyformer[gguf]'."
        ) from error
    return gguf
