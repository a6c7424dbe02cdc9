"""The layers of a stack in compiled code: tables of pointers to their weights and to the factors of their adapters.

Models with anything else than the library's own modules are refused, and left to torch: other classes, hooks, custom
activations and norms, weights that are neither float32 nor bfloat16 nor quantized.
"""

import ctypes
import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from ctypes import Structure, c_void_p
from functools import cache
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from anyformer.adapters.modules import adapter_of
from anyformer.blocks.attention import MultiHeadAttention
from anyformer.blocks.block import TransformerBlock
from anyformer.blocks.embedding import InputEmbedding, TokenEmbedding
from anyformer.blocks.experts import Experts
from anyformer.blocks.feed_forward import FeedForward
from anyformer.blocks.head import LanguageModelHead
from anyformer.blocks.linear import Embedding, GroupedLinear, Linear, LowRankAdapter, acting_adapters
from anyformer.blocks.norm import LayerNorm, OffsetRMSNorm, PlainRMSNorm, RMSNorm
from anyformer.blocks.position import (
    LearnedPosition,
    PositionalEncoding,
    RelativePosition,
    RotaryPosition,
    SinusoidalPosition,
)
from anyformer.blocks.quantized import QuantizedMatrix
from anyformer.blocks.stack import Stack
from anyformer.generation.inference import modules_of
from anyformer.kernels.activation import COMPILED
from anyformer.kernels.cpu import structs
from anyformer.kernels.cpu.matmul import described
from anyformer.kernels.packed_weight import BLOCK_ROWS
from anyformer.model import Transformer
from anyformer.schema import unknown_fields

_POSITIONS = (PositionalEncoding, SinusoidalPosition, LearnedPosition, RotaryPosition, RelativePosition)
_MODULES = (
    TransformerBlock,
    MultiHeadAttention,
    FeedForward,
    Experts,
    LanguageModelHead,
    InputEmbedding,
    TokenEmbedding,
)
_log = logging.getLogger("anyformer")
_BLOCKS = {
    "attention": "heads kv_heads head_dim bias output_bias scale scale_by_layer window qk_norm softcap sinks dropout",
    "feed_forward": "width activation gated limit up_offset bias dropout",
    "feed_forward.experts": "count used router_bias normalized balance",
}
_KNOWN = {
    **_BLOCKS,
    **{f"decoder_{part}": fields for part, fields in _BLOCKS.items()},
    "other_layers": "first then window position",
    "norm": "kind eps placement final first",
    "embedding": "tied scaled scale segments norm padding ngrams ngram_rows dropout",
    "head": "kind bias scaled scale softcap",
}
KNOWN = frozenset(
    {
        *(f"{part}.{field}" for part, fields in _KNOWN.items() for field in fields.split()),
        *("vocab_size", "source_vocab_size", "d_model", "encoder_layers", "decoder_layers", "distinct_layers"),
        *("max_length", "position", "residual_scale", "dropout", "pooling", "init", "special_tokens", "model_type"),
    }
)
"""Fields of the config that decode_step.cpp computes by, or whose modules and tables torch computes for it. A model of
which any other is not as by default is left to torch."""
_MAX_WIDTH, _MAX_HEAD_DIM = 1 << 14, 512
"""The widest layers and heads that decode_step.cpp has room for."""


class UnsupportedModelError(Exception):
    """The compiled step cannot run the model."""


class _Terms(NamedTuple):
    """The low-rank terms of adapters that act together."""

    table: Any
    """One of each layer, by `Matrix.adapted`."""
    max_rank: int
    kept: list[Tensor]
    """The factors that the table points to."""


class CompiledAdapters:
    """The adapters of the layers in a table of pointers.

    Factors are copied when they act for the first time: in float32 beside weights in float32, elsewhere in bfloat16,
    since the inputs of such weights are rounded as coarsely.
    """

    def __init__(self) -> None:
        self._layers: list[Linear] = []
        self._all: list[LowRankAdapter] = []
        self._names: list[str] = []
        self._foreign: set[str] = set()
        self._terms: dict[tuple[str, ...], _Terms] = {}

    def add(self, layer: Linear) -> int:
        """Add a layer, and return its index in tables of terms; 0: it has no adapters."""
        if layer.adapters is None:
            return 0
        for name, adapter in cast("Iterable[tuple[str, LowRankAdapter]]", layer.adapters.items()):
            self._all.append(adapter)
            self._names += [] if name in self._names else [name]
            # DoRA is more than a sum, and the rows of experts are sorted.
            if type(adapter) is not LowRankAdapter or adapter.magnitude is not None:
                self._foreign.add(name)
        self._layers.append(layer)
        return len(self._layers)

    def supports(self, batch: int) -> bool:
        """Whether compiled code computes all adapters that act on so many sequences."""
        if not self._layers:
            return True
        acting = {name for names in acting_adapters(self._names, batch) for name in names}
        return not acting or (acting.isdisjoint(self._foreign) and all(each.enabled for each in self._all))

    def of(self, batch: int, new: int) -> tuple[Any, int]:
        """Pointers to the terms of each row, `new` rows a sequence, and the highest rank; None and 0: none acts."""
        if not self._layers:
            return None, 0
        terms = [self._together(names) if names else None for names in acting_adapters(self._names, batch)]
        if not any(terms):
            return None, 0
        pointers = [None if each is None else ctypes.addressof(each.table) for each in terms for _ in range(new)]
        return (c_void_p * len(pointers))(*pointers), max(0 if each is None else each.max_rank for each in terms)

    def _together(self, names: tuple[str, ...]) -> _Terms:
        """The terms of adapters that act together: in each layer one, of the sum of their ranks."""
        if names not in self._terms:
            table, kept = (structs.LowRank * (1 + len(self._layers)))(), list[Tensor]()
            for index, layer in enumerate(self._layers, start=1):
                if adapters := [each for name in names if (each := adapter_of(layer, name)) is not None]:
                    weight = cast("Tensor | QuantizedMatrix", layer.weight)
                    is_float32 = isinstance(weight, Tensor) and weight.dtype == torch.float32
                    dtype = torch.float32 if is_float32 else torch.bfloat16
                    a = torch.cat([each.a for each in adapters])
                    b = torch.cat([each.scale * each.b for each in adapters], dim=1)
                    panels = [_panels(each, dtype) for each in (a, b)]
                    kept += panels
                    table[index] = structs.LowRank(*map(structs.address, panels), len(a))
            self._terms[names] = _Terms(table, max(term.rank for term in table), kept)
        return self._terms[names]


def _panels(factor: Float[Tensor, "rows depth"], dtype: torch.dtype) -> Float[Tensor, "panels parts 16 part"]:
    """Panels of 16 rows of a factor, padded with zeros: [depth, 16], of bfloat16 [depth / 2, 16, 2]."""
    part = 4 // dtype.itemsize
    rows, depth = factor.shape
    padded = F.pad(factor.detach(), (0, -depth % part, 0, -rows % BLOCK_ROWS))
    return padded.view(-1, BLOCK_ROWS, padded.shape[1] // part, part).transpose(1, 2).to(dtype).contiguous()


class CompiledLayers:
    """The layers of a stack as tables of pointers, whose targets it keeps alive.

    Args:
        known: Fields of the config that may have another value than their default.

    Raises:
        UnsupportedModelError: Compiled code has no layers like these.
    """

    def __init__(self, model: Transformer, stack: Stack, known: Collection[str] = KNOWN) -> None:
        if type(model) is not Transformer or type(stack) is not Stack or type(stack.position) not in _POSITIONS:
            raise UnsupportedModelError("a custom class")
        check_modules([model, model.token_embedding, *modules_of(stack)])
        unknown = unknown_fields(model.config, known)
        if model.config.norm.is_parallel and model.config.feed_forward.experts is not None:
            unknown.append("feed_forward.experts beside attention")
        if unknown:
            raise unsupported(unknown[0])
        self._kept: list[Any] = []
        self.adapters = CompiledAdapters()
        self.model, blocks = model, stack.layers
        layers = (structs.Layer * len(blocks))(*map(self._layer, blocks, stack.windows, stack.has_other_position))
        self._kept.append(layers)
        self._stack = {
            "layers": ctypes.addressof(layers),
            "num_layers": len(blocks),
            "d_model": model.config.d_model,
            "is_parallel": int(model.config.norm.is_parallel),
            "residual_scale": model.config.residual_scale,
            "final_norm": self._norm(stack.final_norm),
        }

    def _layer(self, block: TransformerBlock, window: int | None, rotation: int) -> Structure:
        if block.feed_forward.activation not in COMPILED:
            raise UnsupportedModelError("a custom activation")
        norms = self._norms(block, "attention" if block.shares_norm else "feed_forward")
        limit = block.feed_forward.limit or 0.0
        activation = COMPILED[block.feed_forward.activation]
        return structs.Layer(
            attention=self._attention(block, "attention", window, rotation),
            cross_attention=self._attention(block, "cross_attention"),
            feed_forward=self._part(
                structs.FeedForward,
                block.feed_forward,
                norms=norms,
                activation=activation,
                limit=limit,
                **self._router(block),
            ),
        )

    def _router(self, block: TransformerBlock) -> dict[str, Any]:
        """The fields that tell which experts compute a token."""
        experts = block.feed_forward if isinstance(block.feed_forward, Experts) else None
        if experts is None:
            return {"router": structs.Matrix(), "experts": 0, "used": 0, "normalized": 0}
        config = experts.config
        sizes = {"experts": config.count, "used": config.used, "normalized": int(config.normalized)}
        return {"router": self._matrix(experts.router), **sizes}

    def _attention(self, block: TransformerBlock, name: str, window: int | None = None, rotation: int = 0) -> Structure:
        attention: MultiHeadAttention | None = getattr(block, name)
        if attention is None:
            return structs.Attention()
        if attention.head_dim > _MAX_HEAD_DIM:
            raise UnsupportedModelError("a larger head_dim than there is room for")
        return self._part(
            structs.Attention,
            attention,
            norms=self._norms(block, name),
            has_wide_norm=int(attention.qk_norm == "width"),
            window=window or 0,
            rotation=rotation,
            softcap=attention.softcap or 0.0,
            sinks=self._pointer(attention.sinks),
        )

    def _norms(self, block: TransformerBlock, name: str) -> Structure:
        norm, inner = (self._norm(getattr(block, f"{name}_{kind}")) for kind in ("norm", "output_norm"))
        return structs.Norms(**{"outer" if block.post_norm else "before": norm}, inner=inner)

    def _part(self, structure: Any, module: nn.Module, **fields: Any) -> Structure:
        """The structure of a module, with these fields; all others are attributes of the module."""
        converted: dict[Any, Callable[[Any], Any]] = {structs.Matrix: self._matrix, structs.Norm: self._norm}
        for name, kind in structure.types.items():
            if name not in fields:
                value = getattr(module, name)
                fields[name] = converted[kind](value) if kind in converted else value
        return structure(**fields)

    def _matrix(self, module: nn.Module | None, bias: Tensor | None = None) -> Structure:
        """The weight of a linear layer or of an embedding, with the bias given or its own."""
        if module is None:
            return structs.Matrix()
        if type(module) not in (Linear, GroupedLinear, Embedding):
            raise UnsupportedModelError(f"a layer of class {type(module).__name__}")
        weight = cast("Linear", module).weight
        outputs, inputs = weight.shape
        if isinstance(weight, QuantizedMatrix):
            self._kept.append(packed := weight.packed_weight)
            matrix = described(packed)
        else:
            if weight.dtype not in structs.DTYPES or not weight.is_contiguous():
                raise UnsupportedModelError("weights of another dtype")
            self._kept.append(weight.detach())  # its memory stays, wherever the parameter moves
            sizes = {"out_features": outputs, "in_features": inputs, "dtype": structs.DTYPES[weight.dtype]}
            matrix = structs.make(structs.Matrix, weights=weight, **sizes)
        outputs //= module.groups if isinstance(module, GroupedLinear) else 1
        if max(outputs if outputs != self.model.config.vocab_size else 0, inputs) > _MAX_WIDTH:
            raise UnsupportedModelError("wider layers than there is room for")
        matrix.bias = self._pointer(getattr(module, "bias", None) if bias is None else bias)
        matrix.adapted = self.adapters.add(module) if isinstance(module, Linear) else 0
        return matrix

    def _norm(self, module: nn.Module | None) -> Structure:
        if type(module) is LayerNorm:
            weight, bias = self._pointer(module.weight), self._pointer(module.bias)
            return structs.Norm(structs.LAYER_NORM, weight, bias, module.eps)
        if type(module) is RMSNorm:
            return structs.Norm(structs.RMS_NORM, self._pointer(module.weight), None, module.eps)
        if type(module) is OffsetRMSNorm:
            return structs.Norm(structs.RMS_NORM, self._pointer(1.0 + module.weight.float()), None, module.eps)
        if type(module) is PlainRMSNorm:
            return structs.Norm(structs.RMS_NORM, self._pointer(torch.ones(module.width)), None, module.eps)
        if module is None or type(module) is nn.Identity:
            return structs.Norm()
        raise UnsupportedModelError(f"a norm of class {type(module).__name__}")

    def _pointer(self, tensor: Tensor | None) -> int | None:
        """The address of the tensor, or of a copy, in float32."""
        if tensor is None:
            return None
        self._kept.append(tensor.detach().float().contiguous())
        return self._kept[-1].data_ptr()


def unsupported(field: str) -> UnsupportedModelError:
    """The exception for a field of the config that compiled code doesn't know, with a warning of the speed."""
    _warn(field)
    return UnsupportedModelError(field)


@cache
def _warn(field: str) -> None:
    """Once a process: every text and every request would say it again."""
    _log.warning("torch alone computes this model, slower than compiled code, which doesn't know %s.", field)


def check_modules(modules: Sequence[nn.Module]) -> None:
    """Raise UnsupportedModelError for modules, hooks or methods that are not the library's."""
    for module in modules:
        if module._forward_hooks or module._forward_pre_hooks:  # pyright: ignore[reportPrivateUsage]
            raise UnsupportedModelError("hooks")
        if "forward" in vars(module):
            raise UnsupportedModelError("a custom forward pass")
        if isinstance(module, _MODULES) and type(module) not in _MODULES:
            raise UnsupportedModelError("a custom class")
