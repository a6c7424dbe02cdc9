"""What every search for a text needs to know of a model that writes."""

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from anyformer.blocks.cache import KeyValueCache
from anyformer.errors import UserError
from anyformer.generation.prompt import Prompt
from anyformer.generation.rules import History, Rule, RuleContext, generation_settings, rules_for
from anyformer.model import ModelOutput, Transformer


def require_writing(model: Transformer) -> None:
    """Raise UserError for a model that can't write text."""
    if model.config.is_encoder_only:
        raise UserError(
            "An encoder reads text and doesn't write it: use `embed` for its vectors, or `fill` for the "
            "words behind masks."
        )
    if model.config.head.kind != "language_model":
        raise UserError(
            f"This model has no language-model head (its head is {model.config.head.kind!r}), so it can't "
            "write text: load one that was saved with it."
        )


def end_tokens(model: Transformer) -> tuple[int, ...]:
    """The tokens that end a text: those of the generation settings, else those of the config."""
    eos = cast("int | list[int] | None", generation_settings(model).get("eos_token_id"))
    known = model.config.tokens.eos if eos is None else [eos] if isinstance(eos, int) else eos
    return tuple(token for token in known if 0 <= token < model.config.vocab_size)


def filler(model: Transformer, ends: Sequence[int]) -> int:
    """What stands after the end of a text that others outlast."""
    known = (generation_settings(model).get("pad_token_id"), model.config.tokens.pad, *ends)
    return next((token for token in known if token is not None and 0 <= token < model.config.vocab_size), 0)


def rules_of(model: Transformer, prompt: Prompt, max_new_tokens: int, ends: Sequence[int]) -> list[Rule]:
    """What the model's generation settings demand of the texts that follow this prompt."""
    given = (prompt.start, prompt.mask) if prompt.source is None else (prompt.source, prompt.source_mask)
    context = RuleContext(
        vocab_size=model.config.vocab_size, max_new_tokens=max_new_tokens, ends=ends, ids=given[0], mask=given[1]
    )
    return rules_for(generation_settings(model), context)


def read_once(
    model: Transformer, prompt: Prompt, copies: int, capacity: int
) -> tuple[KeyValueCache, Float[Tensor, "texts vocab"]]:
    """Read each prompt and source once.

    Returns:
        The memory of so many copies of each text, which stand one after the other, and the scores of their first token.

    Raises:
        UserError: the model answers with NaN.
    """
    batch = len(prompt.start)
    cache = model.make_cache(batch, capacity)
    out = model(
        prompt.start,
        prompt.source,
        mask=prompt.mask,
        source_mask=prompt.source_mask,
        cache=cache,
        last_only=True,
    )
    scores = first_scores(out)
    if copies == 1:
        return cache, scores
    every = torch.arange(batch, device=scores.device).repeat_interleave(copies)
    cache.select(every)
    return cache, scores[every]


def first_scores(out: ModelOutput) -> Float[Tensor, "batch vocab"]:
    """The scores of each text's first new token. Raises UserError where the model answers with NaN."""
    scores = next_scores(out)
    if bool(scores.isnan().any()):
        raise UserError("The model answers with NaN: its weights are damaged, or its training diverged.")
    return scores


def next_scores(out: ModelOutput) -> Float[Tensor, "batch vocab"]:
    """The scores of each text's next token, in float32."""
    return all_scores(out)[:, -1]


def all_scores(out: ModelOutput) -> Float[Tensor, "batch time vocab"]:
    """The scores of what follows each token, in float32."""
    if out.logits is None:
        raise ValueError("a model without a language-model head scores no tokens")
    return out.logits.float()


def cache_is_stale(model: Transformer, length: int) -> bool:
    """Whether the latest tokens change what earlier ones mean, as with dynamic scaling beyond the trained length."""
    scaling = model.config.position.scaling
    return scaling is not None and scaling.kind == "dynamic" and length > model.config.max_length


def reread(model: Transformer, prompt: Prompt, history: History) -> Float[Tensor, "batch vocab"]:
    """The scores of the next token, from reading everything anew."""
    mask = None if prompt.mask is None else history.real
    return next_scores(model(history.ids, prompt.source, mask=mask, source_mask=prompt.source_mask, last_only=True))
