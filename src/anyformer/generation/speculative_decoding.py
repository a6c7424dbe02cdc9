"""Speculative decoding: guess the next tokens cheaply, and let the model verify them all in one step.

A step that reads five tokens takes little longer than one that reads one, for both read all weights. Whatever is
guessed, the text is the model's own: greedily each guess must be the model's choice, and a sampled text has exactly the
distribution that it would have had (Leviathan et al. 2023, algorithm 1; Chen et al. 2023).
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anyformer.errors import UserError
from anyformer.generation.cached_decoder import PrefixCache
from anyformer.generation.inference import argmax, cache_is_stale, check_nan, evaluating
from anyformer.generation.prompt import Prompt
from anyformer.generation.sampling import Sampler, draw
from anyformer.model import Transformer

Draft = Transformer | Literal["prompt"]
"""A smaller model with the same vocabulary, or what followed the same tokens earlier in the text."""

_MIN_GUESSES, _FIRST_GUESSES, _MAX_GUESSES = 1, 4, 7
"""Guesses at a time. With the token before them they are eight rows, up to which a step costs little more than one."""
MAX_ROWS = _MAX_GUESSES + 1
_MAX_NGRAM = 3


class Guesses(NamedTuple):
    """Tokens that may come next."""

    tokens: list[int]
    probabilities: Float[Tensor, "guesses vocab"] | None
    """The distributions that they were drawn from; None: they are certain."""


NO_GUESSES = Guesses([], None)


def prompt_lookup(text: Sequence[int], count: int, source: Sequence[int] = ()) -> Guesses:
    """At most `count` guesses that what followed the latest tokens before follows them again (Saxena 2023, prompt
    lookup decoding): the continuation of the latest position with the longest match, in the source or in the text."""
    ids = [*source, *text]
    for size in range(min(_MAX_NGRAM, len(text), len(ids) - 1), 0, -1):
        for begin in range(len(ids) - size - 1, -1, -1):
            if ids[begin : begin + size] == ids[-size:]:
                return Guesses(ids[begin + size : begin + size + count], None)
    return NO_GUESSES


class Speculator:
    """Proposes guesses for one text, which a model verifies, the more the more of them are accepted."""

    def __init__(self, model: Transformer, draft: Draft, prompt: Prompt, sampler: Sampler) -> None:
        self._model, self._sampler, self._count, self._proposed = model, sampler, _FIRST_GUESSES, 0
        self._draft = PrefixCache(draft) if isinstance(draft, Transformer) else None
        self._source: list[int] = []
        if prompt.source is not None and model.config.source_vocab_size in (None, model.config.vocab_size):
            self._source = prompt.source[0].tolist()

    def propose(self, text: Sequence[int], accepted: int, room: int) -> Guesses:
        """Guess at most `room` tokens after prompt and new ones; so many of the last guesses were accepted."""
        all_accepted = accepted == self._proposed
        self._count = min(_MAX_GUESSES, self._count + 2) if all_accepted else max(_MIN_GUESSES, accepted + 1)
        count, guesses = min(self._count, room), NO_GUESSES
        if count >= 1 and not cache_is_stale(self._model, len(text) + count):
            draft = self._draft
            guesses = prompt_lookup(text, count, self._source) if draft is None else self._continue(draft, text, count)
        self._proposed = len(guesses.tokens)
        return guesses

    def _continue(self, draft: PrefixCache, text: Sequence[int], count: int) -> Guesses:
        """At most `count` guesses of a smaller model: its own continuation, as far as its context goes."""
        context = draft.model.config.context_length
        end = len(text) + count if context is None else min(len(text) + count, context)
        ids, probabilities = list(text), list[Tensor]()
        with evaluating(draft.model):
            while len(ids) < end and not cache_is_stale(draft.model, len(ids)):
                logits = check_nan(draft.read(ids))
                if self._sampler.greedy:
                    ids.append(int(argmax(logits)))
                else:
                    logits = self._sampler.filter(logits)
                    probabilities.append(logits.softmax(dim=-1))
                    ids.append(int(draw(logits, self._sampler.generator)))
        return Guesses(ids[len(text) :], torch.cat(probabilities) if probabilities else None)


def verify(
    sampler: Sampler, logits: Float[Tensor, "1 vocab"], guess: int, guessed: Float[Tensor, " vocab"] | None
) -> Int[Tensor, " 1"]:
    """Draw a token: the guess with the probability ``min(1, p / q)``, otherwise one of ``max(0, p - q)``.

    The guess was drawn from the distribution q, `guessed`; None: it was certain.
    """
    probabilities = sampler.filter(logits)[0].softmax(dim=-1)
    if guessed is None:
        guessed = torch.zeros_like(probabilities)
        guessed[guess] = 1.0
    chance = torch.rand((), generator=sampler.generator, device=logits.device)
    if bool(chance * guessed[guess] < probabilities[guess]):
        return torch.tensor([guess], device=logits.device)
    rest = (probabilities - guessed).clamp(min=0.0)
    # Rounding may leave nothing where the two agree.
    return draw((rest if bool(rest.any()) else probabilities).log()[None], sampler.generator)


def check_draft(model: Transformer, draft: Draft) -> None:
    """Raise UserError where this draft can't guess for this model."""
    if isinstance(draft, str):
        if draft != "prompt":
            raise UserError(f'draft is a model or "prompt", not {draft!r}.')
        return
    if not (model.config.is_decoder_only and draft.config.is_decoder_only):
        raise UserError('A draft model guesses for decoder-only models, being one itself: use draft="prompt".')
    mine, theirs = model.config.vocab_size, draft.config.vocab_size
    if mine != theirs:
        raise UserError(
            f"The draft model has a vocabulary of {theirs} tokens, and the model one of {mine}: it must be the same."
        )
