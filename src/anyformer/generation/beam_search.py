"""Beam search, step for step as in Hugging Face's `transformers`.

A model's settings (`num_beams`, `length_penalty`, `early_stopping`) find the same texts with the same scores there. But
the encoder and the prompt are read once a text and not once a beam, and a text whose search is over leaves the batch.

Shapes::

    rows        texts that are still being searched for     beams   texts that grow for each
    candidates  continuations that a step looks at          new     longest answer, in tokens
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Unpack

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from anyformer.errors import UserError
from anyformer.generation.cached_decoder import CachedDecoder
from anyformer.generation.config import GenerationConfig, GenerationOptions, resolve
from anyformer.generation.inference import check_nan, evaluating, require_generative
from anyformer.generation.logits_processors import History, make_processors, process
from anyformer.generation.prompt import Prompt, eos_ids, make_prompt, pad_id
from anyformer.model import Transformer

_NEVER = -1e9
"""The score of what there is not yet. Hugging Face's, for a banned token has a lower one: -inf."""

_BLOCK = 128
"""Scores in a block of `largest`."""


@dataclass(frozen=True)
class Hypotheses:
    """The best texts for each prompt, the best first."""

    ids: Int[Tensor, "batch n_best new"]
    """The new tokens, padded on the right."""
    scores: Float[Tensor, "batch n_best"]
    """Log-probability divided by ``length ** length_penalty``; the end-of-text token counts as well."""


def beam_search_ids(
    model: Transformer,
    ids: Int[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"] | None = None,
    config: GenerationConfig | None = None,
    *,
    n_best: int = 1,
    **options: Unpack[GenerationOptions],
) -> Hypotheses:
    """Search for the likeliest continuations of prompts, or rewritings of sources, on the model's device.

    Args:
        model, ids, mask, config, options: As for `generate_ids`.
        n_best: Texts to return for each prompt.

    Raises:
        UserError: as `generate_ids`, and for more texts than beams.
    """
    config = resolve(model, config, options, stop_strings=False)
    require_generative(model)
    if config.temperature > 0.0 or config.samples > 1:
        raise UserError("Beam search finds the likeliest texts and draws none: leave out temperature and samples.")
    if not 1 <= n_best <= config.beams:
        raise UserError(
            f"{n_best} texts of each prompt were asked for (n_best), and the search keeps {config.beams} (beams): ask "
            "for at least one, and at most as many as there are beams."
        )
    prompt = make_prompt(model, ids, mask, config.max_new_tokens)
    with evaluating(model), torch.inference_mode():
        ids, scores, lengths, _ = _Search(model, prompt, config).run()
    length = int(lengths[:, :n_best].max())
    # Copies made outside of inference mode are ordinary tensors, fit to train on.
    return Hypotheses(ids[:, :n_best, :length].clone(), scores[:, :n_best].clone())


class _Ended(NamedTuple):
    """The best texts that have ended, [rows, beams, ...]."""

    ids: Tensor
    scores: Tensor
    lengths: Tensor
    exists: Tensor

    def best(self, others: _Ended) -> _Ended:
        """The best of both, as many as there are here."""
        both = _Ended(*(torch.cat(pair, dim=1) for pair in zip(self, others, strict=True)))
        order = both.scores.topk(self.scores.shape[1], dim=1).indices
        return _Ended(_take(both.ids, order), *(field.gather(1, order) for field in both[1:]))

    def write(self, index: Tensor, rows: _Ended) -> None:
        for mine, theirs in zip(self, rows, strict=True):
            mine[index] = theirs

    def select(self, rows: Tensor) -> _Ended:
        """Some of the rows: a copy."""
        return _Ended(*(field[rows] for field in self))


class _Search:
    def __init__(self, model: Transformer, prompt: Prompt, config: GenerationConfig) -> None:
        rows, self.start = prompt.ids.shape
        device, beams, new = prompt.ids.device, config.beams, prompt.max_new_tokens
        self.model, self.config, self.prompt, self.max_new_tokens = model, config, prompt, new
        self.decoder = CachedDecoder(model, beams)
        self.eos = eos_ids(model, config)
        self.processors = make_processors(model, prompt.repeat(beams), self.eos, config)
        self.stop = torch.tensor(self.eos, dtype=torch.long, device=device)
        self.pad = pad_id(model, self.eos)
        self.texts = torch.full((rows, beams, prompt.capacity), self.pad, dtype=torch.long, device=device)
        self.texts[:, :, : self.start] = prompt.ids[:, None]
        # All beams of a row are equal at first: only one of them may go on, or all would say the same.
        self.scores = torch.full((rows, beams), _NEVER, device=device)
        self.scores[:, 0] = 0.0
        ids = torch.full((rows, beams, new), self.pad, dtype=torch.long, device=device)
        lengths = torch.zeros((rows, beams), dtype=torch.long, device=device)
        self.ended = _Ended(ids, torch.full_like(self.scores, _NEVER), lengths, lengths.bool())
        self.rows = torch.arange(rows, device=device)
        self.results = self.ended.select(self.rows)
        """The rows of the batch that are still searched for."""

    def run(self) -> _Ended:
        logits = self.decoder.prefill(self.prompt)[:, None]
        for new in range(self.max_new_tokens):
            origin = self._grow(self._totals(check_nan(logits[:, 0]), new), new)
            if new + 1 == self.max_new_tokens:
                break
            done = self._done(new + 1)
            leaving = bool(done.any())
            if leaving:
                self.results.write(self.rows[done], self.ended.select(done))
                if bool(done.all()):
                    return self.results
                rows = ~done
                self.texts, self.scores, self.rows = self.texts[rows], self.scores[rows], self.rows[rows]
                self.ended, origin = self.ended.select(rows), origin[rows]
                self.decoder.prompt = self.decoder.prompt.select(rows.repeat_interleave(self.config.beams))
                self.processors = make_processors(self.model, self.decoder.prompt, self.eos, self.config)
            self.decoder.cache.select(origin.flatten(), sources=leaving)
            logits = self.decoder.step(self._ids(new + 1))
        self.results.write(self.rows, self.ended)
        return self.results

    def _ids(self, new: int) -> Int[Tensor, "texts length"]:
        return self.texts[:, :, : self.start + new].flatten(0, 1)

    def _totals(self, logits: Float[Tensor, "texts vocab"], new: int) -> Float[Tensor, "rows beams vocab"]:
        """The log-probability of each beam with one token more, as the processors change it."""
        history = History(self._ids(new), self.decoder.prompt.padding, new)
        log_p = process(logits.log_softmax(dim=-1), self.processors, history)
        return log_p.unflatten(0, self.scores.shape).add_(self.scores[:, :, None])

    def _grow(self, totals: Float[Tensor, "rows beams vocab"], new: int) -> Int[Tensor, "rows beams"]:
        """Replace the beams by their best continuations, and collect those that end.

        Returns the beam that each new one continues, counted over all rows.
        """
        rows, beams, vocab = totals.shape
        # Enough that `beams` of them go on even if all others end.
        candidates = min(max(2, 1 + len(self.eos)) * beams, beams * vocab)
        totals, order = largest(totals.flatten(1), candidates)
        source, token = order // vocab, order % vocab
        ending = torch.isin(token, self.stop) | (new + 1 == self.max_new_tokens)

        answers = self.texts[:, :, self.start : self.start + new + 1]
        texts = _take(answers, source)
        texts[:, :, new] = token
        # Keep the best texts that have ended. The candidates behind the first `beams` are there to go on only.
        ended = ending & (torch.arange(candidates, device=ending.device) < beams)
        scores = totals / (new + 1) ** self.config.length_penalty + ~ended * _NEVER
        ids, lengths = F.pad(texts, (0, self.max_new_tokens - new - 1), value=self.pad), torch.full_like(token, new + 1)
        self.ended = self.ended.best(_Ended(ids, scores, lengths, ended))

        going = totals + ending * _NEVER
        order = going.topk(beams, dim=1).indices
        self.scores = going.gather(1, order)
        answers.copy_(_take(texts, order))
        return source.gather(1, order) + torch.arange(rows, device=order.device)[:, None] * beams

    def _done(self, length: int) -> Bool[Tensor, " rows"]:
        """Which rows can't find better texts any more, at a length of so many new tokens."""
        config, ended = self.config, self.ended
        reached = self.max_new_tokens if config.early_stopping == "never" and config.length_penalty > 0 else length
        hoped = self.scores[:, 0] / reached**config.length_penalty
        full = ended.exists.all(dim=1)
        # One beam is greedy search, which is over with its first end.
        over = full & (config.early_stopping is True or config.beams == 1)
        return over | (full & (hoped <= ended.scores[:, -1])) | (~full & (hoped <= _NEVER))


def largest(
    scores: Float[Tensor, "rows scores"], count: int
) -> tuple[Float[Tensor, "rows count"], Int[Tensor, "rows count"]]:
    """The largest scores of each row and their positions, as `topk` gives them.

    A few of very many are found sooner among the blocks with the largest maxima, which hold them all.
    """
    rows, size = scores.shape
    if size % _BLOCK or size < 2 * count * _BLOCK:
        return scores.topk(count, dim=1)
    blocks = scores.unflatten(1, (-1, _BLOCK))
    # In order, so that the first of equal scores comes first, as without blocks.
    chosen = blocks.amax(dim=2).topk(count, dim=1).indices.sort(dim=1).values
    best, within = blocks.gather(1, chosen[:, :, None].expand(rows, count, _BLOCK)).flatten(1).topk(count, dim=1)
    return best, chosen.gather(1, within // _BLOCK) * _BLOCK + within % _BLOCK


def _take(texts: Tensor, order: Tensor) -> Tensor:
    """The texts, [rows, beams, length], at these positions of their rows, [rows, taken]."""
    return texts.gather(1, order[:, :, None].expand(-1, -1, texts.shape[2]))
