"""Speculation: guess the next tokens cheaply, and let the model judge them all in one step.

A step that reads five tokens takes little longer than one that reads one, for both read all weights. Whatever is
guessed, the text is the model's own: greedily each guess must be the model's choice, and a drawn text has exactly the
distribution that it would have had (Leviathan et al. 2023, algorithm 1; Chen et al. 2023).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from anyformer.errors import UserError
from anyformer.generation.inference import device_of, evaluating
from anyformer.generation.prefix import common_start
from anyformer.generation.prompt import Prompt
from anyformer.generation.reading import cache_is_stale, checked, first_scores, read_once, reread
from anyformer.generation.rules import History, Rule
from anyformer.generation.sampling import Sampling, draw
from anyformer.generation.step import decoder_step
from anyformer.model import Transformer

Draft = Transformer | Literal["prompt"]
"""Who guesses: a smaller model with the same vocabulary, or what followed the same words earlier in the text."""

_FEWEST, _FIRST, _MOST = 1, 4, 7
"""Guesses at a time. With the token before them they are eight rows, up to which a step costs little more than one."""
_LONGEST_MATCH = 3


class Guesses(NamedTuple):
    """What may come next."""

    tokens: list[int]
    probabilities: Float[Tensor, "guesses vocab"] | None
    """The distributions that they were drawn from; None: they are certain."""


_Guess = Callable[[Sequence[int], int], Guesses]
"""At most so many tokens that may follow a text."""


class PromptLookup:
    """Guesses that what followed the latest tokens before follows them again (Saxena 2023, prompt lookup decoding).

    Args:
        source: What is looked through before the text itself, such as the source of a summary.
    """

    def __init__(self, source: Sequence[int] = ()) -> None:
        self._source = list(source)

    def guess(self, text: Sequence[int], count: int) -> Guesses:
        """See `Guesses`: the continuation of the latest place with the longest match."""
        known = [*self._source, *text]
        for length in range(min(_LONGEST_MATCH, len(text), len(known) - 1), 0, -1):
            end = known[-length:]
            for place in range(len(known) - length - 1, -1, -1):
                if known[place : place + length] == end:
                    follows = place + length
                    return Guesses(known[follows : follows + count], None)
        return Guesses([], None)


class DraftModel:
    """Guesses what a smaller model would write.

    Args:
        model: The smaller one.
        sampling: How the text is drawn.
        capacity: Its longest possible length.
        generator: See `Sampling.choose`.
    """

    def __init__(
        self, model: Transformer, sampling: Sampling, capacity: int, generator: torch.Generator | None
    ) -> None:
        self._model, self._sampling, self._generator = model, sampling, generator
        self._step, self._cache = decoder_step(model), model.make_cache(1, capacity)
        self._read = list[int]()
        self._capacity = capacity

    def guess(self, text: Sequence[int], count: int) -> Guesses:
        """See `Guesses`: the model's own continuation, as far as its context goes."""
        count = min(count, self._capacity - len(text))
        if count < 1:
            return Guesses([], None)
        known = min(common_start(self._read, text), len(text) - 1)
        self._cache.truncate(known)
        del self._read[known:]
        rest, tokens, probabilities = list(text[known:]), list[int](), list[Tensor]()
        with evaluating(self._model):
            while len(tokens) < count and not cache_is_stale(self._model, len(self._read) + len(rest)):
                ids = torch.tensor([rest], device=device_of(self._model))
                scores = first_scores(self._step(ids, self._cache, last_only=True))
                self._read += rest
                if self._sampling.temperature > 0:
                    allowed = self._sampling.filter(scores)
                    probabilities.append(allowed.softmax(dim=-1))
                    token = int(draw(allowed, self._generator))
                else:
                    token = int(scores.argmax())
                tokens.append(token)
                rest = [token]
        return Guesses(tokens, torch.cat(probabilities) if probabilities else None)


def speculate(
    model: Transformer,
    draft: Draft,
    prompt: Prompt,
    max_new_tokens: int,
    ends: Sequence[int],
    rules: Sequence[Rule],
    sampling: Sampling,
    generator: torch.Generator | None,
) -> Iterator[Tensor]:
    """The new tokens of one text, [1] each, some of which come at once; the draft is one that `check_draft` allows."""
    device, read = prompt.start.device, prompt.start.shape[1]
    guess = _guesser(model, draft, prompt, read + max_new_tokens, sampling, generator)
    step, count = decoder_step(model), _FIRST
    with evaluating(model):
        with torch.inference_mode():
            cache, scores = read_once(model, step, prompt, 1, read + max_new_tokens)
            scores = scores[None]
            text: list[int] = prompt.start[0].tolist()
        guesses = Guesses([], None)
        while True:
            with torch.inference_mode():
                chosen = _judge(scores[0], guesses, text, read, rules, sampling, generator)
            for token in chosen:
                text.append(token)
                yield torch.tensor([token], device=device)
                if token in ends or len(text) - read == max_new_tokens:
                    return
            with torch.inference_mode():
                accepted = len(chosen) - 1
                count = min(_MOST, count + 2) if accepted == len(guesses.tokens) else max(_FEWEST, accepted + 1)
                room = max_new_tokens - (len(text) - read) - 1
                asked = 0 if cache_is_stale(model, len(text) + min(count, room)) else min(count, room)
                # All but the latest token has been read.
                cache.truncate(len(text) - 1)
                guesses = guess(text, asked) if asked else Guesses([], None)
                if cache_is_stale(model, len(text)):
                    ids = torch.tensor([text], device=device)
                    scores = reread(model, prompt, History(ids=ids, padding=prompt.padding, new=len(text) - read))[None]
                else:
                    scores = step(torch.tensor([[text[-1], *guesses.tokens]], device=device), cache)


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


def _guesser(
    model: Transformer,
    draft: Draft,
    prompt: Prompt,
    capacity: int,
    sampling: Sampling,
    generator: torch.Generator | None,
) -> _Guess:
    if isinstance(draft, Transformer):
        context = draft.config.context_length
        return DraftModel(draft, sampling, capacity if context is None else min(capacity, context), generator).guess
    source = prompt.source
    same = source is not None and model.config.source_vocab_size in (None, model.config.vocab_size)
    return PromptLookup(source[0].tolist() if source is not None and same else ()).guess


def _judge(
    scores: Float[Tensor, "guesses_and_one vocab"],
    guesses: Guesses,
    text: list[int],
    read: int,
    rules: Sequence[Rule],
    sampling: Sampling,
    generator: torch.Generator | None,
) -> list[int]:
    """The guesses that the model agrees to, and one token of its own behind them."""
    chosen = list[int]()
    padding = torch.zeros(1, dtype=torch.long, device=scores.device)
    for place, row in enumerate(scores.split(1)):
        row = checked(row)
        if rules:
            ids = torch.tensor([[*text, *chosen]], device=scores.device)
            history = History(ids=ids, padding=padding, new=ids.shape[1] - read)
            for rule in rules:
                row = rule(row, history)
        guess = guesses.tokens[place] if place < len(guesses.tokens) else None
        if sampling.temperature == 0.0:
            token = int(sampling.choose(row))
        elif guess is None:
            token = int(sampling.choose(row, generator))
        else:
            token = _accept(sampling.filter(row)[0], guess, _row(guesses.probabilities, place), generator)
        chosen.append(token)
        if token != guess:
            break
    return chosen


def _accept(logits: Tensor, guess: int, guessed: Tensor | None, generator: torch.Generator | None) -> int:
    """The guess with the probability ``min(1, p / q)``, and otherwise one of ``max(0, p - q)``."""
    likely = logits.softmax(dim=-1)
    if guessed is None:
        guessed = torch.zeros_like(likely)
        guessed[guess] = 1.0
    chance = torch.rand((), generator=generator, device=logits.device)
    if bool(chance * guessed[guess] < likely[guess]):
        return guess
    rest = (likely - guessed).clamp(min=0.0)
    # Rounding may leave nothing where the two agree.
    return int(draw((rest if bool(rest.any()) else likely).log()[None], generator))


def _row(rows: Tensor | None, place: int) -> Tensor | None:
    return None if rows is None else rows[place]
