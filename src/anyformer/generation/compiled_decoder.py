"""A decoder in compiled code: the table of its layers, and the call that runs them on new tokens."""

import ctypes
from collections.abc import Sequence
from ctypes import Structure, c_int64, c_void_p
from functools import cache
from itertools import chain
from operator import is_not
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from anyformer.blocks.embedding import TokenEmbedding, ngram_window
from anyformer.blocks.head import LanguageModelHead
from anyformer.blocks.kv_cache import KeyValueCache
from anyformer.blocks.quantized import QuantizedMatrix
from anyformer.blocks.stack import Stack
from anyformer.generation.compiled_layers import CompiledLayers, UnsupportedModelError, check_modules
from anyformer.generation.inference import cache_limit, found_likeliest
from anyformer.kernels.cpu import structs
from anyformer.kernels.cpu.library import Library
from anyformer.kernels.cpu.structs import address
from anyformer.kernels.threads import AdaptiveThreads
from anyformer.model import Transformer
from anyformer.quantization import quantized_weights

LIBRARY = Library(
    "decode_step",
    "decoding step",
    has_amx=(c_int64,),
    workspace_size=(c_int64, c_void_p, c_int64, c_int64, c_int64, c_int64),
    decode_step=(c_int64, c_void_p, c_void_p, c_int64),
)
_MAX_FLOAT_ROWS = 32
"""New tokens of a batch up to which the compiled step, which multiplies row by row, is faster with floating-point
weights: it reads them once for all rows, but torch's matrix products win from here (docs/measurements/decoding.md)."""


_threads = cache(AdaptiveThreads)
"""Threads of this process, by torch's number of them."""


class _PositionTables(NamedTuple):
    """Positions up to a capacity."""

    capacity: int = 0
    rotations: Any = None
    """Tables of the model's positions, and of its other layers'."""
    bias: Tensor | None = None
    kept: Sequence[Tensor] = ()
    """Tables that `rotations` points to."""


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
        check_modules([head])
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
        self._quantized = next(quantized_weights(model), None) is not None
        self._max_length = cache_limit(model)
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
        if torch.is_grad_enabled() or self.model.training or torch.is_autocast_enabled("cpu"):
            return False
        if not tokens.numel() or not self.adapters.supports(len(tokens)):
            return False
        if tokens.numel() > _MAX_FLOAT_ROWS and not self._quantized:
            library: Any = LIBRARY.get()
            if self.dtype != torch.bfloat16 or not library.has_amx():
                return False
        if self._max_length is not None and cache.length + tokens.shape[1] > self._max_length:
            return False
        dtype, cross = cache.keys_values.keys.dtype, cache.layers[0].cross
        if dtype not in structs.DTYPES:
            return False
        return not self.has_cross_attention or (cross is not None and cross.keys.dtype == dtype)

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
        with torch.inference_mode(False):  # those of inference mode count no changes
            logits = torch.empty(batch, num_logits, self.vocab_size)
        best = torch.empty(batch, num_logits, dtype=torch.long)
        found_likeliest[logits] = best, logits._version
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
            cache_dtype=structs.DTYPES[cache.keys_values.keys.dtype],
            source_length=source_length,
            source_index=address(layer.source_index),
            source_mask=address(source_mask),
            logit_rows=address(logit_rows),
            num_logit_rows=batch * num_logits,
            logits=address(logits),
            likeliest=address(best),
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
        layers, cross = cache.layers, [layer.cross for layer in cache.layers if layer.cross is not None]
        tensors = [*cache.keys_values, *chain.from_iterable(cross)]
        latest, caches = self._addresses.get(cache, ([], None))
        if len(latest) != len(tensors) or any(map(is_not, latest, tensors)):
            if any(tensor.stride(-1) != 1 and tensor.shape[-1] != 1 for tensor in tensors):
                raise UnsupportedModelError("keys that are not contiguous")
            caches = (structs.LayerCache * len(layers))()
            for views, layer in zip(caches, layers, strict=True):
                for name, tensor in zip(views.types, (layer.keys, layer.values, *(layer.cross or ())), strict=False):
                    setattr(views, name, structs.view(tensor))
            self._addresses[cache] = tensors, caches
        return caches
