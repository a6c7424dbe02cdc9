"""From a source of tensors to a model: its config, in which the tensors have the last word, and its weights."""

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from anyformer.blocks.initialization import Cut
from anyformer.blocks.linear import replace_weight
from anyformer.blocks.quantized import QuantizedMatrix
from anyformer.checkpoint.sources import QuantizedSource, TensorSource, check_dtype
from anyformer.config import ModelConfig
from anyformer.errors import UserError, cut
from anyformer.families import with_head
from anyformer.families.base import BUFFERS
from anyformer.families.rows import Operation, Row
from anyformer.kernels.quantization import Quantization, QuantizedWeight, dequantize
from anyformer.model import Transformer
from anyformer.quantization import bits_per_module, quantizable, quantize_weight

_log = logging.getLogger("anyformer")
Weight = Tensor | QuantizedWeight


def config_of(source: TensorSource) -> ModelConfig:
    """The config of the model in a source: the tensors have the last word on whether it has a head and a pooler.

    A head that differs from the token table is its own, a language model whose file lacks all weights of its head is a
    bare model (all-mpnet-base-v2, Qwen3-Embedding-8B), and a bare model without the weights of a pooler has none.

    Raises UserError for more layers than tensors: a number costs nothing to write, and a layer to build.
    """
    config, count = source.config, len(source.names)
    layers = min(config.encoder_layers, config.distinct_layers or config.encoder_layers) + config.decoder_layers
    if layers > count:
        raise UserError(f"{source.path}: config.json speaks of {layers} layers, and there are {count} weights.")
    networks = [(other and other.feed_forward) or config.feed_forward for other in config.others(layers)]
    mixed = sum(network.experts is not None for network in networks)
    if (experts := mixed * sum(row.part is not None for row in source.family.rows_of(config))) > count:
        raise UserError(
            f"{source.path}: config.json speaks of {experts} matrices of experts, and there are {count} weights."
        )
    if _lacks_head(config, source):
        config = with_head(config, "none")
    config = without_missing_pooler(config, source)
    if config.head.kind == "language_model":
        head, table = (
            stored_name(source, config, name) for name in ("head.projection.weight", "token_embedding.table.weight")
        )
        tied = config.embedding.tied or (head is None and source.family.ties_missing_head)
        if tied and head and table:
            tied = equal_weights(source.read(head), source.read(table))
        config = config.replace(embedding={"tied": tied})
    return config


def _lacks_head(config: ModelConfig, source: TensorSource) -> bool:
    """Whether a language model's file has no weights of its head.

    Without a transform only a file whose names are those of the body alone tells so: elsewhere a head is missing.
    """
    family = source.family
    if config.head.kind != "language_model":
        return False
    if config.head.transform is None:
        is_body = family.prefix != "" and not any(name.startswith(family.prefix) for name in source.names)
        if config.embedding.tied or family.ties_missing_head or not is_body:
            return False
    names = ("head.transform.dense.weight", "head.transform.norm.weight", "head.bias", "head.projection.weight")
    return not any(stored_name(source, config, name) for name in names)


def without_missing_pooler(config: ModelConfig, source: TensorSource) -> ModelConfig:
    """The config without a pooler that a bare model's source has no weights of."""
    has_pooler = stored_name(source, config, "pooler.dense.weight") or stored_name(source, config, "pooler.dense.bias")
    if config.head.kind == "none" and config.head.pooler is not None and not has_pooler:
        return config.replace(head={"pooler": None})
    return config


def stored_name(source: TensorSource, config: ModelConfig, ours: str) -> str | None:
    """The name in the source of one of our weights."""
    return next((name for name in source.family.stored_names(config, ours) if name in source.names), None)


def equal_weights(a: Weight, b: Weight) -> bool:
    """Whether two weights are the same in the dtype and on the device of the second."""
    if isinstance(a, QuantizedWeight) and isinstance(b, QuantizedWeight):
        return torch.equal(a.integers.to(b.integers.device), b.integers)
    return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a.to(b), b)


def kept_rows(trained: Transformer, model: Transformer, source: TensorSource) -> dict[str, Row]:
    """The rows of the weights that a model with another head takes from the source, which forgets all others.

    Raises UserError for weights that the model in the source does not have.
    """
    needed = {name for name in model.state_dict() if not name.startswith("head.")}
    pooler = {name for name in needed if name.startswith("pooler.") and stored_name(source, trained.config, name)}
    table = source.family.table(trained.config, {*trained.state_dict(), *pooler})
    names = _match(table, source)
    kept = {theirs: row for theirs, row in table.items() if needed.issuperset(row.ours)}
    source.names = [names[theirs] for theirs in kept if theirs in names]
    return kept


def assign(
    model: Transformer,
    table: Mapping[str, Row],
    source: TensorSource,
    kind: Quantization | None,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
    cut: Cut | None,
) -> None:
    """Give every weight of a model without storage (`skeleton`) its tensor from a source, converted one at a time.

    `table` has the row for every name in the source, together of all weights that are not to be drawn. Raises UserError
    for tensors that are damaged, unknown, missing or misshapen.
    """
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    dtype, names, can_quantize = dtype or source.dtype, _match(table, source), quantizable(model)
    bits = {} if kind is None else bits_per_module(model, kind)
    weights: dict[str, Any] = {}
    sizes = Counter[torch.dtype]()
    if missing := [theirs for theirs, row in table.items() if row.part is not None and theirs not in names]:
        raise UserError(f"{source.path}: the weight {missing[0]} is missing{_more(missing)}.")
    experts: defaultdict[str, list[Tensor]] = defaultdict(list)
    # The experts of a layer one after another, so that the parts of one weight are in memory twice.
    for theirs, row in sorted(table.items(), key=lambda item: (item[1].alias, item[1].ours if item[1].part else ())):
        if theirs not in names:
            continue
        stored = source.read(names[theirs])
        if isinstance(stored, Tensor):
            check_dtype(source.path, f"the weight {theirs}", stored)
        parts = _apply(row.operation, stored, len(row.ours))
        wanted = [shapes[ours] for ours in row.ours]
        if row.part is not None:  # one of several matrices that lie one below another
            wanted = [torch.Size((shape[0] // row.part[1], *shape[1:])) for shape in wanted]
        if [part.shape for part in parts] != wanted:
            raise UserError(
                f"{source.path}: the weight {theirs} has shape {list(stored.shape)}, which does not fit "
                f"{source.described_by}: {row.ours[0]} wants {list(wanted[0])}."
            )
        if row.part is not None:
            collected = experts[row.ours[0]]
            collected += cast("Sequence[Tensor]", parts)
            if len(collected) < row.part[1]:
                continue
            parts = [torch.cat(experts.pop(row.ours[0]))]
        for ours, part in zip(row.ours, parts, strict=True):
            weight = part if isinstance(source, QuantizedSource) else _converted(ours, part, bits)
            if cut is not None and isinstance(weight, Tensor):
                weight = cut(weight)
            if row.alias and ours in weights:
                first = weights[ours]
                if row.is_compared and not equal_weights(
                    weight, first.unpacked() if isinstance(first, QuantizedMatrix) else first
                ):
                    raise UserError(f"{source.path}: {theirs} should equal the weight it is tied to, and does not.")
                continue
            if isinstance(weight, QuantizedWeight) and ours.removesuffix(".weight") not in can_quantize:
                raise UserError(f"{source.path}: the weight {theirs} is quantized, which is not supported for it.")
            if isinstance(weight, QuantizedWeight):
                weights[ours] = matrix = QuantizedMatrix(weight.to(device))
                if cut is not None:
                    matrix.spread(cut)
            else:
                weights[ours] = weight.to(device=device, dtype=dtype)
            if isinstance(part, Tensor):
                sizes[part.dtype] += part.nbytes
    if model.config.head.bias == "fixed" and "head.bias" not in weights:  # zeros, which files may leave out
        weights["head.bias"] = torch.zeros(shapes["head.bias"], device=device)
    missing = [theirs for theirs, row in table.items() if not row.alias and not weights.keys() >= set(row.ours)]
    if missing:
        raise UserError(f"{source.path}: the weight {missing[0]} is missing{_more(missing)}.")
    # Layers can't multiply across dtypes. A few vectors in float32 make no model in float32.
    dtype = dtype or max(sizes, key=sizes.__getitem__, default=torch.float32)
    quantized = [name for name, weight in weights.items() if isinstance(weight, QuantizedMatrix)]
    for name in quantized:
        matrix = weights.pop(name)
        matrix.activations = matrix.activations.to(dtype)
        replace_weight(model.get_submodule(name.removesuffix(".weight")), matrix)
    for name, weight in weights.items():
        weights[name] = weight.to(dtype)
    # That nothing is missing has been seen above; what is quantized is in its place, and a new head is yet to be drawn.
    model.load_state_dict(weights, assign=True, strict=False)
    if quantized:
        model.requires_grad_(False)


def assign_pooling(model: Transformer, source: TensorSource, device: torch.device | str | None) -> None:
    """Give the layers of the pooling their weights, in the dtype that the others have by now."""
    shapes = {name: weight.shape for name, weight in model.pooling.state_dict().items()}
    if not shapes:
        return
    stored = {
        f"dense.{i}.{name}": part for i, layer in enumerate(source.pooling_weights()) for name, part in layer.items()
    }
    for name in sorted(shapes.keys() | stored.keys()):
        has = list(stored[name].shape) if name in stored else "missing"
        wants = list(shapes[name]) if name in shapes else "none"
        if has != wants:
            raise UserError(f"{source.path}: the weight {name} after pooling is {has}, and its config says {wants}.")
        check_dtype(source.path, f"the weight {name}", stored[name])
    weights = {name: part.to(device, model.dtype) for name, part in stored.items()}
    model.pooling.load_state_dict(weights, assign=True)


def _converted(name: str, weight: Weight, bits: Mapping[str, int]) -> Weight:
    """A weight in the bits of its module, or in floating point; a file's own integers of as few bits are kept."""
    most = bits.get(name.removesuffix(".weight"))
    if isinstance(weight, QuantizedWeight):
        if most is not None and weight.bits <= most:
            return weight
        weight = dequantize(weight, torch.float32)
    return weight if most is None else quantize_weight(name, weight, most)


def _match(table: Mapping[str, Row], source: TensorSource) -> dict[str, str]:
    """The name in the source for each name in the table: files of bare models leave the prefix out."""
    family = source.family
    in_table = {name if name in table else family.prefix + name: name for name in source.names}
    unknown = [
        name
        for full_name, name in in_table.items()
        if full_name not in table and not any(re.fullmatch(pattern, name) for pattern in (*family.ignored, BUFFERS))
    ]
    if unknown:
        raise UserError(
            f"{source.path}: the weight {cut(unknown[0])} is unknown to a {family.model_type} model of "
            f"{source.described_by}{_more(unknown)}."
        )
    if family.left_aside and not table.keys() >= in_table.keys():
        _log.warning(family.left_aside)
    return {full_name: name for full_name, name in in_table.items() if full_name in table}


def _apply(operation: Operation, stored: Weight, count: int) -> Sequence[Weight]:
    """Our weights in one on disk; none where it has no such shape. Operations move whole rows of quantized weights."""
    try:
        if isinstance(stored, Tensor):
            return operation.read(stored, count)
        integers, scales = operation.read(stored.integers, count), operation.read(stored.scales, count)
        minima = [None] * count if stored.minima is None else operation.read(stored.minima, count)
        return [QuantizedWeight(*parts) for parts in zip(integers, scales, minima, strict=True)]
    except RuntimeError:
        return []


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
