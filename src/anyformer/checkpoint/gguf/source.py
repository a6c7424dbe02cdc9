"""A GGUF file as a source of tensors: its config, its table of names and its weights.

These are floating point, or the integers, scales and minima of a quantized one.
"""

from functools import reduce
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from anyformer.checkpoint.gguf import tokenizer_reader
from anyformer.checkpoint.gguf.architecture import DENSE
from anyformer.checkpoint.gguf.architectures import described, from_gguf
from anyformer.checkpoint.gguf.container import Container
from anyformer.checkpoint.gguf.contents import Contents, Output
from anyformer.checkpoint.gguf.mixtures import halves_of_latent, join_latent, joined_latents
from anyformer.checkpoint.sources import TensorSource
from anyformer.config import ModelConfig
from anyformer.errors import UserError, cut, library, located
from anyformer.families.base import Family
from anyformer.kernels.quantization import QuantizedWeight
from anyformer.tokenizer import Tokenizer

_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
"""The dtypes that `dense` gives; float32 for what is quantized."""
QUANTIZED = ("Q8_0", "Q4_0", "Q4_1")
"""Types that `quantized` reads: those whose blocks are groups of ours."""
_HEAD, _TABLE, _FACTORS = "output.weight", "token_embd.weight", "rope_freqs.weight"


class GGUFSource(TensorSource):
    """A GGUF file, mapped into memory. Its dtype is the widest of its tensors, float32 for quantized ones.

    Raises UserError for one that is damaged, or holds what is not supported, naming it and the reason.
    """

    described_by = "its metadata"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.container = Container(path)
        contents = _contents(self.container)
        self.config = read_config(self.container, contents)
        kind = described(contents)
        self.family = Family(f"GGUF {kind.name}", rows=kind.rows(self.config), ignored=kind.ignored)
        # A head that repeats the token embedding has been compared with it already.
        left = {*DENSE, *(() if contents.output == "own" else (_HEAD,))}
        names = [name for name in self.container.tensors if name not in left]
        self.names = joined_latents(names)
        types = (_FLOATS.get(self.container.tensors[name].type.name, torch.float32) for name in names)
        self.dtype = reduce(torch.promote_types, types)

    @override
    def read(self, name: str) -> Tensor | QuantizedWeight:
        if name not in self.container.tensors:
            key, value = (dense(self.container, half) for half in halves_of_latent(name))
            try:
                return join_latent(key, value)
            except (RuntimeError, IndexError) as error:
                raise UserError(f"{self.path}: the two parts of {name} do not fit each other.") from error
        weight = quantized(self.container, name)
        return dense(self.container, name) if weight is None else weight

    @override
    def pooling_weights(self) -> list[dict[str, Tensor]]:
        return [{"weight": dense(self.container, name)} for name in DENSE if name in self.container.tensors]

    @override
    def tokenizer(self) -> Tokenizer | None:
        with located(self.path):
            tokenizer = tokenizer_reader.read(self.container.metadata)
        if tokenizer is not None and tokenizer.vocab_size > self.config.vocab_size:
            raise UserError(
                f"{self.path} has {tokenizer.vocab_size} tokens, and its model only {self.config.vocab_size}."
            )
        return tokenizer


def read_config(container: Container, contents: Contents | None = None) -> ModelConfig:
    """The config of the model in a file. Raises UserError as `GGUFSource` does."""
    path = container.path
    parts = container.metadata.get("split.count")
    if isinstance(parts, int) and parts > 1:
        raise UserError(f"{path} is one of {parts} parts; join them with `llama-gguf-split --merge` first.")
    try:
        with located(path):
            contents = contents or _contents(container)
            config = from_gguf(contents)
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise UserError(f"{path} has metadata that is missing or misshapen: {cut(str(error))}.") from error
    pairs = config.head_dim // 2
    if contents.rope_factors is not None and len(contents.rope_factors) != pairs:
        raise UserError(f"{path}: {_FACTORS} should have {pairs} numbers, not {len(contents.rope_factors)}.")
    return config


def _contents(container: Container) -> Contents:
    shapes = {name: info.shape for name, info in container.tensors.items()}
    return Contents(container.metadata, shapes, _output(container), _rope_factors(container))


def _output(container: Container) -> Output:
    """Comparison of the head with the token table. A quantized head differs from a table in another format."""
    tensors = container.tensors
    if _HEAD not in tensors or _TABLE not in tensors:
        return "absent"
    head, table = tensors[_HEAD], tensors[_TABLE]
    if head.type != table.type or head.shape != table.shape:
        return "own"
    if np.array_equal(container.blocks(_HEAD), container.blocks(_TABLE)):
        return "same"
    if str(container.metadata.get("general.architecture")) == "t5":
        scaled = dense(container, _TABLE).float() / head.shape[-1] ** 0.5
        if torch.allclose(dense(container, _HEAD).float(), scaled, rtol=1e-6, atol=0):
            return "scaled"
    return "own"


def _rope_factors(container: Container) -> list[float] | None:
    info = container.tensors.get(_FACTORS)
    if info is None:
        return None
    if info.type.name != "F32":
        raise UserError(f"{container.path}: {_FACTORS} is stored as {info.type.name}, not as F32.")
    factors = container.blocks(_FACTORS).reshape(-1).view("<f4")
    if not (np.isfinite(factors).all() and (factors > 0).all()):
        raise UserError(f"{container.path}: {_FACTORS} should hold positive numbers.")
    return [float(str(factor)) for factor in factors]


def dense(container: Container, name: str) -> Tensor:
    """One tensor in floating point; a copy, which does not hold on to the file.

    Raises UserError where its format can't be turned into floats, or the package that does it is not installed.
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
    return library("gguf", purpose, "gguf", "a package that is not installed")
