"""From a model directory to a model."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anyformer.blocks.quantized import ROUNDINGS, Quantization
from anyformer.checkpoint import hub, integers, pooling, settings
from anyformer.checkpoint.gguf.read import GGUFWeights, open_model
from anyformer.checkpoint.gguf.tensors import Grouped
from anyformer.checkpoint.weights import Weights, read_json, require_float, require_layers
from anyformer.config import ModelConfig
from anyformer.errors import UserError
from anyformer.families import FAMILIES, from_huggingface
from anyformer.families.base import Family
from anyformer.families.integers import plain
from anyformer.families.rows import Row
from anyformer.kernels.quantization import Rounded, pack
from anyformer.model import Origin, Transformer, skeleton
from anyformer.quantization import bits_of, kinds, put, quantization
from anyformer.tokenizer import Tokenizer

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def load(
    path_or_hub_id: str | Path,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    *,
    quantize: str | None = None,
    allow_pickle: bool = False,
) -> tuple[Transformer, Tokenizer | None]:
    """Read a model directory in Hugging Face's format, a GGUF file, or a repository of the hub.

    Args:
        path_or_hub_id: A model or run directory, a .gguf file, or a name such as ``openai-community/gpt2``.
        dtype: The number format of the weights; None: as stored (the widest, where the file has several; float32,
            where a GGUF file has quantized ones).
        device: Where to put them; None: the CPU.
        quantize: "int8" or "int4" rounds the matrices to integers while they are read, one at a time; `dtype` is then
            the format of the activations. A GGUF file's own integers of as few bits go in as they are. None: as
            stored, and a directory that was saved with integers has them.
        allow_pickle: Read ``pytorch_model.bin`` where there are no safetensors (tensors only, no code).

    Returns:
        The model, in evaluation mode, with the head that config.json's `architectures` names; and its tokenizer, or
        None where there is none.

    Raises:
        UserError: no such model or device, an unsupported one, senseless settings, or weights that are damaged,
            unknown, missing or misshapen.
    """
    kind = None if quantize is None else quantization(quantize)
    _require_device(device)
    directory = hub.find(path_or_hub_id, allow_pickle=allow_pickle)
    if directory.is_file():
        return _load_gguf(directory, torch_dtype(dtype), device, kind)
    raw = read_json(directory / "config.json")
    generation = settings.read(directory, raw)
    if integers.described(raw, directory):
        raw = plain(raw)
        model = integers.load(directory, _read_config(raw, directory), torch_dtype(dtype), device)
        if kind is not None and f"int{bits_of(model)}" != kind:
            raise UserError(
                f"{directory} holds integers of {bits_of(model)} bits already: quantize the model that it was made of."
            )
        model.origin = Origin(config=raw, generation=generation)
        return model.eval(), Tokenizer.find(directory)
    config, family = _read_config(raw, directory), FAMILIES[raw["model_type"]]
    weights = Weights(directory, allow_pickle=allow_pickle)
    require_layers(config, weights)
    config = replace(_settle_head(config, family, weights), pooling=pooling.read(directory))
    model = skeleton(config)
    _fill(model, family, weights, torch_dtype(dtype), device, kind)
    model.origin = Origin(config=raw, generation=generation)
    return model.eval(), Tokenizer.find(directory)


def _load_gguf(
    path: Path, dtype: torch.dtype | None, device: torch.device | str | None, kind: Quantization | None
) -> tuple[Transformer, Tokenizer | None]:
    config, family, weights, tokenizer = open_model(path)
    model = skeleton(config)
    _fill(model, family, weights, dtype, device, kind)
    return model.eval(), tokenizer


def _require_device(device: torch.device | str | None) -> None:
    """Raise UserError for a device that can't hold and give back a number."""
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ValueError, ImportError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0].rstrip(".")
        raise UserError(f"There is no device {str(device)!r} to put a model on ({reason}): try cpu.") from error


def torch_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """The format of this name. Raises UserError for one that weights can't have."""
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in _DTYPES:
        raise UserError(f"There is no dtype {dtype!r}: choose one of {', '.join(_DTYPES)}.")
    return _DTYPES[dtype]


def _read_config(raw: Mapping[str, Any], directory: Path) -> ModelConfig:
    try:
        return from_huggingface(raw)
    except UserError as error:
        raise UserError(f"{directory}: {error}") from error


def _settle_head(config: ModelConfig, family: Family, weights: Weights) -> ModelConfig:
    """The file has the last word: a head that differs from the token table is a head of its own, and a bare model
    without the weights of a pooler has none."""
    if config.head.kind == "none" and config.head.pooler is not None:
        rows = [line for line in family.rows if line.ours[0].startswith("pooler.") and not line.beside]
        poolers = {name for line in rows for name in (line.theirs, line.theirs.removeprefix(family.prefix))}
        if rows and poolers.isdisjoint(weights.names):
            return replace(config, head=replace(config.head, pooler=None))
    names = {line.ours[0]: line.theirs for line in reversed(family.rows) if not line.alias}
    head, table = names.get("head.projection.weight"), names.get("tokens.table.weight")
    if config.head.kind != "language_model" or head is None or table is None:
        return config
    if config.embedding.tied and head in weights and table in weights:
        tied = torch.equal(weights.read(head), weights.read(table))
    elif not config.embedding.tied and head not in weights and family.ties_missing_head:
        tied = True
    else:
        return config
    return replace(config, embedding=replace(config.embedding, tied=tied))


def _fill(
    model: Transformer,
    family: Family,
    weights: Weights | GGUFWeights,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
    kind: Quantization | None = None,
) -> None:
    """Give every weight of a model without storage its tensor from the file, one at a time."""
    wanted: dict[str, Quantization] = (
        {} if kind is None else {f"{name}.weight": mine for name, mine in kinds(model, kind).items()}
    )
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    table = family.table(shapes)
    found = _match(table, family, weights)
    state: dict[str, Tensor] = {}
    rounded: dict[str, Rounded] = {}
    formats: set[torch.dtype] = set()
    for theirs, line in sorted(table.items(), key=lambda item: item[1].alias):
        if theirs not in found:
            continue
        ours = line.ours[0]
        mine = wanted.get(ours) if wanted.keys() >= set(line.ours) else None
        if mine and isinstance(weights, GGUFWeights) and weights.bits(found[theirs]) in _AT_MOST[mine]:
            given = weights.grouped(found[theirs])
            matrices = _grouped(given, line, shapes)
            if matrices is None:
                raise _misshapen(weights, theirs, given.codes, ours, shapes)
            rounded |= dict(zip(line.ours, (matrix.to(device) for matrix in matrices), strict=True))
            formats.add(weights.format)
            continue
        stored = weights.read(found[theirs])
        require_float(weights.directory, theirs, stored)
        if line.alias and mine and ours in rounded:
            if not torch.equal(_round(stored, mine, theirs).integers.to(device), rounded[ours].integers):
                raise UserError(f"{weights.directory}: {theirs} should equal the weight it is tied to, and does not.")
            continue
        if line.alias and ours in state:
            if not torch.equal(stored.flatten().to(state[ours]), state[ours].flatten()):
                raise UserError(f"{weights.directory}: {theirs} should equal the weight it is tied to, and does not.")
            continue
        parts = _parts(stored, line, shapes)
        if parts is None:
            raise _misshapen(weights, theirs, stored, ours, shapes)
        for name, tensor in zip(line.ours, parts, strict=True):
            if mine:
                formats.add(tensor.dtype)
                rounded[name] = _round(tensor, mine, theirs).to(device)
            else:
                state[name] = tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)
    known = {*state, *rounded}
    missing = [theirs for theirs, line in table.items() if not line.alias and not set(line.ours) <= known]
    if missing:
        raise UserError(f"{weights.directory}: the weight {missing[0]} is missing{_more(missing)}.")
    formats = {dtype} if dtype else formats | {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    # Layers can't multiply across formats; the widest loses nothing (T5 files in fp16 have a few fp32 matrices).
    widest = reduce(torch.promote_types, formats)
    for name, tensor in state.items():
        state[name] = tensor.to(widest) if tensor.is_floating_point() else tensor
    has_integers = bool(rounded)
    while rounded:  # one by one, for a module lays its integers out anew
        name, matrix = rounded.popitem()
        put(model, name.removesuffix(".weight"), matrix, widest)
    # That nothing is missing has been seen above; the integers are in their place.
    model.load_state_dict(state, assign=True, strict=not has_integers)
    if has_integers:
        model.requires_grad_(False)


_AT_MOST: Mapping[Quantization, Sequence[int]] = {"int8": (8, 4), "int4": (4,)}
"""The bits of a file's own integers that go in as they are."""


def _grouped(stored: Grouped, line: Row, shapes: Mapping[str, torch.Size]) -> list[Rounded] | None:
    """Our matrices in one of a GGUF file's, None where its shape is not theirs: its operation moves whole rows, of the
    scales as of the integers."""
    count, codes = len(line.ours), _parts(stored.codes, line, shapes)
    if codes is None:
        return None
    scales = line.operation.read(stored.scales, count)
    if stored.minima is None:
        return [Rounded(*both, None) for both in zip(codes, scales, strict=True)]
    minima = line.operation.read(stored.minima, count)
    return [Rounded(pack(c), s, m) for c, s, m in zip(codes, scales, minima, strict=True)]


def _round(matrix: Tensor, kind: Quantization, name: str) -> Rounded:
    try:
        return ROUNDINGS[kind](matrix)
    except ValueError as error:
        raise UserError(f"The weight {name} {error}, so it can't be rounded.") from error


def _parts(stored: Tensor, line: Row, shapes: Mapping[str, torch.Size]) -> Sequence[Tensor] | None:
    """Our tensors in one on disk, None where its shape is not that of what holds them."""
    try:
        parts = line.operation.read(stored, len(line.ours))
    except RuntimeError:
        return None
    return parts if [part.shape for part in parts] == [shapes[name] for name in line.ours] else None


def _misshapen(
    weights: Weights | GGUFWeights, theirs: str, stored: Tensor, ours: str, shapes: Mapping[str, torch.Size]
) -> UserError:
    return UserError(
        f"{weights.directory}: the weight {theirs} has shape {list(stored.shape)}, which does not fit "
        f"{weights.described_by}: {ours} wants {list(shapes[ours])}."
    )


def _match(table: Mapping[str, Row], family: Family, weights: Weights | GGUFWeights) -> dict[str, str]:
    """The name in the file for each name in the table: files of bare models leave the prefix out."""
    found: dict[str, str] = {}
    unknown: list[str] = []
    for name in weights.names:
        modern = re.sub(r"LayerNorm\.(gamma|beta)$", lambda m: "LayerNorm." + _TENSORFLOW[m[1]], name)
        for candidate in (modern, family.prefix + modern):
            if candidate in table:
                found[candidate] = name
                break
        else:
            if not any(re.fullmatch(pattern, name) for pattern in family.ignored):
                unknown.append(name)
    if unknown:
        raise UserError(
            f"{weights.directory}: the weight {unknown[0]} is unknown to a {family.model_type} model of "
            f"{weights.described_by}{_more(unknown)}."
        )
    return found


_TENSORFLOW = {"gamma": "weight", "beta": "bias"}


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
