"""A decoding step: new tokens of every sequence of a batch, be it a prompt, one token, or a few that are verified.

On a CPU a step is one call of compiled code (`kernels/cpu/decode_step.cpp`) if there is a compiler and the model
consists of the library's own modules; otherwise, and until the compiler is done, it is a call of the model.
"""

import ctypes
from ctypes import c_int64, c_void_p
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from anyformer.blocks.kv_cache import KeyValueCache
from anyformer.generation.compiled_decoder import DTYPES, CompiledDecoder, UnsupportedModelError, layer_caches
from anyformer.generation.inference import float_logits
from anyformer.kernels.cpu import structs
from anyformer.kernels.cpu.build import Library
from anyformer.kernels.cpu_features import enabled
from anyformer.model import Transformer
from anyformer.quantization import bits_of

LIBRARY = Library(
    "decode_step",
    has_amx=(c_int64,),
    workspace_size=(c_int64, c_void_p, c_int64, c_int64, c_int64),
    decode_step=(None, c_void_p, c_void_p, c_int64),
)

_MAX_FLOAT_ROWS = 32
"""New tokens of a batch up to which the compiled step, which multiplies row by row, is faster with floating-point
weights: it reads them once for all rows, but torch's matrix products win from here (docs/measurements/decoding.md)."""

_CHUNK_ROWS = 512
"""New tokens that the compiled step takes at a time: more would only take more memory."""


@runtime_checkable
class Step(Protocol):
    """Runs the model on new tokens of each sequence and adds them to the cache."""

    def __call__(
        self,
        tokens: Int[Tensor, "batch new"],
        cache: KeyValueCache,
        *,
        mask: Bool[Tensor, "batch new"] | None = None,
        last_only: bool = False,
    ) -> Float[Tensor, "batch new vocab"]:
        """Return the logits after each token, in float32.

        Args:
            tokens: The new token ids.
            cache: The KV cache of the tokens before; with an encoder, also of its states.
            mask: False for padding; None: there is none.
            last_only: Return the logits after the last column only, [batch, 1, vocab].
        """
        ...


def decoder_step(model: Transformer, *, wait: bool = False) -> Step:
    """The fastest step for this model.

    Args:
        model: In evaluation mode. Its weights must not change between two steps.
        wait: Wait for the compiler, instead of calling the model until it is done.
    """
    eager = _eager_step(model)
    if model.device.type != "cpu" or not enabled():
        return eager
    try:
        compiled = _CompiledStep(model)
    except UnsupportedModelError:
        return eager
    LIBRARY.get(wait=wait)

    def step(tokens: Tensor, cache: KeyValueCache, *, mask: Tensor | None = None, last_only: bool = False) -> Tensor:
        library = LIBRARY.get()
        if library is None or not compiled.supports(library, model, tokens, cache):
            return eager(tokens, cache, mask=mask, last_only=last_only)
        if last_only and mask is None:
            width = max(1, _CHUNK_ROWS // len(tokens))
            *chunks, tokens = tokens.split(width, dim=1)
            for chunk in chunks:
                compiled(library, chunk, cache, None, num_logits=0)
        return compiled(library, tokens, cache, mask, num_logits=1 if last_only else tokens.shape[1])

    return step


def _eager_step(model: Transformer) -> Step:
    def step(tokens: Tensor, cache: KeyValueCache, *, mask: Tensor | None = None, last_only: bool = False) -> Tensor:
        return float_logits(model(tokens, mask=mask, cache=cache, last_only=last_only))

    return step


class _CompiledStep:
    def __init__(self, model: Transformer) -> None:
        self._decoder = CompiledDecoder(model)
        self._quantized = bits_of(model) is not None
        self._workspace = torch.empty(0, dtype=torch.uint8)
        scaling = model.config.position.scaling
        self._max_length = model.config.context_length
        if scaling is not None and scaling.kind == "dynamic":
            # Beyond the trained length the rotation of every token changes with each that follows.
            self._max_length = model.config.max_length

    def supports(self, library: Any, model: Transformer, tokens: Tensor, cache: KeyValueCache) -> bool:
        """Whether the compiled code can take this step, and is faster."""
        if torch.is_grad_enabled() or model.training or torch.is_autocast_enabled("cpu") or not tokens.numel():
            return False
        uses_amx = self._decoder.dtype == torch.bfloat16 and library.has_amx() > 0
        if tokens.numel() > _MAX_FLOAT_ROWS and not (self._quantized or uses_amx):
            return False
        if self._max_length is not None and cache.length + tokens.shape[1] > self._max_length:
            return False
        layer = cache.layers[0]
        if layer.keys.dtype not in DTYPES:
            return False
        if not self._decoder.has_cross_attention:
            return True
        return layer.cross is not None and layer.cross.keys.dtype == layer.keys.dtype

    def __call__(
        self, library: Any, tokens: Tensor, cache: KeyValueCache, mask: Tensor | None, *, num_logits: int
    ) -> Tensor:
        """The logits after the last `num_logits` columns."""
        decoder, (batch, new) = self._decoder, tokens.shape
        # All keys are written before any is read, so the new tokens of a sequence attend to each other.
        positions = cache.extend(tokens, mask).positions.expand(batch, new).contiguous()
        hidden_states = decoder.embed(tokens, positions, cache)
        if mask is not None:
            positions = positions.masked_fill(~mask, -1)
        logit_rows = torch.arange(batch * new).view(batch, new)[:, new - num_logits :].contiguous()
        cos, sin, bias = decoder.position_tables(cache.capacity)
        layer, source_mask = cache.layers[0], cache.source_mask
        if source_mask is not None:
            source_mask = source_mask.to(torch.uint8).contiguous()
        logits = torch.empty(batch, num_logits, decoder.vocab_size)
        caches = layer_caches(cache)
        source_length = 0 if layer.cross is None else layer.cross.keys.shape[2]
        max_keys, num_threads = max(cache.length, source_length), torch.get_num_threads()
        size: int = library.workspace_size(decoder.address, batch * new, max_keys, num_threads)
        if self._workspace.numel() < size:
            self._workspace = torch.empty(size, dtype=torch.uint8)
        arguments = structs.Batch(
            rows=batch * new,
            new_tokens=new,
            hidden_states=hidden_states.data_ptr(),
            positions=positions.data_ptr(),
            cos=None if cos is None else cos.data_ptr(),
            sin=None if sin is None else sin.data_ptr(),
            bias=None if bias is None else bias.data_ptr(),
            num_distances=0 if bias is None else bias.shape[1],
            caches=ctypes.addressof(caches),
            cache_dtype=DTYPES[layer.keys.dtype],
            source_length=source_length,
            source_index=None if layer.source_index is None else layer.source_index.data_ptr(),
            source_mask=None if source_mask is None else source_mask.data_ptr(),
            logit_rows=logit_rows.data_ptr(),
            num_logit_rows=batch * num_logits,
            logits=logits.data_ptr(),
            workspace=self._workspace.data_ptr(),
            num_threads=num_threads,
        )
        library.decode_step(decoder.address, ctypes.addressof(arguments), max_keys)
        return logits
