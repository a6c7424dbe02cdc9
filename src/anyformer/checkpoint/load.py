"""From a model directory or file to a model."""

import logging
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial, reduce
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from anyformer.blocks.initialization import Cut, initialize_weights
from anyformer.checkpoint import hub, mxfp4
from anyformer.checkpoint.adapter_directory import find_adapter, load_adapter, path_and_weight, read_base, read_head
from anyformer.checkpoint.gguf.source import GGUFSource
from anyformer.checkpoint.sources import (
    SAFETENSORS,
    PickleSource,
    QuantizedSource,
    SafetensorsSource,
    TensorSource,
    check_dtype,
    has_weights,
    read_config_json,
)
from anyformer.checkpoint.stored_config import Weight, config_of, equal_weights, stored_name, without_missing_pooler
from anyformer.config import HeadConfig, ModelConfig, ProblemType
from anyformer.errors import UserError, cut, quote
from anyformer.families import TaskHead, own, with_head
from anyformer.families.rows import Operation, Row
from anyformer.kernels.quantization import Quantization, QuantizedWeight, dequantize
from anyformer.model import Transformer, new_head, new_pooler, skeleton
from anyformer.quantization import bits_of, bits_per_module, quantizable, quantization, quantize_weight, set_weight
from anyformer.tokenizer import Tokenizer

_log = logging.getLogger("anyformer")
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def load(
    path_or_hub_id: str | Path,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    *,
    quantize: str | None = None,
    allow_pickle: bool = False,
    adapter: str | Path | Sequence[str | Path] = (),
    cut: Cut | None = None,
) -> tuple[Transformer, Tokenizer | None]:
    """Load a model directory in Hugging Face's format, a GGUF file, or a repository of the hub.

    Args:
        path_or_hub_id: A model or run directory, a .gguf file, or a name such as ``openai-community/gpt2``. A directory
            with an adapter alone stands for the model on this machine that it names, with the adapter.
        dtype: The dtype of the weights; None: as stored (the widest, where the file has several; float32, where a GGUF
            file has quantized ones).
        device: Where to put them; None: the CPU.
        quantize: "int8" or "int4" quantizes the matrices while they are read, one at a time; `dtype` is then that of
            the activations. A GGUF file's own integers of as few bits are kept. None: as stored, and a directory that
            was saved quantized stays so.
        allow_pickle: Read ``pytorch_model.bin`` where there are no safetensors (tensors only, no code).
        adapter: Directories of low-rank adapters, in PEFT's format or in mlx-lm's, that are added to the model; a
            number behind a colon weights one, as in ``"DIR:0.5"``. Of a classifier's the model gets the head.
        cut: What this process keeps of each weight in floating point, which the processes share; None: all of it. Where
            a tensor is stored as it is computed with, nothing else of it is read.

    Returns:
        The model, in evaluation mode, with the head that config.json's `architectures` names; and its tokenizer, or
        None where there is none.

    Raises:
        UserError: no such model or device, an unsupported one, senseless settings, or weights that are damaged,
            unknown, missing or misshapen; an adapter for another model.
    """
    adapters = [adapter] if isinstance(adapter, str | Path) else list(adapter)
    alone = find_adapter(path_or_hub_id)
    if alone is not None:
        path_or_hub_id = read_base(alone)
        adapters.insert(0, alone)
    heads = [head for each in adapters if (head := read_head(path_and_weight(each)[0])) is not None]
    change = None if not heads else partial(_with_head_of, heads[0])
    model, tokenizer = _load(path_or_hub_id, change, dtype, device, quantize, allow_pickle, cut)
    for each in adapters:
        load_adapter(model, each)
    if alone is not None:
        tokenizer = Tokenizer.find(alone) or tokenizer
    paths = (Path(path_or_hub_id), *(path_and_weight(each)[0] for each in adapters))
    model.origin = replace(model.origin, paths=paths)
    return model.eval(), tokenizer


def inspect(path_or_hub_id: str | Path, *, allow_pickle: bool = False) -> tuple[ModelConfig, Tokenizer | None]:
    """The config and the tokenizer of what `load` would load, without its weights.

    Raises:
        UserError: as `load`, and for a directory that holds an adapter alone.
    """
    if find_adapter(path_or_hub_id) is not None:
        raise UserError(
            f"{path_or_hub_id} holds an adapter and no model: merge it into its base first, by anyformer convert "
            f"{path_or_hub_id} DIR."
        )
    source = open_source(path_or_hub_id, allow_pickle=allow_pickle)
    return config_of(source), source.tokenizer()


def inspect_adapter(directory: Path) -> ModelConfig:
    """The config of what `load` makes of a directory that holds an adapter alone: its base's, with the adapter's head.

    Raises:
        UserError: as `load`.
    """
    (config, _), head = inspect(read_base(directory)), read_head(directory)
    return config if head is None else _with_head_of(head, config)


def load_with_head(
    path_or_hub_id: str | Path,
    kind: TaskHead,
    labels: Sequence[str] | int = 2,
    *,
    problem_type: ProblemType | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    quantize: str | None = None,
    allow_pickle: bool = False,
    cut: Cut | None = None,
) -> tuple[Transformer, Tokenizer | None]:
    """Load a model without its head, and give it a new one to be trained.

    Weights of the new head are drawn as the family's paper does (see docs/initialization.md), in floating point even if
    the others are quantized. A pooler is kept if there is one. Seed what is drawn with `torch.manual_seed`.

    Args:
        kind: none, classification (one answer a text) or token_classification (one a token).
        labels: Of a classifier: their names, or how many there are.
        path_or_hub_id, dtype, device, quantize, allow_pickle, cut: See `load`.

    Returns:
        The model, in evaluation mode, and its tokenizer, or None where there is none.

    Raises:
        UserError: as `load`; a family without such a head, or labels that don't fit.
    """

    change = partial(with_head, kind=kind, labels=labels, problem_type=problem_type)
    return _load(path_or_hub_id, change, dtype, device, quantize, allow_pickle, cut)


def _with_head_of(head: HeadConfig, config: ModelConfig) -> ModelConfig:
    return with_head(config, cast("TaskHead", head.kind), head.label_names or head.labels, head.problem_type)


def _load(
    path_or_hub_id: str | Path,
    change: Callable[[ModelConfig], ModelConfig] | None,
    dtype: torch.dtype | str | None,
    device: torch.device | str | None,
    quantize: str | None,
    allow_pickle: bool,
    cut: Cut | None,
) -> tuple[Transformer, Tokenizer | None]:
    kind, dtype = None if quantize is None else quantization(quantize), torch_dtype(dtype)
    _require_device(device)
    source = open_source(path_or_hub_id, allow_pickle=allow_pickle)
    tokenizer, config = source.tokenizer(), config_of(source)
    if change is None:
        model = skeleton(config)
        table = source.family.table(model.config, model.state_dict())
    else:
        model = skeleton(without_missing_pooler(change(config), source))
        table = _kept(skeleton(config), model, source)
    _assign(model, table, source, kind, dtype, device, cut)
    _assign_pooling(model, source, device)
    if kind is not None and isinstance(source, QuantizedSource) and f"int{bits_of(model)}" != kind:
        raise UserError(
            f"{source.path} holds integers of {bits_of(model)} bits already: quantize the model that it was made of."
        )
    drawn = frozenset(name for name, weight in model.named_parameters() if weight.is_meta)
    for name, new in (("head", new_head), ("pooler", new_pooler)):
        part: nn.Module | None = getattr(model, name)
        if part is not None and any(weight.is_meta for weight in part.parameters()):
            with torch.random.fork_rng(devices=()):  # all that is drawn here is drawn once more below
                part = cast("nn.Module", new(model.config))
            initialize_weights(part, model.config)
            setattr(model, name, part.to(model.device, model.dtype))
    model.origin = replace(source.origin, drawn=drawn)
    return model.eval(), tokenizer


def _kept(trained: Transformer, model: Transformer, source: TensorSource) -> dict[str, Row]:
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


def open_source(path_or_hub_id: str | Path, *, allow_pickle: bool = False) -> TensorSource:
    """The source for what `load` loads. Raises UserError for one that can't be read."""
    path = hub.find(path_or_hub_id, allow_pickle=allow_pickle)
    if not path.is_dir():
        return GGUFSource(path)
    raw = read_config_json(path)
    method = own.quantization_method(raw)
    if method == own.METHOD:
        return QuantizedSource(path, raw)
    if method == mxfp4.METHOD:
        return mxfp4.MXFP4Source(path, raw)
    if method is not None:
        raise UserError(
            f"{path} holds weights that were quantized by {quote(method)}, which is not supported: load the model that "
            "they were made of, with `quantize` if they should be integers."
        )
    is_safe = has_weights(path, SAFETENSORS)
    return SafetensorsSource(path, raw) if is_safe else PickleSource(path, raw, allow_pickle=allow_pickle)


def _assign(
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
    dtypes: set[torch.dtype] = set()
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
        wanted = [shapes[ours] if row.part is None else _part_shape(shapes[ours], row.part[1]) for ours in row.ours]
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
                if not equal_weights(weight, weights[ours]):
                    raise UserError(f"{source.path}: {theirs} should equal the weight it is tied to, and does not.")
                continue
            if isinstance(weight, QuantizedWeight) and ours.removesuffix(".weight") not in can_quantize:
                raise UserError(f"{source.path}: the weight {theirs} is quantized, which is not supported for it.")
            weights[ours] = weight.to(device=device, dtype=dtype) if isinstance(weight, Tensor) else weight.to(device)
            if isinstance(part, Tensor):
                dtypes.add(part.dtype)
    missing = [theirs for theirs, row in table.items() if not row.alias and not weights.keys() >= set(row.ours)]
    if missing:
        raise UserError(f"{source.path}: the weight {missing[0]} is missing{_more(missing)}.")
    # Layers can't multiply across dtypes; the widest loses nothing (T5 files in fp16 have a few fp32 matrices).
    dtype = dtype or reduce(torch.promote_types, dtypes or {torch.float32})
    quantized = [name for name, weight in weights.items() if isinstance(weight, QuantizedWeight)]
    for name in quantized:  # one by one, for a module packs its integers
        set_weight(model, name.removesuffix(".weight"), weights.pop(name), dtype)
    for name, weight in weights.items():
        weights[name] = weight.to(dtype)
    # That nothing is missing has been seen above; what is quantized is in its place, and a new head is yet to be drawn.
    model.load_state_dict(weights, assign=True, strict=False)
    if quantized:
        model.requires_grad_(False)


def _assign_pooling(model: Transformer, source: TensorSource, device: torch.device | str | None) -> None:
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


def _part_shape(shape: torch.Size, count: int) -> torch.Size:
    """The shape of one of so many matrices that lie one below another."""
    return torch.Size((shape[0] // count, *shape[1:]))


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
        if full_name not in table and not any(re.fullmatch(pattern, name) for pattern in family.ignored)
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


def _require_device(device: torch.device | str | None) -> None:
    """Raise UserError for a device that can't hold and give back a number."""
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ValueError, ImportError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0].rstrip(".")
        raise UserError(f"There is no device {quote(str(device))} to put a model on ({reason}): try cpu.") from error


def torch_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """The dtype of this name. Raises UserError for one that weights can't have."""
    if isinstance(dtype, str) and dtype not in _DTYPES:
        raise UserError(f"There is no dtype {quote(dtype)}: choose one of {', '.join(_DTYPES)}.")
    return _DTYPES[dtype] if isinstance(dtype, str) else dtype


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
