"""A decoder in compiled code: a table of pointers to its weights, and the call that runs it on new tokens.

Models with anything else than the library's own modules are refused, and left to torch: other classes, hooks, custom
activations and norms, weights that are neither float32 nor bfloat16 nor quantized.
"""

import ctypes
import logging
from collections.abc import Callable, Sequence
from ctypes import Structure, c_int64, c_void_p
from functools import cache
from operator import is_not
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from anyformer.blocks.attention import MultiHeadAttention
from anyformer.blocks.block import TransformerBlock
from anyformer.blocks.embedding import InputEmbedding, TokenEmbedding, ngram_window
from anyformer.blocks.experts import Experts
from anyformer.blocks.feed_forward import FeedForward
from anyformer.blocks.head import LanguageModelHead
from anyformer.blocks.kv_cache import KeyValueCache
from anyformer.blocks.linear import Embedding, GroupedLinear, Linear
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
from anyformer.config import ModelConfig
from anyformer.generation.compiled_adapters import CompiledAdapters
from anyformer.generation.inference import cache_limit
from anyformer.kernels.activation import COMPILED
from anyformer.kernels.cpu import structs
from anyformer.kernels.cpu.library import Library
from anyformer.kernels.cpu.matmul import described
from anyformer.kernels.cpu.structs import address
from anyformer.kernels.threads import AdaptiveThreads
from anyformer.model import Transformer
from anyformer.quantization import bits_of
from anyformer.schema import not_default

LIBRARY = Library(
    "decode_step",
    "decoding step",
    has_amx=(c_int64,),
    workspace_size=(c_int64, c_void_p, c_int64, c_int64, c_int64, c_int64),
    decode_step=(c_int64, c_void_p, c_void_p, c_int64),
)
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
_UNKNOWN = (
    *("other_layers.feed_forward", "attention.latent"),
    *(f"feed_forward.experts.{name}" for name in ("scores", "scale", "shared", "groups", "used_groups", "correction")),
)
"""Fields of the config that decode_step.cpp does not know."""
_MAX_WIDTH, _MAX_HEAD_DIM = 1 << 14, 512
"""The widest layers and heads that decode_step.cpp has room for."""
_MAX_FLOAT_ROWS = 32
"""New tokens of a batch up to which the compiled step, which multiplies row by row, is faster with floating-point
weights: it reads them once for all rows, but torch's matrix products win from here (docs/measurements/decoding.md)."""


_threads = cache(AdaptiveThreads)
"""Threads of this process, by torch's number of them."""


class UnsupportedModelError(Exception):
    """The compiled step cannot run the model."""


class _PositionTables(NamedTuple):
    """Positions up to a capacity."""

    capacity: int = 0
    rotations: Any = None
    """Tables of the model's positions, and of its other layers'."""
    bias: Tensor | None = None
    kept: Sequence[Tensor] = ()
    """Tables that `rotations` points to."""


class CompiledLayers:
    """The layers of a stack as tables of pointers, whose targets it keeps alive.

    Raises:
        UnsupportedModelError: Compiled code has no layers like these.
    """

    def __init__(self, model: Transformer, stack: Stack) -> None:
        if type(model) is not Transformer or type(stack) is not Stack or type(stack.position) not in _POSITIONS:
            raise UnsupportedModelError("a custom class")
        _check_modules([model, model.token_embedding, *stack.modules()])
        _check_fields(model.config)
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
            self._kept.append(weight.packed_weight)
            matrix = described(weight.packed_weight)
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


class CompiledDecoder(CompiledLayers):
    """A model's decoder as a table of pointers.

    Raises:
        UnsupportedModelError: The compiled step cannot run the model.
    """

    def __init__(self, model: Transformer) -> None:
        decoder, head = model.decoder, model.head
        if decoder is None or type(head) is not LanguageModelHead or head.transform is not None:
            raise UnsupportedModelError("no plain language-model head")
        super().__init__(model, decoder)
        _check_modules([head])
        self.decoder, self.dtype = decoder, model.dtype
        self.has_cross_attention = any(block.cross_attention is not None for block in decoder.layers)
        last = self._matrix(head.projection or model.token_embedding.table, head.bias)
        self.vocab_size = last.out_features
        self.table = structs.Decoder(
            **self._stack,
            embedding=self._embedding(model.token_embedding, decoder),
            embedding_scale=model.token_embedding.scale,
            dtype=structs.DTYPES.get(self.dtype, structs.FLOAT32),
            head_scale=head.scale,
            softcap=head.softcap or 0.0,
            head=last,
        )
        self._tables = _PositionTables()
        self._addresses: WeakKeyDictionary[KeyValueCache, tuple[list[Tensor], Any]] = WeakKeyDictionary()
        self._quantized, self._max_length = bits_of(model) is not None, cache_limit(model)
        self._workspace = torch.empty(0, dtype=torch.uint8)

    def _embedding(self, tokens: TokenEmbedding, decoder: Stack) -> Structure:
        """The table of the token embeddings if they are rows of it as they are, and not in 4 bits; else no matrix."""
        weight, embedding = tokens.table.weight, decoder.embedding
        parts = (tokens.table.adapters, embedding.ngrams, embedding.segments, embedding.norm)
        is_plain = all(part is None for part in parts)
        is_plain &= decoder.position.embed(torch.zeros(1, 1, dtype=torch.long)) is None
        is_plain &= not (isinstance(weight, QuantizedMatrix) and weight.bits == 4)
        return self._matrix(tokens.table if is_plain else None)

    def supports(self, tokens: Tensor, cache: KeyValueCache) -> bool:
        """Whether the compiled code can take this step, and is faster."""
        library: Any = LIBRARY.get()
        if torch.is_grad_enabled() or self.model.training or torch.is_autocast_enabled("cpu"):
            return False
        if not tokens.numel() or not self.adapters.supports(len(tokens)):
            return False
        is_long = tokens.numel() > _MAX_FLOAT_ROWS and not self._quantized
        if is_long and not (self.dtype == torch.bfloat16 and library.has_amx()):
            return False
        if self._max_length is not None and cache.length + tokens.shape[1] > self._max_length:
            return False
        layer = cache.layers[0]
        if layer.keys.dtype not in structs.DTYPES:
            return False
        return not self.has_cross_attention or (layer.cross is not None and layer.cross.keys.dtype == layer.keys.dtype)

    def __call__(self, tokens: Tensor, cache: KeyValueCache, mask: Tensor | None, *, num_logits: int) -> Tensor:
        """The logits after the last `num_logits` columns."""
        (batch, new), rows = tokens.shape, tokens.numel()
        threads = _threads(torch.get_num_threads())
        # All keys are written before any is read, so the new tokens of a sequence attend to each other.
        positions = cache.extend(tokens, mask).positions.expand(batch, new).contiguous()
        # Torch's functions take longer than the work that they do here, so none is called that isn't needed.
        is_embedded = bool(self.table.embedding.weights)
        hidden_states = torch.empty(rows, self.table.d_model) if is_embedded else self._embed(tokens, positions, cache)
        if mask is not None:
            positions = positions.masked_fill(~mask, -1)
        logit_rows = None
        if num_logits < new:
            logit_rows = torch.arange(rows).view(batch, new)[:, new - num_logits :].contiguous()
        rotations, bias = self._position_tables(cache.capacity)
        layer, source_mask = cache.layers[0], cache.source_mask
        if source_mask is not None:
            source_mask = source_mask.to(torch.uint8).contiguous()
        tokens = tokens.long().contiguous()
        logits = torch.empty(batch, num_logits, self.vocab_size)
        source_length = 0 if layer.cross is None else layer.cross.keys.shape[2]
        max_keys, num_threads = max(cache.length, source_length), threads.count
        library: Any = LIBRARY.get()
        decoder, (adapters, max_rank) = ctypes.addressof(self.table), self.adapters.of(batch, new)
        size: int = library.workspace_size(decoder, rows, max_rank, max_keys, num_threads)
        if self._workspace.numel() < size:
            self._workspace = torch.empty(size, dtype=torch.uint8)
        arguments = structs.Batch(
            rows=rows,
            new_tokens=new,
            tokens=address(tokens) if is_embedded else None,
            hidden_states=address(hidden_states),
            positions=address(positions),
            rotations=ctypes.addressof(rotations),
            bias=address(bias),
            num_distances=0 if bias is None else bias.shape[1],
            adapters=adapters and ctypes.addressof(adapters),
            max_rank=max_rank,
            caches=ctypes.addressof(self._layer_caches(cache)),
            cache_dtype=structs.DTYPES[layer.keys.dtype],
            source_length=source_length,
            source_index=address(layer.source_index),
            source_mask=address(source_mask),
            logit_rows=address(logit_rows),
            num_logit_rows=batch * num_logits,
            logits=address(logits),
            workspace=address(self._workspace),
            num_threads=num_threads,
        )
        threads.begin()
        if not library.decode_step(decoder, ctypes.addressof(arguments), max_keys):
            raise IndexError(f"a token id is not in the vocabulary of {self.vocab_size}")
        if new == 1:  # a prompt's tokens take less time each
            threads.end(batch)
        return logits

    def _position_tables(self, capacity: int) -> tuple[Any, Tensor | None]:
        """Cosines and sines [capacity, head_dim] of every position, and the bias [heads, capacity] of every distance.

        They are computed by the model, in its dtype.
        """
        if self._tables.capacity < capacity:
            positions, own, other = torch.arange(capacity)[None], self.decoder.position, self.decoder.other_position
            encodings = (own,) if other is None else (own, other)
            rotations, kept = (structs.Rotation * len(encodings))(), list[Tensor]()
            for rotation, encoding in zip(rotations, encodings, strict=True):
                if (angles := encoding.rotation(positions, torch.tensor([[1]])).keys) is not None:
                    tables = [table.to(self.dtype).float().flatten(0, -2).contiguous() for table in angles]
                    rotation.cos, rotation.sin = map(address, tables)
                    kept += tables
            if (bias := own.bias(positions[:, -1:], positions)) is not None:
                bias = bias[0, :, 0].flip(-1).float().contiguous()
            self._tables = _PositionTables(capacity, rotations, bias, kept)
        return self._tables.rotations, self._tables.bias

    def _embed(self, tokens: Tensor, positions: Tensor, cache: KeyValueCache) -> Tensor:
        """The input of the first block, [batch * new, d_model]."""
        embedding, encoded = self.decoder.embedding, self.decoder.encoded_positions(positions, cache)
        ngrams, added = embedding.ngrams, self.decoder.position.embed(encoded)
        recent = None if ngrams is None else ngram_window(cache.tokens, positions, encoded, ngrams.longest)
        return embedding(self.model.token_embedding(tokens), added, None, recent).flatten(0, 1).float().contiguous()

    def _layer_caches(self, cache: KeyValueCache) -> Any:
        """The addresses of a cache's keys and values, which are the same tensors at most steps."""
        tensors: list[Tensor] = []
        for layer in cache.layers:
            tensors += (layer.keys, layer.values, *(layer.cross or ()))
        latest, caches = self._addresses.get(cache, ([], None))
        if len(latest) != len(tensors) or any(map(is_not, latest, tensors)):
            if any(tensor.stride(3) != 1 and tensor.shape[3] != 1 for tensor in tensors):
                raise UnsupportedModelError("keys that are not contiguous")
            caches = (structs.LayerCache * len(cache.layers))()
            for views, layer in zip(caches, cache.layers, strict=True):
                for name, tensor in zip(views.types, (layer.keys, layer.values, *(layer.cross or ())), strict=False):
                    setattr(views, name, structs.view(tensor))
            self._addresses[cache] = tensors, caches
        return caches


def _check_fields(config: ModelConfig) -> None:
    """Raise UnsupportedModelError for fields that decode_step.cpp does not know, and warn of the speed."""
    unknown = not_default(config, _UNKNOWN)
    if config.norm.is_parallel and config.feed_forward.experts is not None:
        unknown = (*unknown, "feed_forward.experts beside attention")
    if unknown:
        _warn(unknown[0])
        raise UnsupportedModelError(unknown[0])


@cache
def _warn(field: str) -> None:
    """Once a process: every text and every request would say it again."""
    _log.warning("torch alone computes each token, slower than compiled code, which doesn't know %s.", field)


def _check_modules(modules: Sequence[nn.Module]) -> None:
    """Raise UnsupportedModelError for modules, hooks or methods that are not the library's."""
    for module in modules:
        if module._forward_hooks or module._forward_pre_hooks:  # pyright: ignore[reportPrivateUsage]
            raise UnsupportedModelError("hooks")
        if "forward" in vars(module):
            raise UnsupportedModelError("a custom forward pass")
        if isinstance(module, _MODULES) and type(module) not in _MODULES:
            raise UnsupportedModelError("a custom class")
