"""From a model directory or file to a model."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial, wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast, overload

import torch
from torch import nn

from anyformer.blocks.initialization import Cut, initialize_weights
from anyformer.checkpoint import hub, mxfp4
from anyformer.checkpoint.adapter_directory import find_adapter, load_adapter, path_and_weight, read_base, read_head
from anyformer.checkpoint.assign import assign, assign_pooling, config_of, kept_rows, without_missing_pooler
from anyformer.checkpoint.gguf.source import GGUFSource
from anyformer.checkpoint.sources import (
    SAFETENSORS,
    PickleSource,
    QuantizedSource,
    SafetensorsSource,
    TensorSource,
    has_weights,
    read_config_json,
)
from anyformer.config import HeadConfig, HeadKind, ModelConfig, ProblemType
from anyformer.errors import UserError, quote
from anyformer.families import own, with_head
from anyformer.model import Transformer, new_head, new_pooler, skeleton
from anyformer.quantization import bits_of, quantization
from anyformer.tokenizer import Tokenizer

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

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
    tokenizer: Tokenizer | None = None,
) -> tuple[Transformer, Tokenizer | None]:
    """Load a model directory in Hugging Face's format, a GGUF file, or a repository of the hub.

    Args:
        path_or_hub_id: A model or run directory, a .gguf file, or a name such as ``openai-community/gpt2``. A directory
            with an adapter alone stands for the model on this machine that it names, with the adapter.
        dtype: The dtype of the weights; None: as stored (that of most bytes, where there are several; float32, where
            a GGUF file has quantized ones).
        device: Where to put them; None: the CPU.
        quantize: "int8" or "int4" quantizes the matrices while they are read, one at a time; `dtype` is then that of
            the activations. A GGUF file's own integers of as few bits are kept. None: as stored, and a directory that
            was saved quantized stays so.
        allow_pickle: Read ``pytorch_model.bin`` where there are no safetensors (tensors only, no code).
        adapter: Directories of low-rank adapters, in PEFT's format or in mlx-lm's, that are added to the model; a
            number behind a colon weights one, as in ``"DIR:0.5"``. Of a classifier's the model gets the head.
        cut: What this process keeps of each weight in floating point, which the processes share; None: all of it. Where
            a tensor is stored as it is computed with, nothing else of it is read.
        tokenizer: The model's tokenizer, if it was read before; None: it is read.

    Returns:
        The model, in evaluation mode, with the head that config.json's `architectures` names; and its tokenizer, or
        None where there is none.

    Raises:
        UserError: no such model or device, an unsupported one, senseless settings, or weights that are damaged,
            unknown, missing or misshapen; an adapter for another model.
    """
    hub.check_named(path_or_hub_id)
    adapters = [adapter] if isinstance(adapter, str | Path) else list(adapter)
    alone = find_adapter(path_or_hub_id)
    if alone is not None:
        path_or_hub_id = read_base(alone)
        adapters.insert(0, alone)
    heads = [head for each in adapters if (head := read_head(path_and_weight(each)[0])) is not None]
    change = None if not heads else partial(_with_head_of, heads[0])
    model, tokenizer = _load(path_or_hub_id, change, dtype, device, quantize, allow_pickle, cut, tokenizer)
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
    require_model(path_or_hub_id)
    source = open_source(path_or_hub_id, allow_pickle=allow_pickle)
    return config_of(source), source.tokenizer()


def require_model(path_or_hub_id: str | Path) -> None:
    """Raise UserError for a directory that holds an adapter alone."""
    if find_adapter(path_or_hub_id) is not None:
        raise UserError(
            f"{path_or_hub_id} holds an adapter and no model: merge it into its base first, by anyformer convert "
            f"{path_or_hub_id} DIR."
        )


def inspect_adapter(directory: Path) -> ModelConfig:
    """The config of what `load` makes of a directory that holds an adapter alone: its base's, with the adapter's head.

    Raises UserError as `load` does.
    """
    (config, _), head = inspect(read_base(directory)), read_head(directory)
    return config if head is None else _with_head_of(head, config)


def load_with_head(
    path_or_hub_id: str | Path,
    kind: HeadKind,
    labels: Sequence[str] | int = 2,
    *,
    problem_type: ProblemType | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    quantize: str | None = None,
    allow_pickle: bool = False,
    cut: Cut | None = None,
    tokenizer: Tokenizer | None = None,
) -> tuple[Transformer, Tokenizer | None]:
    """Load a model without its head, and give it a new one to be trained.

    Weights of the new head are drawn as the family's paper does (see docs/initialization.md), in floating point even if
    the others are quantized. A pooler is kept if there is one. Seed what is drawn with `torch.manual_seed`.

    Args:
        kind: none, classification (one answer a text), token_classification (one a token) or language_model, which
            keeps the head that there is.
        labels: Of a classifier: their names, or how many there are.
        path_or_hub_id, dtype, device, quantize, allow_pickle, cut, tokenizer: See `load`.

    Returns:
        The model, in evaluation mode, and its tokenizer, or None where there is none.

    Raises:
        UserError: as `load`; a family without such a head, or labels that don't fit.
    """
    change = partial(with_head, kind=kind, labels=labels, problem_type=problem_type)
    return _load(path_or_hub_id, change, dtype, device, quantize, allow_pickle, cut, tokenizer)


def _with_head_of(head: HeadConfig, config: ModelConfig) -> ModelConfig:
    return with_head(config, head.kind, head.label_names or head.labels, head.problem_type)


def _load(
    path_or_hub_id: str | Path,
    change: Callable[[ModelConfig], ModelConfig] | None,
    dtype: torch.dtype | str | None,
    device: torch.device | str | None,
    quantize: str | None,
    allow_pickle: bool,
    cut: Cut | None,
    tokenizer: Tokenizer | None,
) -> tuple[Transformer, Tokenizer | None]:
    kind, dtype = None if quantize is None else quantization(quantize), torch_dtype(dtype)
    _require_device(device)
    source = open_source(path_or_hub_id, allow_pickle=allow_pickle)
    tokenizer, config = tokenizer or source.tokenizer(), config_of(source)
    changed = config if change is None else change(config)
    if changed is config:
        model = skeleton(config)
        table = source.family.table(model.config, model.state_dict())
    else:
        model = skeleton(without_missing_pooler(changed, source))
        table = kept_rows(skeleton(config), model, source)
    assign(model, table, source, kind, dtype, device, cut)
    assign_pooling(model, source, device)
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


class TakesModel(Protocol[P, R_co]):
    """A function of a model and its tokenizer, or of the directory, GGUF file or hub id to load the two from."""

    @overload
    def __call__(
        self, model: Transformer, tokenizer: Tokenizer | None, /, *args: P.args, **kwargs: P.kwargs
    ) -> R_co: ...
    @overload
    def __call__(self, model: str | Path, /, *args: P.args, **kwargs: P.kwargs) -> R_co: ...


def takes_model(function: Callable[Concatenate[Transformer, Tokenizer | None, P], R]) -> TakesModel[P, R]:
    """Let a function's model and tokenizer be given as a directory, a GGUF file or a hub id, which is loaded for the
    call.

    ``tag("runs/names", texts)`` is ``tag(*load("runs/names"), texts)``. A tokenizer behind the directory comes before
    the directory's own.
    """

    @wraps(function)
    def call(model: Any, *args: Any, **kwargs: Any) -> R:
        if isinstance(model, str | Path):
            model, tokenizer = load(model)
            if args and (args[0] is None or isinstance(args[0], Tokenizer)):
                tokenizer, args = args[0] or tokenizer, args[1:]
            args = (kwargs.pop("tokenizer", None) or tokenizer, *args)
        else:
            is_model, is_second = isinstance(model, nn.Module), not args or isinstance(args[0], Tokenizer | None)
            if not is_model or not is_second:
                raise UserError(
                    f"{function.__name__} takes a model and its tokenizer, as load(DIR) returns them, or the directory "
                    f"alone, and was given a {type(args[0] if is_model else model).__name__} there."
                )
        return cast("Any", function)(model, *args, **kwargs)

    return cast("TakesModel[P, R]", call)
