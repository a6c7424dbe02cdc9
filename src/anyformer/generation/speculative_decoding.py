"""Speculative decoding: guess the next tokens cheaply, and let the model judge them all in one step.

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
from anyformer.generation.inference import check_nan, evaluating
from anyformer.generation.prefill import cache_is_stale
from anyformer.generation.prefix_cache import common_prefix
from anyformer.generation.prompt import Prompt
from anyformer.generation.sampling import Sampler, draw
from anyformer.generation.step import decoder_step
from anyformer.model import Transformer

Draft = Transformer | Literal["prompt"]
"""What guesses: a smaller model with the same vocabulary, or what followed the same tokens earlier in the text."""

_FEWEST, _FIRST, _MOST = 1, 4, 7
"""Guesses at a time. With the token before them they are eight rows, up to which a step costs little more than one."""
_LONGEST_MATCH = 3


class Guesses(NamedTuple):
    """What may come next."""

    tokens: list[int]
    probabilities: Float[Tensor, "guesses vocab"] | None
    """The distributions that they were drawn from; None: they are certain."""


NO_GUESSES = Guesses([], None)


class PromptLookup:
    """Guesses that what followed the latest tokens before follows them again (Saxena 2023, prompt lookup decoding).

    Args:
        source: What is looked through before the text itself, such as the source of a summary.
    """

    def __init__(self, source: Sequence[int] = ()) -> None:
        self._source = list(source)

    def guess(self, text: Sequence[int], count: int) -> Guesses:
        """At most `count` guesses: the continuation of the latest position with the longest match."""
        known = [*self._source, *text]
        for length in range(min(_LONGEST_MATCH, len(text), len(known) - 1), 0, -1):
            end = known[-length:]
            for place in range(len(known) - length - 1, -1, -1):
                if known[place : place + length] == end:
                    follows = place + length
                    return Guesses(known[follows : follows + count], None)
        return NO_GUESSES


class DraftModel:
    """Guesses what a smaller model would write.

    Args:
        model: The smaller one.
        sampler: How tokens are chosen.
        capacity: The longest text in tokens.
    """

    def __init__(self, model: Transformer, sampler: Sampler, capacity: int) -> None:
        self._model, self._sampler = model, sampler
        self._step, self._cache = decoder_step(model), model.make_cache(1, capacity)
        self._read = list[int]()
        self._capacity = capacity

    def guess(self, text: Sequence[int], count: int) -> Guesses:
        """At most `count` guesses: the model's own continuation, as far as its context goes."""
        count = min(count, self._capacity - len(text))
        if count < 1:
            return NO_GUESSES
        known = min(common_prefix(self._read, text), len(text) - 1)
        self._cache.truncate(known)
        del self._read[known:]
        rest, tokens, probabilities = list(text[known:]), list[int](), list[Tensor]()
        with evaluating(self._model):
            while len(tokens) < count and not cache_is_stale(self._model, len(self._read) + len(rest)):
                ids = torch.tensor([rest], device=self._model.device)
                logits = check_nan(self._step(ids, self._cache, last_only=True)[:, -1])
                self._read += rest
                if self._sampler.config.temperature > 0:
                    allowed = self._sampler.filter(logits)
                    probabilities.append(allowed.softmax(dim=-1))
                    token = int(draw(allowed, self._sampler.generator))
                else:
                    token = int(logits.argmax())
                tokens.append(token)
                rest = [token]
        return Guesses(tokens, torch.cat(probabilities) if probabilities else None)


class Speculator:
    """Proposes guesses for one text, the more the more of them are accepted.

    Args:
        model: What judges them.
        draft: What makes them, one that `check_draft` allows.
        prompt: What the text begins with.
        sampler: How tokens are chosen.
    """

    def __init__(self, model: Transformer, draft: Draft, prompt: Prompt, sampler: Sampler) -> None:
        self._model, self._count, self._proposed = model, _FIRST, 0
        if isinstance(draft, Transformer):
            context = draft.config.context_length
            capacity = prompt.capacity if context is None else min(prompt.capacity, context)
            self._guess = DraftModel(draft, sampler, capacity).guess
            return
        source = prompt.source
        same = source is not None and model.config.source_vocab_size in (None, model.config.vocab_size)
        self._guess = PromptLookup(source[0].tolist() if source is not None and same else ()).guess

    def propose(self, text: Sequence[int], accepted: int, room: int) -> Guesses:
        """Guess what follows a text.

        Args:
            text: Prompt and new tokens.
            accepted: How many of the last guesses were right.
            room: The most guesses that are of use.
        """
        all_right = accepted == self._proposed
        self._count = min(_MOST, self._count + 2) if all_right else max(_FEWEST, accepted + 1)
        count = min(self._count, room)
        if count < 1 or cache_is_stale(self._model, len(text) + count):
            guesses = NO_GUESSES
        else:
            guesses = self._guess(text, count)
        self._proposed = len(guesses.tokens)
        return guesses


def verify(
    sampler: Sampler, logits: Float[Tensor, "1 vocab"], guess: int, guessed: Float[Tensor, " vocab"] | None
) -> Int[Tensor, " 1"]:
    """The model's own choice: the guess, or another token.

    Args:
        sampler: How it chooses.
        logits: The model's.
        guess: The token that was guessed.
        guessed: The distribution that it was drawn from; None: it is certain.
    """
    if sampler.config.temperature == 0.0:
        return sampler(logits)
    token = accept(sampler.filter(logits)[0], guess, guessed, sampler.generator)
    return torch.tensor([token], device=logits.device)


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


def accept(logits: Tensor, guess: int, guessed: Tensor | None, generator: torch.Generator | None) -> int:
    """The guess with the probability ``min(1, p / q)``, and otherwise one of ``max(0, p - q)``."""
    probabilities = logits.softmax(dim=-1)
    if guessed is None:
        guessed = torch.zeros_like(probabilities)
        guessed[guess] = 1.0
    chance = torch.rand((), generator=generator, device=logits.device)
    if bool(chance * guessed[guess] < probabilities[guess]):
        return guess
    rest = (probabilities - guessed).clamp(min=0.0)
    # Rounding may leave nothing where the two agree.
    return int(draw((rest if bool(rest.any()) else probabilities).log()[None], generator))
