"""New tokens of every text: a prompt, and then a token or a few, again and again.

On a CPU the whole step is one call of compiled code (`kernels/cpu`), where there is a compiler and the model has
nothing of its own; otherwise, and until the compiler is done, it is the model itself.
"""

import ctypes
from ctypes import c_int64, c_void_p
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from anyformer.blocks.kv_cache import KeyValueCache
from anyformer.generation.compiled_decoder import InexpressibleError, NativeDecoder, memories
from anyformer.generation.inference import device_of
from anyformer.generation.writing import all_scores
from anyformer.kernels.cpu import structs
from anyformer.kernels.cpu.build import Unit, wanted
from anyformer.model import Transformer
from anyformer.quantization import bits_of

UNIT = Unit(
    "decode_step",
    tiles=(c_int64,),
    bytes=(c_int64, c_void_p, c_int64, c_int64, c_int64),
    step=(None, c_void_p, c_void_p, c_int64),
)

_WIDEST = 32
"""Rows up to which the compiled step is faster with weights in floating point, where it multiplies row by row: it reads
them once for all rows, but torch's products of matrices win from about here (docs/measurements/decoding.md)."""

_PIECE = 512
"""Rows that the compiled step takes at a time: more would only want more memory."""


@runtime_checkable
class Step(Protocol):
    """Reads new tokens of each text into the cache."""

    def __call__(
        self,
        tokens: Int[Tensor, "batch new"],
        cache: KeyValueCache,
        *,
        mask: Bool[Tensor, "batch new"] | None = None,
        last_only: bool = False,
    ) -> Float[Tensor, "batch new vocab"]:
        """Return the scores of what follows each token, in float32.

        Args:
            tokens: The new ones.
            cache: What was read before; an encoder-decoder's has read the sources.
            mask: False for padding; None: there is none.
            last_only: Only the scores of what follows the last column are wanted, [batch, 1, vocab].
        """
        ...


def step_of(model: Transformer, *, wait: bool = False) -> Step:
    """The way to take such steps with this model.

    Args:
        model: In evaluation mode. Its weights may not change between two steps.
        wait: Wait for the compiler, instead of stepping with torch until it is done.
    """
    plain = _plain_step(model)
    if device_of(model).type != "cpu" or not wanted():
        return plain
    try:
        native = _NativeStep(model)
    except InexpressibleError:
        return plain
    UNIT.get(wait=wait)

    def step(tokens: Tensor, cache: KeyValueCache, *, mask: Tensor | None = None, last_only: bool = False) -> Tensor:
        compiled = UNIT.get()
        if compiled is None or not (tokens.numel() <= _WIDEST or native.is_made_for_many(compiled)):
            return plain(tokens, cache, mask=mask, last_only=last_only)
        if torch.is_grad_enabled() or model.training or torch.is_autocast_enabled("cpu"):
            return plain(tokens, cache, mask=mask, last_only=last_only)
        if not tokens.numel() or not native.knows(cache, tokens.shape[1]):
            return plain(tokens, cache, mask=mask, last_only=last_only)
        if last_only and mask is None:
            width = max(1, _PIECE // len(tokens))
            *pieces, tokens = tokens.split(width, dim=1)
            for piece in pieces:
                native(compiled, piece, cache, None, scored=0)
        return native(compiled, tokens, cache, mask, scored=1 if last_only else tokens.shape[1])

    return step


def _plain_step(model: Transformer) -> Step:
    def step(tokens: Tensor, cache: KeyValueCache, *, mask: Tensor | None = None, last_only: bool = False) -> Tensor:
        return all_scores(model(tokens, mask=mask, cache=cache, last_only=last_only))

    return step


class _NativeStep:
    def __init__(self, model: Transformer) -> None:
        self._decoder = NativeDecoder(model)
        self._integers = bits_of(model) is not None
        self._workspace = torch.empty(0, dtype=torch.uint8)
        scaling = model.config.position.scaling
        self._longest = model.config.context_length
        if scaling is not None and scaling.kind == "dynamic":
            # Beyond the trained length every token turns anew with each that follows.
            self._longest = model.config.max_length

    def is_made_for_many(self, compiled: Any) -> bool:
        """Whether the compiled code multiplies many rows faster than torch."""
        return self._integers or (self._decoder.dtype == torch.bfloat16 and compiled.tiles() > 0)

    def knows(self, cache: KeyValueCache, new: int) -> bool:
        """Whether this cache, so many tokens longer, is one that the compiled code can read."""
        if self._longest is not None and cache.length + new > self._longest:
            return False
        layer = cache.layers[0]
        if layer.keys.dtype not in (torch.float32, torch.bfloat16):
            return False
        if not self._decoder.asks_sources:
            return True
        return layer.sources is not None and layer.sources.keys.dtype == layer.keys.dtype

    def __call__(
        self, compiled: Any, tokens: Tensor, cache: KeyValueCache, mask: Tensor | None, *, scored: int
    ) -> Tensor:
        """The step, with the scores of each text's last `scored` columns."""
        decoder, (batch, new) = self._decoder, tokens.shape
        # Those of a text see each other, for all keys are written before any is looked at.
        places = cache.extend(tokens, mask).new.expand(batch, new).contiguous()
        vectors = decoder.vectors(tokens, places, cache)
        if mask is not None:
            places = places.masked_fill(~mask, -1)
        rows = torch.arange(batch * new).view(batch, new)[:, new - scored :].contiguous()
        cos, sin, bias = decoder.tables(cache.capacity)
        source, whose = cache.layers[0].sources, cache.layers[0].whose
        source_mask = cache.source_mask
        if source_mask is not None:
            source_mask = source_mask.to(torch.uint8).contiguous()
        scores = torch.empty(batch, scored, decoder.vocab)
        layers = memories(cache)
        longest = max(cache.length, 0 if source is None else source.keys.shape[2])
        threads = torch.get_num_threads()
        needed: int = compiled.bytes(decoder.address, batch * new, longest, threads)
        if self._workspace.numel() < needed:
            self._workspace = torch.empty(needed, dtype=torch.uint8)
        described = structs.Batch(
            rows=batch * new,
            new_tokens=new,
            hidden_states=vectors.data_ptr(),
            positions=places.data_ptr(),
            cos=None if cos is None else cos.data_ptr(),
            sin=None if sin is None else sin.data_ptr(),
            bias=None if bias is None else bias.data_ptr(),
            num_distances=0 if bias is None else bias.shape[1],
            caches=ctypes.addressof(layers),
            cache_dtype=structs.FLOAT32 if cache.layers[0].keys.dtype == torch.float32 else structs.BFLOAT16,
            source_length=0 if source is None else source.keys.shape[2],
            source_index=None if whose is None else whose.data_ptr(),
            source_mask=None if source_mask is None else source_mask.data_ptr(),
            logit_rows=rows.data_ptr(),
            num_logit_rows=batch * scored,
            logits=scores.data_ptr(),
            workspace=self._workspace.data_ptr(),
            num_threads=threads,
        )
        compiled.step(decoder.address, ctypes.addressof(described), longest)
        return scores
