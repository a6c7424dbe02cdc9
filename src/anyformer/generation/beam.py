"""Beam search: several texts grow side by side, and the likeliest of those that ended are the answer.

The search is Hugging Face's, step for step, so that a model's settings (`num_beams`, `length_penalty`,
`early_stopping`) find the same texts with the same scores. What differs is the work: the encoder and the prompt are
read once a text and not once a beam, and a text whose search is over leaves the batch.

Shapes::

    rows        texts that are still being searched for     beams   texts that grow for each
    candidates  continuations that a step looks at          new     longest answer, in tokens
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from anyformer.errors import UserError
from anyformer.generation.inference import evaluating
from anyformer.generation.prompt import Prompt, chosen, read_prompt, repeated
from anyformer.generation.reading import cache_is_stale, checked, read_once, reread
from anyformer.generation.rules import History, Rule, generation_settings
from anyformer.generation.step import decoder_step
from anyformer.generation.writing import end_tokens, filler, require_writing, rules_of
from anyformer.model import Transformer

_NEVER = -1e9
"""The score of what there is not yet. Hugging Face's, for a ban within the rules is worse still: -inf."""

_BLOCK = 128
"""Scores in a block of `largest`."""

EarlyStopping = bool | Literal["never"]


@dataclass(frozen=True, kw_only=True)
class BeamSearch:
    """How texts are searched for.

    Raises:
        UserError: a value that describes no search.
    """

    beams: int = 4
    """Texts that grow side by side for each prompt. 1: greedy."""
    length_penalty: float = 1.0
    """A text's score is its log-probability divided by ``length ** length_penalty``: 0 favors short texts, 1 compares
    means a token, more favors long ones."""
    early_stopping: EarlyStopping = False
    """When a search is over. True: as soon as `beams` texts have ended; False: when the best that still grows would
    have a worse score than all of them if it ended now; "never": when it could not catch up at any length."""

    def __post_init__(self) -> None:
        if self.beams < 1:
            raise UserError(f"beams is a number of texts that grow side by side, at least 1, not {self.beams}.")
        if not abs(self.length_penalty) < float("inf"):
            raise UserError(f"length_penalty is a finite number, not {self.length_penalty}.")


def search_for(
    model: Transformer,
    beams: int | None = None,
    length_penalty: float | None = None,
    early_stopping: EarlyStopping | None = None,
) -> BeamSearch:
    """The search that was asked for; what was left open (None) is as the model's generation settings say.

    Raises:
        UserError: a value that describes no search.
    """
    settings = generation_settings(model)

    def first(asked: Any, name: str, usual: Any) -> Any:
        return next(value for value in (asked, settings.get(name), usual) if value is not None)

    stopping = first(early_stopping, "early_stopping", False)
    if stopping not in (True, False, "never"):
        raise UserError(f'generation_config.json: early_stopping is true, false or "never", not {stopping!r}.')
    return BeamSearch(
        beams=first(beams, "num_beams", 1),
        length_penalty=first(length_penalty, "length_penalty", 1.0),
        early_stopping=stopping,
    )


@dataclass(frozen=True)
class Hypotheses:
    """What a search found: for each prompt its best texts, the best first."""

    ids: Int[Tensor, "batch n_best new"]
    """The new tokens, filled up with padding behind their end."""
    scores: Float[Tensor, "batch n_best"]
    """Log-probability divided by ``length ** length_penalty``; the end-of-text token counts as well."""


def beam_search_ids(
    model: Transformer,
    ids: Int[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"] | None = None,
    max_new_tokens: int = 20,
    search: BeamSearch | None = None,
    n_best: int = 1,
    stop_at_end: bool = True,
) -> Hypotheses:
    """Search for the likeliest continuations of prompts, or rewritings of sources.

    Args:
        model: A decoder-only model or an encoder-decoder; it stays in the mode that it is in.
        ids: Prompts; for an encoder-decoder what the encoder reads.
        mask: True for a real token, False for padding, on the left or the right; None: all are real.
        max_new_tokens: Length at which every text ends.
        search: How; None: as the model's generation settings say.
        n_best: Texts to return for each prompt, at most as many as there are beams.
        stop_at_end: Texts end at an end-of-text token, and not at `max_new_tokens` only.

    Returns:
        The texts and their scores, where the model is.

    Raises:
        UserError: as `generate_ids`, and for more texts than beams.
    """
    search = search or search_for(model)
    require_writing(model)
    if not 1 <= n_best <= search.beams:
        raise UserError(
            f"{n_best} texts of each prompt were asked for (n_best), and the search keeps {search.beams} (beams): ask "
            "for at least one, and at most as many as there are beams."
        )
    prompt = read_prompt(model, ids, mask, max_new_tokens)
    ends = end_tokens(model) if stop_at_end else ()
    with evaluating(model), torch.inference_mode():
        found = _Beams(model, prompt, max_new_tokens, ends, search).run()
    length = int(found.lengths[:, :n_best].max())
    # Copies made outside of inference mode are ordinary tensors, fit to train on.
    return Hypotheses(found.ids[:, :n_best, :length].clone(), found.scores[:, :n_best].clone())


@dataclass
class _Found:
    """The best texts that have ended. [rows, beams, ...]"""

    ids: Tensor
    scores: Tensor
    lengths: Tensor
    exists: Tensor

    def best(self, others: _Found) -> _Found:
        """The best of both, as many as there are here."""
        scores = torch.cat((self.scores, others.scores), dim=1)
        order = scores.topk(self.scores.shape[1], dim=1).indices
        return _Found(
            _take(torch.cat((self.ids, others.ids), dim=1), order),
            scores.gather(1, order),
            torch.cat((self.lengths, others.lengths), dim=1).gather(1, order),
            torch.cat((self.exists, others.exists), dim=1).gather(1, order),
        )

    def write(self, where: Tensor, rows: _Found) -> None:
        """Put the texts of rows into these places."""
        for mine, theirs in zip(self._fields(), rows._fields(), strict=True):
            mine[where] = theirs

    def select(self, rows: Tensor) -> _Found:
        return _Found(*(field[rows] for field in self._fields()))

    def _fields(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.ids, self.scores, self.lengths, self.exists


def _nothing(rows: int, beams: int, new: int, fill: int, device: torch.device) -> _Found:
    return _Found(
        torch.full((rows, beams, new), fill, dtype=torch.long, device=device),
        torch.full((rows, beams), _NEVER, device=device),
        torch.zeros((rows, beams), dtype=torch.long, device=device),
        torch.zeros((rows, beams), dtype=torch.bool, device=device),
    )


class _Beams:
    """A search under way."""

    def __init__(
        self, model: Transformer, prompt: Prompt, max_new_tokens: int, ends: Sequence[int], search: BeamSearch
    ) -> None:
        rows, self.read = prompt.start.shape
        device, beams = prompt.start.device, search.beams
        self.model, self.search, self.ends, self.max_new_tokens = model, search, ends, max_new_tokens
        self.prompt = repeated(prompt, beams)
        self.first = prompt
        self.rules = rules_of(model, self.prompt, max_new_tokens, ends)
        self.stop = torch.tensor(ends, dtype=torch.long, device=device)
        self.fill = filler(model, ends)
        self.texts = torch.full((rows, beams, self.read + max_new_tokens), self.fill, dtype=torch.long, device=device)
        self.texts[:, :, : self.read] = prompt.start[:, None]
        # All beams of a row are equal at first: only one of them may go on, or all would say the same.
        self.scores = torch.full((rows, beams), _NEVER, device=device)
        self.scores[:, 0] = 0.0
        self.found = _nothing(rows, beams, max_new_tokens, self.fill, device)
        self.results = _nothing(rows, beams, max_new_tokens, self.fill, device)
        self.places = torch.arange(rows, device=device)
        """Which row of the batch each row is that is still searched for."""

    def run(self) -> _Found:
        """Search until every row is done; returns what was found for each."""
        step = decoder_step(self.model)
        cache, log_p = read_once(self.model, step, self.first, self.search.beams, self.read + self.max_new_tokens)
        for new in range(self.max_new_tokens):
            history = self._history(new)
            if new > 0 and cache_is_stale(self.model, self.read + new):
                scores = checked(reread(self.model, self.prompt, history))
            elif new > 0:
                scores = checked(step(history.ids[:, -1:], cache)[:, 0])
            else:
                scores = log_p
            origin = self._grow(self._judged(scores, history, self.rules), new)
            if new + 1 == self.max_new_tokens:
                break
            done = self._done(new + 1)
            leaving = bool(done.any())
            if leaving:
                self.results.write(self.places[done], self.found.select(done))
                if bool(done.all()):
                    return self.results
                origin = self._keep(~done, origin)
            cache.select(origin.flatten(), sources=leaving)
        self.results.write(self.places, self.found)
        return self.results

    def _history(self, new: int) -> History:
        return History(ids=self.texts[:, :, : self.read + new].flatten(0, 1), padding=self.prompt.padding, new=new)

    def _judged(self, scores: Tensor, history: History, rules: Sequence[Rule]) -> Float[Tensor, "rows beams vocab"]:
        """The log-probability of each continuation by one token, as the rules change it."""
        log_p = scores.log_softmax(dim=-1)
        for rule in rules:
            log_p = rule(log_p, history)
        return log_p.unflatten(0, self.scores.shape).add_(self.scores[:, :, None])

    def _grow(self, totals: Float[Tensor, "rows beams vocab"], new: int) -> Int[Tensor, "rows beams"]:
        """Put the best continuations in the place of the beams, and those that end among the found.

        Returns:
            The number of the beam that each new one goes on from, counted over all rows.
        """
        rows, beams, vocab = totals.shape
        # Enough that `beams` of them go on even if all others end.
        candidates = min(max(2, 1 + len(self.ends)) * beams, beams * vocab)
        totals, order = largest(totals.flatten(1), candidates)
        source, token = order // vocab, order % vocab
        ending = torch.isin(token, self.stop)
        if new + 1 == self.max_new_tokens:
            ending = torch.ones_like(ending)

        texts = _take(self.texts[:, :, self.read : self.read + new + 1], source)
        texts[:, :, new] = token
        self._collect(totals, texts, ending, new + 1)

        going = totals + ending * _NEVER
        order = going.topk(beams, dim=1).indices
        self.scores = going.gather(1, order)
        self.texts[:, :, self.read : self.read + new + 1] = _take(texts, order)
        return source.gather(1, order) + torch.arange(rows, device=order.device)[:, None] * beams

    def _collect(self, totals: Tensor, texts: Tensor, ending: Tensor, length: int) -> None:
        """Keep the best texts that have ended. The candidates behind the first `beams` are there to go on only."""
        ended = ending & (torch.arange(ending.shape[1], device=ending.device) < self.search.beams)
        scores = totals / length**self.search.length_penalty + ~ended * _NEVER
        ids = F.pad(texts, (0, self.max_new_tokens - length), value=self.fill)
        self.found = self.found.best(_Found(ids, scores, torch.full_like(ended, length, dtype=torch.long), ended))

    def _done(self, length: int) -> Bool[Tensor, " rows"]:
        """Which rows can't find better texts any more, at a length of so many new tokens."""
        search, found = self.search, self.found
        reached = self.max_new_tokens if search.early_stopping == "never" and search.length_penalty > 0 else length
        hoped = self.scores[:, 0] / reached**search.length_penalty
        full = found.exists.all(dim=1)
        # One beam is greedy search, which is over with its first end.
        over = full & (search.early_stopping is True or search.beams == 1)
        return over | (full & (hoped <= found.scores[:, -1])) | (~full & (hoped <= _NEVER))

    def _keep(self, rows: Bool[Tensor, " rows"], origin: Tensor) -> Int[Tensor, "kept beams"]:
        """Go on with these rows only; returns the origins of their beams."""
        beams = self.search.beams
        self.texts, self.scores, self.places = self.texts[rows], self.scores[rows], self.places[rows]
        self.found = self.found.select(rows)
        self.prompt = chosen(self.prompt, rows.repeat_interleave(beams))
        self.rules = rules_of(self.model, self.prompt, self.max_new_tokens, self.ends)
        return origin[rows]


def largest(
    scores: Float[Tensor, "rows places"], count: int
) -> tuple[Float[Tensor, "rows count"], Int[Tensor, "rows count"]]:
    """The largest scores of each row and their places, as `topk` gives them.

    A few of very many are found sooner among the blocks with the largest maxima, which hold them all.
    """
    rows, places = scores.shape
    if places % _BLOCK or places < 2 * count * _BLOCK:
        best = scores.topk(count, dim=1)
        return best.values, best.indices
    blocks = scores.unflatten(1, (-1, _BLOCK))
    # In order, so that the first of equal scores comes first, as without blocks.
    chosen = blocks.amax(dim=2).topk(count, dim=1).indices.sort(dim=1).values
    found, within = blocks.gather(1, chosen[:, :, None].expand(rows, count, _BLOCK)).flatten(1).topk(count, dim=1)
    return found, chosen.gather(1, within // _BLOCK) * _BLOCK + within % _BLOCK


def _take(texts: Tensor, order: Tensor) -> Tensor:
    """[rows, places, length] texts at these places of their rows, [rows, taken]."""
    return texts.gather(1, order[:, :, None].expand(-1, -1, texts.shape[2]))
