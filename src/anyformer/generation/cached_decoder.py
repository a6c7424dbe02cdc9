"""Decoding with a key-value cache: a prompt is prefilled, and each new token costs one step.

On a CPU a step is one call of compiled code (`kernels/cpu/decode_step.cpp`) if the model
consists of the library's own modules; otherwise it is a call of the model.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from typing_extensions import override

from anyformer.blocks.kv_cache import KeyValueCache
from anyformer.generation.compiled_decoder import LIBRARY, CompiledDecoder
from anyformer.generation.compiled_layers import UnsupportedModelError
from anyformer.generation.inference import cache_is_stale, head_logits
from anyformer.generation.prompt import Prompt
from anyformer.kernels import DENSE, Layout
from anyformer.model import Transformer
from anyformer.tokenizer.prompt import common_prefix

_CHUNK_ROWS = 512
"""New tokens that the compiled step takes at a time: more would only take more memory."""
_SMALLEST_PREFIX_CACHE = 1024
_WORTH_SHARING = 16
"""Tokens in common below which a text is rather read anew."""
_CAPACITY_STEP = 64
"""Capacities of kept texts are multiples of it, so that others fit in their memory."""


class DecoderStep:
    """Runs a model on new tokens of each sequence, be it a prompt, one token, or a few that are verified.

    Args:
        model: In evaluation mode. Its weights must not change between two steps.
    """

    def __init__(self, model: Transformer) -> None:
        self.model = model
        self._compiled: CompiledDecoder | None = None
        if model.device.type == "cpu" and LIBRARY.get() is not None:
            with suppress(UnsupportedModelError):
                self._compiled = CompiledDecoder(model)

    def __call__(
        self,
        tokens: Int[Tensor, "batch new"],
        cache: KeyValueCache,
        *,
        mask: Bool[Tensor, "batch new"] | None = None,
        source: Int[Tensor, "batch source"] | None = None,
        source_mask: Bool[Tensor, "batch source"] | None = None,
        last_only: bool = False,
        packed: bool = False,
    ) -> Float[Tensor, "#batch scored vocab"]:
        """Return the logits after each token, in float32, and add the tokens to the cache.

        Args:
            cache: The keys and values of the tokens before, and of the source.
            mask: False for padding; None: there is none.
            source, source_mask: In an encoder-decoder's first step, as for the model.
            last_only: Return the logits after the last column only, [batch, 1, vocab].
            packed: Return none after padding: where there is some, the others in one row, [1, tokens, vocab].
        """
        compiled, layout = self._compiled, Layout.of(mask) if packed and mask is not None else DENSE
        if compiled is None or source is not None or not compiled.supports(tokens, cache):
            masks = {"mask": mask, "source_mask": source_mask}
            out = self.model(tokens, source, **masks, cache=cache, last_only=last_only, return_logits=False)
            return head_logits(self.model, layout.gather(out.hidden[:, -1:] if last_only else out.hidden))
        if last_only and mask is None:
            *chunks, tokens = tokens.split(max(1, _CHUNK_ROWS // len(tokens)), dim=1)
            for chunk in chunks:
                compiled(chunk, cache, None, num_logits=0)
        return layout.gather(compiled(tokens, cache, mask, num_logits=1 if last_only else tokens.shape[1]))


class CachedDecoder:
    """Reads each prompt and source once, for so many copies of its text, which stand one after the other."""

    def __init__(self, model: Transformer, copies: int = 1) -> None:
        self.model, self.copies = model, copies

    def prefill(self, prompt: Prompt) -> Float[Tensor, "texts vocab"]:
        """Read prompts, and return the logits of the first new token of each text."""
        self._step = DecoderStep(self.model)
        self.prompt = prompt.repeat(self.copies)
        self.cache = self.model.make_cache(len(prompt.ids), prompt.capacity)
        logits = self._step(
            prompt.ids,
            self.cache,
            mask=prompt.mask,
            source=prompt.source,
            source_mask=prompt.source_mask,
            last_only=True,
        )[:, -1]
        if self.copies == 1:
            return logits
        rows = torch.arange(len(prompt.ids), device=logits.device).repeat_interleave(self.copies)
        self.cache.select(rows)
        return logits[rows]

    def step(
        self, ids: Int[Tensor, "texts length"], guesses: Sequence[int] = ()
    ) -> Float[Tensor, "texts guesses_and_one vocab"]:
        """Read the last token of each text, with guesses behind it where there is one text only.

        Returns:
            The logits after each of the tokens read.
        """
        length, prompt = ids.shape[1], self.prompt
        padding: list[int] = prompt.padding.tolist() if cache_is_stale(self.model, length) else []
        if any(cache_is_stale(self.model, length - before, self.cache.length - before) for before in padding):
            mask = None if prompt.mask is None else torch.arange(length, device=ids.device) >= prompt.padding[:, None]
            self.cache = self.model.make_cache(len(ids), self.cache.capacity)
            return self._step(
                ids, self.cache, mask=mask, source=prompt.source, source_mask=prompt.source_mask, last_only=True
            )
        if self.cache.length >= length:
            self.cache.truncate(length - 1)  # guesses that were rejected
        latest = ids[:, -1:]
        if guesses:
            latest = torch.cat((latest, torch.tensor([guesses], device=ids.device)), dim=1)
        return self._step(latest, self.cache)


class PrefixCache(CachedDecoder):
    """Reads only what a text doesn't share with the beginning of the latest one, of a decoder-only model.

    The cache doubles when the text outgrows it.
    """

    def __init__(self, model: Transformer) -> None:
        super().__init__(model)
        self._step = DecoderStep(model)
        self._ids: list[int] = []
        with torch.inference_mode():
            self.cache = model.make_cache(1, _SMALLEST_PREFIX_CACHE)

    @override
    def prefill(self, prompt: Prompt) -> Float[Tensor, "1 vocab"]:
        self.prompt = prompt
        return self.read(prompt.ids[0].tolist())

    @override
    def step(self, ids: Int[Tensor, "1 length"], guesses: Sequence[int] = ()) -> Float[Tensor, "1 1 vocab"]:
        return self._read(ids.shape[1] - 1, ids[:, -1:])

    def read(self, ids: Sequence[int]) -> Float[Tensor, "1 vocab"]:
        """Read one text, and return the logits of the token after it."""
        # The last token is always read: its logits are not kept.
        start = min(common_prefix(self._ids, ids), len(ids) - 1)
        return self._read(start, torch.tensor([ids[start:]], device=self.model.device))[:, -1]

    def _read(self, start: int, ids: Int[Tensor, "1 new"]) -> Float[Tensor, "1 1 vocab"]:
        # An interrupted reading may have left the layers with different lengths.
        self.cache.truncate(start)
        del self._ids[start:]
        length = start + ids.shape[1]
        if length > self.cache.capacity:
            wider = self.model.make_cache(1, max(length, 2 * self.cache.capacity))
            wider.put(0, self.cache)
            self.cache = wider
        logits = self._step(ids, self.cache, last_only=True)
        self._ids += ids[0].tolist()
        return logits


class _KeptText(NamedTuple):
    """A text, and its keys and values by one of the adapters."""

    adapter: str | None
    ids: list[int]
    cache: KeyValueCache


class PrefixStore:
    """Keys and values of the latest texts of a decoder-only model, for others that begin with the same tokens: the next
    turn of a chat, or a shared prompt.

    Args:
        model: Its caches are kept.
        texts: Number of texts; 0: none is kept. The memory of as many that were forgotten is used again.
        capacity: Longest text in tokens.
    """

    def __init__(self, model: Transformer, texts: int, capacity: int) -> None:
        self._model, self._most = model, 0 if model.config.is_encoder_decoder else texts
        self._capacity = capacity
        self._kept: list[_KeptText] = []
        """The latest last."""
        self._spare: list[KeyValueCache] = []
        """Caches of forgotten texts: to take new memory from the system takes longer than to fill it."""

    def find(self, ids: Sequence[int], adapter: str | None = None) -> KeyValueCache:
        """A cache with room for a prompt, and with the longest beginning that it has in common with a text.

        Texts that were read with another adapter have other keys and values. The last token of the prompt is never in
        it, since its logits are not kept. It is empty where there is nothing worth it.
        """
        best, shared = None, _WORTH_SHARING - 1
        for text in self._kept:
            common = min(common_prefix(text.ids, ids), len(ids) - 1)
            if text.adapter == adapter and common > shared:
                best, shared = text, common
        cache = self._empty(len(ids))
        if best is not None:
            self._kept.remove(best)
            self._kept.append(best)
            cache.put(0, best.cache, length=shared)
        return cache

    def keep(self, cache: KeyValueCache, row: int | None = None, adapter: str | None = None) -> None:
        """Keep a text, and forget those that it begins with.

        Args:
            cache: Taken over if `row` is None, and has one text then.
            row: The text of the cache, which is copied.
        """
        if self._most == 0:
            return
        if row is not None:
            own = self._empty(int(cache.lengths[row]))
            own.put(0, cache, row)
            cache = own
        ids: list[int] = cache.tokens[0, : cache.length].tolist()
        kept = [text for text in self._kept if text.adapter != adapter or ids[: len(text.ids)] != text.ids]
        kept = [*kept, _KeptText(adapter, ids, cache)][-self._most :]
        self._spare += [text.cache for text in self._kept if text not in kept]
        del self._spare[: -self._most]
        self._kept = kept

    def clear(self) -> None:
        """Forget all texts."""
        self._kept.clear()
        self._spare.clear()

    def _empty(self, length: int) -> KeyValueCache:
        """An empty cache for so many tokens: a spare one that is at most twice as large, or a new one."""
        spare = [cache for cache in self._spare if length <= cache.capacity <= 2 * length + _CAPACITY_STEP]
        if not spare:
            rounded = -(-length // _CAPACITY_STEP) * _CAPACITY_STEP
            return self._model.make_cache(1, min(rounded, self._capacity) if self._most else length)
        cache = min(spare, key=lambda each: each.capacity)
        self._spare.remove(cache)
        cache.truncate(0)
        return cache
