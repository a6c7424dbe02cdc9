"""Prompts and sources, read once for all that is written after them."""

import torch
from jaxtyping import Float
from torch import Tensor

from anyformer.blocks.kv_cache import KeyValueCache
from anyformer.errors import UserError
from anyformer.generation.prompt import Prompt
from anyformer.generation.rules import History
from anyformer.generation.step import Step
from anyformer.generation.writing import all_scores
from anyformer.model import Transformer

DAMAGED = "The model answers with NaN: its weights are damaged, or its training diverged."


def read_once(
    model: Transformer, step: Step, prompt: Prompt, copies: int, capacity: int
) -> tuple[KeyValueCache, Float[Tensor, "texts vocab"]]:
    """Read each prompt and source once.

    Returns:
        The memory of so many copies of each text, which stand one after the other, and the scores of their first token.

    Raises:
        UserError: the model answers with NaN.
    """
    batch = len(prompt.start)
    cache = model.make_cache(batch, capacity)
    if prompt.source is None:
        scores = step(prompt.start, cache, mask=prompt.mask, last_only=True)
    else:
        scores = all_scores(
            model(
                prompt.start,
                prompt.source,
                mask=prompt.mask,
                source_mask=prompt.source_mask,
                cache=cache,
                last_only=True,
            )
        )
    scores = first_scores(scores)
    if copies == 1:
        return cache, scores
    every = torch.arange(batch, device=scores.device).repeat_interleave(copies)
    cache.select(every)
    return cache, scores[every]


def first_scores(scores: Float[Tensor, "batch time vocab"]) -> Float[Tensor, "batch vocab"]:
    """Those of each text's first new token. Raises UserError where the model has answered with NaN."""
    return checked(scores[:, -1])


def checked(scores: Float[Tensor, "rows vocab"]) -> Float[Tensor, "rows vocab"]:
    """The same scores. Raises UserError where the model has answered with NaN."""
    if bool(scores.amax(dim=-1).isnan().any()):  # the largest of some numbers and a NaN is the NaN
        raise UserError(DAMAGED)
    return scores


def cache_is_stale(model: Transformer, length: int) -> bool:
    """Whether the latest tokens change what earlier ones mean, as with dynamic scaling beyond the trained length."""
    scaling = model.config.position.scaling
    return scaling is not None and scaling.kind == "dynamic" and length > model.config.max_length


def reread(model: Transformer, prompt: Prompt, history: History) -> Float[Tensor, "batch vocab"]:
    """The scores of the next token, from reading everything anew."""
    mask = None if prompt.mask is None else history.real
    return all_scores(model(history.ids, prompt.source, mask=mask, source_mask=prompt.source_mask, last_only=True))[
        :, -1
    ]
