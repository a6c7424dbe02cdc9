"""From a model to a GGUF file, tensor by tensor."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anyformer import atomic
from anyformer.checkpoint.gguf.encode import encode, format_named, size, stored_as
from anyformer.checkpoint.gguf.expressible import expressible
from anyformer.checkpoint.gguf.types import TensorType
from anyformer.checkpoint.gguf.vocabulary import vocabulary
from anyformer.errors import UserError
from anyformer.families.gguf import rope_factors, table
from anyformer.families.rows import COPY, Row
from anyformer.model import Transformer, skeleton
from anyformer.quantization import bits_of
from anyformer.tokenizer import Tokenizer

_FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "BF16": 32}
"""llama.cpp's numbers for a file that is mostly of one type."""
_ROPE = "rope_freqs.weight"


@dataclass(frozen=True)
class Written:
    """What became of a model."""

    architecture: str
    formats: Mapping[str, int]
    """Format -> number of tensors."""
    size: int
    """Bytes of the file."""
    notes: Sequence[str]
    """Sentences about what the file, or llama.cpp, leaves out or does in another way."""


def save_gguf(
    model: Transformer, path: str | Path, *, tokenizer: Tokenizer | None = None, kind: str = "f16"
) -> Written:
    """Write a GGUF file, whole or not at all.

    Args:
        model: What to write. Its weights are converted one by one, so that little more than they is in memory.
        path: The file; one that is there is replaced once the new one is complete.
        tokenizer: Goes into the file, with its special tokens and chat template.
        kind: f32, f16, bf16, q8_0, q5_1, q5_0, q4_1 or q4_0: the format of the matrices.

    Raises:
        UserError: the matrices are integers, llama.cpp can't compute the model or its tokenizer, a type that is not
            known, the package gguf is missing, or the disk is full.
    """
    gguf = _package()
    if bits_of(model) is not None:
        raise UserError(
            "This model's matrices are integers already: write the model that they were made of, as q8_0 or q4_1."
        )
    wanted = format_named(kind)
    path = Path(path)
    config, architecture, metadata, notes = expressible(model.config)
    vocabulary_metadata, vocabulary_notes = vocabulary(tokenizer, config)
    notes += vocabulary_notes
    general: dict[str, Any] = {
        "general.type": "model",
        "general.name": path.stem,
        "general.file_type": _FILE_TYPES[wanted.name],
        **({"general.quantization_version": 2} if wanted.block > 1 else {}),
    }
    tensors = _tensors(model, table(architecture, config, set(skeleton(config).state_dict())))
    formats = {name: stored_as(name, shape, wanted) for name, (shape, _, _) in tensors.items()}
    if fallbacks := [name for name, stored in formats.items() if wanted.block > 1 and stored.name == "F16"]:
        notes.append(
            f"{len(fallbacks)} tensors are stored as F16, because their rows are no whole number of blocks of "
            f"{wanted.block} (such as {fallbacks[0]}, of {tensors[fallbacks[0]][0][-1]})."
        )
    factors = rope_factors(config)
    with atomic.replacing(path, make_parents=True) as temporary:
        writer = gguf.GGUFWriter(temporary, architecture.name)
        try:
            for key, value in {**metadata, **general, **vocabulary_metadata}.items():
                if key != "general.architecture":
                    _add_metadata(writer, key, value)
            if factors is not None:
                _add_tensor_info(writer, _ROPE, (len(factors),), format_named("f32"))
            for name, (shape, _, _) in tensors.items():
                _add_tensor_info(writer, name, shape, formats[name])
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            if factors is not None:
                writer.write_tensor_data(torch.tensor(factors, dtype=torch.float32).numpy())
            for name, (_, row, parts) in tensors.items():
                writer.write_tensor_data(encode(name, row.operation.write(parts), formats[name]))
        finally:
            writer.close()
    return Written(architecture.name, Counter(stored.name for stored in formats.values()), path.stat().st_size, notes)


def _package() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise UserError("Writing GGUF needs a package that is not installed: pip install 'anyformer[gguf]'.") from error
    return gguf


def _tensors(model: Transformer, rows: Mapping[str, Row]) -> dict[str, tuple[tuple[int, ...], Row, list[Tensor]]]:
    """Name in the file -> its shape, its row in the table, and the weights that it is made of."""
    state = model.state_dict()
    found: dict[str, tuple[tuple[int, ...], Row, list[Tensor]]] = {}
    for theirs, row in rows.items():
        # A second name with an operation of its own is no second name but another tensor (T5's head).
        if row.alias and row.operation is COPY:
            continue
        parts = [state[name].detach().cpu() for name in row.ours]
        shape = row.operation.write([part.to("meta") for part in parts]).shape
        found[theirs] = (tuple(shape), row, parts)
    return found


def _add_tensor_info(writer: Any, name: str, shape: Sequence[int], kind: TensorType) -> None:
    import gguf

    stored = gguf.GGMLQuantizationType(kind.number)
    writer.add_tensor_info(name, shape, np.dtype(np.float32), size(shape, kind), raw_dtype=stored)


def _add_metadata(writer: Any, key: str, value: Any) -> None:
    """One pair of metadata, in the type that llama.cpp reads it as."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
