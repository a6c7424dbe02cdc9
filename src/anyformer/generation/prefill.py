"""What a model has read of a batch of texts: prompts are prefilled into a cache, and each token costs one step more."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anyformer.blocks.kv_cache import KeyValueCache
from anyformer.generation.inference import float_logits
from anyformer.generation.prompt import Prompt
from anyformer.generation.step import Step, decoder_step
from anyformer.model import Transformer


@runtime_checkable
class Decoder(Protocol):
    """A model that has read a batch of texts. `CachedDecoder` and `PrefixCache` are two."""

    model: Transformer

    def prefill(self, prompt: Prompt) -> Float[Tensor, "texts vocab"]:
        """Read prompts, and return the logits of the first new token of each text."""
        ...

    def step(
        self, ids: Int[Tensor, "texts length"], guesses: Sequence[int] = ()
    ) -> Float[Tensor, "texts guesses_and_one vocab"]:
        """Read the last token of each text, with guesses behind it where there is one text only.

        Returns:
            The logits after each of the tokens read.
        """
        ...


class CachedDecoder(Decoder):
    """Reads each prompt and source once, for so many copies of its text, which stand one after the other."""

    def __init__(self, model: Transformer, copies: int = 1) -> None:
        self.model, self.copies = model, copies

    def prefill(self, prompt: Prompt) -> Float[Tensor, "texts vocab"]:
        """Read prompts, and return the logits of the first new token of each text."""
        self._step = decoder_step(self.model)
        self.prompt = prompt.repeat(self.copies)
        self.cache = self.model.make_cache(len(prompt.ids), prompt.capacity)
        logits = prefill(self.model, self._step, prompt, self.cache)
        if self.copies == 1:
            return logits
        rows = torch.arange(len(prompt.ids), device=logits.device).repeat_interleave(self.copies)
        self.cache.select(rows)
        return logits[rows]

    def step(
        self, ids: Int[Tensor, "texts length"], guesses: Sequence[int] = ()
    ) -> Float[Tensor, "texts guesses_and_one vocab"]:
        """Read the last token of each text, with guesses behind it where there is one text only."""
        length = ids.shape[1]
        if cache_is_stale(self.model, length):
            return recompute(self.model, self.prompt, ids)[:, None]
        if self.cache.length >= length:
            self.cache.truncate(length - 1)  # guesses that were rejected
        latest = ids[:, -1:]
        if guesses:
            latest = torch.cat((latest, torch.tensor([guesses], device=ids.device)), dim=1)
        return self._step(latest, self.cache)


def prefill(
    model: Transformer, step: Step, prompt: Prompt, cache: KeyValueCache, begin: int = 0, end: int | None = None
) -> Float[Tensor, "batch vocab"]:
    """Read the tokens ``[begin, end)`` of prompts into a cache, with the first of them the sources.

    Returns:
        The logits of the token after the last one read.
    """
    ids, mask = prompt.ids[:, begin:end], None if prompt.mask is None else prompt.mask[:, begin:end]
    if prompt.source is None or begin > 0:
        logits = step(ids, cache, mask=mask, last_only=True)
    else:
        out = model(ids, prompt.source, mask=mask, source_mask=prompt.source_mask, cache=cache, last_only=True)
        logits = float_logits(out)
    return logits[:, -1]


def cache_is_stale(model: Transformer, length: int) -> bool:
    """Whether the latest tokens change what earlier ones mean, as with dynamic scaling beyond the trained length."""
    scaling = model.config.position.scaling
    return scaling is not None and scaling.kind == "dynamic" and length > model.config.max_length


def cache_limit(model: Transformer) -> int | None:
    """The longest text in tokens whose keys and values can be kept; None: any."""
    scaling = model.config.position.scaling
    return model.config.max_length if scaling is not None and scaling.kind == "dynamic" else model.config.context_length


def recompute(model: Transformer, prompt: Prompt, ids: Int[Tensor, "batch length"]) -> Float[Tensor, "batch vocab"]:
    """The logits of the next token, without a cache.

    Args:
        model: What reads.
        prompt: What the texts begin with.
        ids: The whole texts.
    """
    mask = None
    if prompt.mask is not None:
        mask = torch.arange(ids.shape[1], device=ids.device)[None] >= prompt.padding[:, None]
    return float_logits(model(ids, prompt.source, mask=mask, source_mask=prompt.source_mask, last_only=True))[:, -1]
