"""A GGUF file as a model: its config, its family and its weights."""

from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from anyformer.checkpoint.gguf.container import Container
from anyformer.checkpoint.gguf.tensors import GROUPED, Grouped, dense, grouped, stored_format
from anyformer.config import ModelConfig
from anyformer.errors import UserError
from anyformer.families.base import Family
from anyformer.families.gguf import Contents, architecture, from_gguf
from anyformer.families.gguf.base import Output
from anyformer.tokenizer import Tokenizer
from anyformer.tokenizer import gguf as vocabulary

_HEAD, _TABLE, _FACTORS = "output.weight", "token_embd.weight", "rope_freqs.weight"


class GGUFWeights:
    """The tensors of a GGUF file by name, read one by one, in the widest floating-point format that any of them has.

    Attributes:
        directory: The file, for messages.
        described_by: What the shapes of the weights have to fit.
    """

    described_by = "its metadata"

    def __init__(self, container: Container, left_out: Sequence[str] = ()) -> None:
        self.container = container
        self.directory = container.path
        self.names = [name for name in container.tensors if name not in left_out]
        formats = {stored_format(container, name) for name in self.names}
        self.format = reduce(torch.promote_types, formats) if formats else torch.float32

    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU."""
        return dense(self.container, name).to(self.format)

    def bits(self, name: str) -> int | None:
        """8 or 4 where `grouped` can give a tensor as integers, else None."""
        return GROUPED.get(self.container.tensors[name].type.name)

    def grouped(self, name: str) -> Grouped:
        """A matrix as integers, scales and minima, as it is stored. Raises UserError where it is stored otherwise."""
        return grouped(self.container, name)


class Opened(NamedTuple):
    """What loading needs to know of a file."""

    config: ModelConfig
    family: Family
    weights: GGUFWeights
    tokenizer: Tokenizer | None


def open_model(path: Path) -> Opened:
    """Read all of a GGUF file but its weights.

    Raises:
        UserError: a file that is damaged, or holds what is not supported; it names the file and the reason.
    """
    container = Container(path)
    contents = _contents(container)
    config = read_config(container, contents)
    kind = architecture(contents.architecture)
    family = Family(
        model_type=f"GGUF {kind.name}",
        architectures={},
        read=lambda raw, head: config,
        write=lambda config: {},
        rows=kind.rows(config),
        ignored=kind.ignored,
    )
    # A head that repeats the token table has been compared with it already.
    weights = GGUFWeights(container, () if contents.output == "own" else (_HEAD,))
    try:
        tokenizer = vocabulary.read(container.metadata)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise UserError(f"{path} has {tokenizer.vocab_size} tokens, and its model only {config.vocab_size}.")
    return Opened(config, family, weights, tokenizer)


def read_config(container: Container, contents: Contents | None = None) -> ModelConfig:
    """The config of the model in a file. Raises UserError as `open_model` does."""
    path = container.path
    parts = container.metadata.get("split.count")
    if isinstance(parts, int) and parts > 1:
        raise UserError(f"{path} is one of {parts} parts; join them with `llama-gguf-split --merge` first.")
    try:
        contents = contents or _contents(container)
        config = from_gguf(contents)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise UserError(f"{path} has metadata that is missing or misshapen: {error}.") from error
    head_dim = config.attention.head_dim or config.d_model // config.attention.heads
    if contents.rope_factors is not None and len(contents.rope_factors) != head_dim // 2:
        raise UserError(f"{path}: {_FACTORS} should have {head_dim // 2} numbers, not {len(contents.rope_factors)}.")
    return config


def _contents(container: Container) -> Contents:
    shapes = {name: info.shape for name, info in container.tensors.items()}
    return Contents(container.metadata, shapes, _output(container), _rope_factors(container))


def _output(container: Container) -> Output:
    """How the head compares with the token table. A quantized head differs from a table in another format."""
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
