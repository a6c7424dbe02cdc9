"""Experts in MXFP4, as gpt-oss publishes them: 4 bits a weight, and a power of two for every 32 neighbors in a row.

Source: OCP Microscaling Formats (MX) 1.0, sections 5.3.3 (E2M1) and 5.4.1 (E8M0).

The values 0, 0.5, 1, 1.5, 2, 3, 4, 6 are not evenly spaced, as our integers of 4 bits are. Twice a value is an integer
of 8 bits: int8 keeps the weights of a file as they are, and int4 rounds them once more.
"""

from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor
from typing_extensions import override

from anyformer.checkpoint.sources import SafetensorsSource
from anyformer.errors import UserError
from anyformer.families import own
from anyformer.kernels.quantization import GROUP, QuantizedWeight

METHOD = "mxfp4"
_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
_BYTES = GROUP // 2
_TWICE = torch.tensor([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], dtype=torch.int8)
"""Twice the value of each code."""
_PAIRS = torch.stack((_TWICE.repeat(16), _TWICE.repeat_interleave(16)), dim=1).view(torch.int16)[:, 0]
"""The two of each byte, the low bits first, as one number."""
_POWERS = torch.tensor([2.0 ** (code - 128) for code in range(256)])
"""Half the power of two of each scale."""
_NOT_A_NUMBER = 255


class MXFP4Source(SafetensorsSource):
    """A directory whose experts are stored as ``X_blocks`` [experts, out, in / 32, 16] and ``X_scales`` [experts, out,
    in / 32] in the place of X [experts, in, out].

    It computes in the dtype of its other weights.
    """

    def __init__(self, path: Path, raw: Mapping[str, Any]) -> None:
        super().__init__(path, own.without_quantization(raw))
        packed = {name.removesuffix("_blocks") for name in self._stored if name.endswith("_blocks")}
        parts = {f"{name}_{part}" for name in packed for part in ("blocks", "scales")}
        plain = [name for name in self._stored if name not in parts]
        self.names = [*plain, *packed]
        files = [self._stored[name] for name in plain]
        stored = {str(self._open(file).get_slice(name).get_dtype()) for file, name in files}
        self.dtype = reduce(torch.promote_types, (_DTYPES.get(name, torch.float32) for name in stored), torch.bfloat16)

    @override
    def read(self, name: str) -> Tensor | QuantizedWeight:
        if name in self._stored:
            return self._read(name)
        if f"{name}_scales" not in self._stored:
            raise UserError(f"{self.path}: the weight {name}_scales is missing.")
        blocks, scales = self._read(f"{name}_blocks"), self._read(f"{name}_scales")
        are_bytes = {blocks.dtype, scales.dtype} == {torch.uint8}
        if not are_bytes or scales.dim() != 3 or blocks.shape != (*scales.shape, _BYTES):
            shapes = f"{list(blocks.shape)} and {list(scales.shape)}"
            raise UserError(f"{self.path}: the blocks and scales of {name} don't fit each other ({shapes}).")
        if (scales == _NOT_A_NUMBER).any():
            raise UserError(f"{self.path}: the weight {name} has numbers that are not finite.")
        return decode(blocks, scales)


def decode(
    blocks: UInt8[Tensor, "experts outputs groups 16"], scales: UInt8[Tensor, "experts outputs groups"]
) -> Tensor | QuantizedWeight:
    """The matrices [experts, in, out], as integers of 8 bits along `in`; in float32 where a scale exceeds float16."""
    integers = torch.empty(*scales.shape[:2], scales.shape[2] * GROUP, dtype=torch.int8)
    for one, block in zip(integers, blocks, strict=True):  # a lookup takes an index of four bytes for each byte
        one.copy_(_PAIRS[block.flatten(1).int()].view(torch.int8))
    powers = _POWERS[scales.int()]
    halves = powers.half()
    if torch.equal(halves.float(), powers):
        return QuantizedWeight(integers.mT, halves.mT, None)
    return (integers.float().unflatten(2, (-1, GROUP)) * powers[..., None]).flatten(2).mT
