"""Texts in, texts out.

generate          as one batch, or as many
generate_samples  several texts a prompt
generate_n_best   several texts a prompt, with their scores, from a search
generate_stream   one text in, pieces of text out as they come
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from anyformer.errors import UserError
from anyformer.generation.beam import BeamSearch, EarlyStopping, Hypotheses, beam_search_ids, search_for
from anyformer.generation.generate import choose_search, generate_ids, stream_ids
from anyformer.generation.inference import require_tokenizer
from anyformer.generation.prompt import encode_prompt, pad, padding_id
from anyformer.generation.sampling import Sampling
from anyformer.generation.speculation import Draft
from anyformer.generation.stop import CONTEXT, Continuation, StopStrings, until
from anyformer.generation.writing import end_tokens, require_writing
from anyformer.model import Transformer
from anyformer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Hypothesis:
    """One of the texts that a search found for a prompt."""

    text: str
    """The new text."""
    score: float
    """Its log-probability divided by ``length ** length_penalty``."""


def generate(
    model: Transformer,
    tokenizer: Tokenizer | None,
    prompts: str | Sequence[str],
    max_new_tokens: int = 20,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    stop_at_end: bool = True,
    beams: int | None = None,
    length_penalty: float | None = None,
    early_stopping: EarlyStopping | None = None,
    batch_size: int | None = None,
    progress: Callable[[int], None] | None = None,
    sampling: Sampling | None = None,
    stop: str | Sequence[str] | None = None,
    draft: Draft | None = None,
) -> list[str]:
    """Continue prompts, or rewrite sources.

    Args:
        model: A decoder-only model or an encoder-decoder.
        tokenizer: Its tokenizer.
        prompts: Texts of any lengths; one string is a list of one. A decoder-only model gets them without the
            end-of-text that a tokenizer may put after a text.
        max_new_tokens, temperature, top_k, top_p, seed, stop_at_end, beams, length_penalty, early_stopping: as in
            `generate_ids`; so are sampling and draft.
        batch_size: Prompts that are read at a time, those of about equal length together; None: all at once. Each
            batch draws with the seed anew.
        progress: Called after each batch with the number of its prompts.
        stop: Strings that end a text, and are no part of it.

    Returns:
        The new text of each prompt, in the order of the prompts, without the prompt and without special tokens;
        ``prompt + text`` reads on.

    Raises:
        UserError: as `generate_ids`, where there is no tokenizer, and for a batch size below 1.
    """
    sampling = sampling or Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    search = choose_search(model, sampling.temperature, beams, length_penalty, early_stopping)
    write = _writer(model, max_new_tokens, seed, stop_at_end, sampling, draft, search=search)
    return [text for (text,) in _texts(model, tokenizer, prompts, write, stop_at_end, batch_size, progress, stop)]


def generate_samples(
    model: Transformer,
    tokenizer: Tokenizer | None,
    prompts: str | Sequence[str],
    samples: int,
    max_new_tokens: int = 20,
    seed: int | None = None,
    stop_at_end: bool = True,
    batch_size: int | None = None,
    progress: Callable[[int], None] | None = None,
    sampling: Sampling | None = None,
    stop: str | Sequence[str] | None = None,
    draft: Draft | None = None,
) -> list[list[str]]:
    """Several texts for each prompt, each drawn by itself; the prompt is read once for all of them.

    Args:
        samples: How many.
        model, tokenizer, prompts, max_new_tokens, seed, stop_at_end, batch_size, progress, sampling, stop, draft: as in
            `generate`.

    Raises:
        UserError: as `generate`, and for fewer than one sample.
    """
    sampling = sampling or Sampling(temperature=1.0)
    write = _writer(model, max_new_tokens, seed, stop_at_end, sampling, draft, samples=samples)
    return _texts(model, tokenizer, prompts, write, stop_at_end, batch_size, progress, stop)


def _writer(
    model: Transformer,
    max_new_tokens: int,
    seed: int | None,
    stop_at_end: bool,
    sampling: Sampling,
    draft: Draft | None,
    *,
    samples: int = 1,
    search: BeamSearch | None = None,
) -> Callable[[Tensor, Tensor], Hypotheses]:
    search = search or BeamSearch(beams=1)

    def write(ids: Tensor, mask: Tensor) -> Hypotheses:
        new = generate_ids(
            model,
            ids,
            mask,
            max_new_tokens,
            stop_at_end,
            seed=seed,
            beams=search.beams,
            length_penalty=search.length_penalty,
            early_stopping=search.early_stopping,
            sampling=sampling,
            samples=samples,
            draft=draft,
        ).unflatten(0, (len(ids), -1))
        return Hypotheses(new, torch.zeros(new.shape[:2], device=new.device))  # nobody asks for the scores

    return write


def _texts(
    model: Transformer,
    tokenizer: Tokenizer | None,
    prompts: str | Sequence[str],
    write: Callable[[Tensor, Tensor], Hypotheses],
    stop_at_end: bool,
    batch_size: int | None,
    progress: Callable[[int], None] | None,
    stop: str | Sequence[str] | None,
) -> list[list[str]]:
    tokenizer = require_tokenizer(tokenizer, "give generate_ids token ids")
    require_writing(model)
    StopStrings(stop)  # wrong ones are refused before the first of many batches
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    answers = _answers(model, tokenizer, texts, write, stop_at_end, batch_size, progress)
    return [["".join(until([one.text], stop)) for one in answer] for answer in answers]


def generate_n_best(
    model: Transformer,
    tokenizer: Tokenizer | None,
    prompts: str | Sequence[str],
    n_best: int,
    max_new_tokens: int = 20,
    stop_at_end: bool = True,
    beams: int | None = None,
    length_penalty: float | None = None,
    early_stopping: EarlyStopping | None = None,
    batch_size: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[list[Hypothesis]]:
    """The best texts that beam search finds for each prompt, the best first.

    Args:
        n_best: How many.
        beams: At least as many; None: as the model's generation settings say, but no fewer than `n_best`.
        model, tokenizer, prompts, max_new_tokens, stop_at_end, length_penalty, early_stopping, batch_size, progress:
            as in `generate`.

    Raises:
        UserError: as `generate`, and for more texts than beams.
    """
    tokenizer = require_tokenizer(tokenizer, "give beam_search_ids token ids")
    require_writing(model)
    if beams is None:
        beams = max(n_best, search_for(model).beams)
    search = search_for(model, beams, length_penalty, early_stopping)

    def write(ids: Tensor, mask: Tensor) -> Hypotheses:
        return beam_search_ids(model, ids, mask, max_new_tokens, search, n_best, stop_at_end)

    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    return _answers(model, tokenizer, texts, write, stop_at_end, batch_size, progress)


def _answers(
    model: Transformer,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    write: Callable[[Tensor, Tensor], Hypotheses],
    stop_at_end: bool,
    batch_size: int | None,
    progress: Callable[[int], None] | None,
) -> list[list[Hypothesis]]:
    """What `write` makes of the ids and mask of each batch, as texts in the order of the prompts."""
    if batch_size is not None and batch_size < 1:
        raise UserError(f"batch_size is a number of prompts, at least 1, not {batch_size}.")
    rows = [encode_prompt(model, tokenizer, text) for text in texts]
    # The longest come first: if they fit into memory, so do all others.
    order = range(len(rows)) if batch_size is None else sorted(range(len(rows)), key=lambda row: -len(rows[row]))
    size = batch_size or max(1, len(rows))
    ends = frozenset(end_tokens(model)) if stop_at_end else frozenset[int]()
    answers: dict[int, list[Hypothesis]] = {}
    for begin in range(0, len(rows), size):
        members = order[begin : begin + size]
        found = write(*pad([rows[member] for member in members], padding_id(model, tokenizer)))
        ids: list[list[list[int]]] = cast("Any", found.ids).tolist()
        scores: list[list[float]] = cast("Any", found.scores).tolist()
        for member, new, score in zip(members, ids, scores, strict=True):
            before = [] if model.config.is_encoder_decoder else rows[member]
            said = [_continuation(tokenizer, before, _until(row, ends)) for row in new]
            answers[member] = [Hypothesis(*pair) for pair in zip(said, score, strict=True)]
        if progress is not None:
            progress(len(members))
    return [answers[place] for place in range(len(rows))]


def generate_stream(
    model: Transformer,
    tokenizer: Tokenizer | None,
    prompt: str,
    max_new_tokens: int = 20,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    stop_at_end: bool = True,
    sampling: Sampling | None = None,
    stop: str | Sequence[str] | None = None,
    draft: Draft | None = None,
) -> Iterator[str]:
    """The text of `generate` with one beam for one prompt, in pieces as soon as they are certain; joined they are that
    text.

    Args:
        sampling: In the place of temperature, top_k and top_p; it knows min_p, penalties and biases as well.
        stop: Strings that end the text, and are no part of it.
        model, tokenizer, prompt, max_new_tokens, temperature, top_k, top_p, seed, stop_at_end, draft: as in `generate`.

    Raises:
        UserError: at once, as `generate`.
    """
    tokenizer = require_tokenizer(tokenizer, "give stream_ids token ids")
    require_writing(model)
    row = encode_prompt(model, tokenizer, prompt)
    ids = torch.tensor([row], dtype=torch.long)
    sampling = sampling or Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    steps = stream_ids(model, ids, None, max_new_tokens, stop_at_end, seed=seed, sampling=sampling, draft=draft)
    ends = frozenset(end_tokens(model)) if stop_at_end else frozenset[int]()
    text = Continuation(tokenizer, [] if model.config.is_encoder_decoder else row, stop)
    return _pieces(text, steps, ends)


def _pieces(text: Continuation, steps: Iterator[Tensor], ends: frozenset[int]) -> Iterator[str]:
    for step in steps:
        token = int(step)
        if token not in ends and (piece := text.push(token)):
            yield piece
        if text.stopped:
            return
    if rest := text.flush():
        yield rest


def _continuation(tokenizer: Tokenizer, prompt: Sequence[int], new: Sequence[int]) -> str:
    """The text of new tokens behind a prompt, which an encoder-decoder's answers don't have."""
    before = list(prompt[-CONTEXT:])
    known = tokenizer.decode(before) if before else ""
    return tokenizer.decode([*before, *new])[len(known) :]


def _until(ids: list[int], ends: frozenset[int]) -> list[int]:
    """The ids before the first that ends the text."""
    return next((ids[:place] for place, token in enumerate(ids) if token in ends), ids)
