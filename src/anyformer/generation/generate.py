"""Writing token by token, with a cache of what has been read.

generate_ids     ids in, new ids out: greedy, drawn, or searched for with beams
stream_ids       the loop of the first two: yields the next token of every text, step by step
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from anyformer.errors import UserError
from anyformer.generation.beam import BeamSearch, EarlyStopping, beam_search_ids, search_for
from anyformer.generation.inference import device_of, evaluating
from anyformer.generation.penalties import penalties_of
from anyformer.generation.prompt import Prompt, read_prompt, repeated
from anyformer.generation.reading import cache_is_stale, checked, read_once, reread
from anyformer.generation.rules import History, Rule
from anyformer.generation.sampling import Sampling, seeded
from anyformer.generation.speculation import Draft, check_draft, speculate
from anyformer.generation.step import decoder_step
from anyformer.generation.writing import end_tokens, filler, require_writing, rules_of
from anyformer.model import Transformer


def generate_ids(
    model: Transformer,
    ids: Int[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"] | None = None,
    max_new_tokens: int = 20,
    stop_at_end: bool = True,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    beams: int | None = None,
    length_penalty: float | None = None,
    early_stopping: EarlyStopping | None = None,
    sampling: Sampling | None = None,
    samples: int = 1,
    draft: Draft | None = None,
) -> Int[Tensor, "texts new"]:
    """Continue prompts, or rewrite sources, and return the new tokens only.

    What the model's generation settings force or ban is obeyed (see `rules`), and so is the number of beams that they
    ask for, unless another is given; their sampling is not.

    Args:
        model: A decoder-only model or an encoder-decoder; it stays in the mode that it is in.
        ids: Prompts; for an encoder-decoder what the encoder reads.
        mask: True for a real token, False for padding, on the left or the right; None: all are real.
        max_new_tokens: Stop after this many.
        stop_at_end: A text is over at an end-of-text token, which is part of the result; what follows it is
            padding (end-of-text again where the model has no padding token). The result is as long as the longest
            text.
        temperature: 0: always the likeliest token (greedy); above, tokens are drawn.
        top_k: Draw from the k likeliest only.
        top_p: Draw from the likeliest that have this probability together.
        seed: Makes drawing repeatable; None: torch's global generator.
        beams: Texts that are searched for side by side for each prompt, of which the best is returned (see `beam`);
            1: greedy. None: as the model's generation settings say, and 1 if tokens are drawn.
        length_penalty: What the search thinks of long texts, see `BeamSearch`; None: as the model's settings say.
        early_stopping: When the search is over; likewise.
        sampling: In the place of temperature, top_k and top_p; it knows min_p, penalties and biases as well.
        samples: Texts for each prompt, which stand one after the other; a prompt is read once for all of them.
        draft: Who guesses tokens ahead, so that the model needs fewer steps: a smaller model with the same vocabulary,
            or "prompt" for what followed the same words before. Texts are the same as without, drawn ones in their
            distribution; they are written one after the other.

    Returns:
        The new ids, where the model is.

    Raises:
        UserError: an empty prompt, one beyond the context, a model that doesn't write, a sampling value out of
            range, beams together with a temperature, penalties, samples or a draft.
    """
    sampling = sampling or Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    search = choose_search(model, sampling.temperature, beams, length_penalty, early_stopping)
    if search.beams > 1:
        if penalties_of(sampling, model.config.vocab_size):
            raise UserError("Penalties and biases are for texts without beams: leave them out, or ask for one beam.")
        if samples != 1 or draft is not None:
            raise UserError("Samples and drafts are for texts without beams: leave them out, or ask for one beam.")
        return beam_search_ids(model, ids, mask, max_new_tokens, search, stop_at_end=stop_at_end).ids[:, 0]
    if draft is not None and samples * len(ids) > 1:
        return _one_by_one(model, ids, mask, max_new_tokens, stop_at_end, seed, sampling, samples, draft)
    steps = stream_ids(
        model, ids, mask, max_new_tokens, stop_at_end, seed=seed, sampling=sampling, samples=samples, draft=draft
    )
    return torch.stack(list(steps), dim=1)


def _one_by_one(
    model: Transformer,
    ids: Tensor,
    mask: Tensor | None,
    max_new_tokens: int,
    stop_at_end: bool,
    seed: int | None,
    sampling: Sampling,
    samples: int,
    draft: Draft,
) -> Tensor:
    """The texts of `generate_ids` with a draft: each row alone, and all as long as the longest."""
    read_prompt(model, ids, mask, max_new_tokens)  # all are right before the first is written
    rows = list[Tensor]()
    for row in range(len(ids)):
        here = slice(row, row + 1)
        for sample in range(samples):
            # One seed for all would draw the same text for the same prompt.
            drawn = None if seed is None else seed + row * samples + sample
            steps = stream_ids(
                model,
                ids[here],
                None if mask is None else mask[here],
                max_new_tokens,
                stop_at_end,
                seed=drawn,
                sampling=sampling,
                draft=draft,
            )
            rows.append(torch.cat(list(steps)))
    return pad_sequence(rows, batch_first=True, padding_value=filler(model, end_tokens(model) if stop_at_end else ()))


def choose_search(
    model: Transformer,
    temperature: float = 0.0,
    beams: int | None = None,
    length_penalty: float | None = None,
    early_stopping: EarlyStopping | None = None,
) -> BeamSearch:
    """The search for texts by these arguments of `generate_ids`; one beam is none.

    Raises:
        UserError: a value that describes no search, or tokens that are to be drawn as well.
    """
    if temperature == 0.0:
        return search_for(model, beams, length_penalty, early_stopping)
    if beams is not None and beams > 1:
        raise UserError(
            f"Beams search for the likeliest text, and a temperature above 0 draws one: leave out one of the two "
            f"(beams {beams}, temperature {temperature})."
        )
    return search_for(model, 1, length_penalty, early_stopping)


def stream_ids(
    model: Transformer,
    ids: Int[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"] | None = None,
    max_new_tokens: int = 20,
    stop_at_end: bool = True,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    sampling: Sampling | None = None,
    samples: int = 1,
    draft: Draft | None = None,
) -> Iterator[Int[Tensor, " texts"]]:
    """The tokens of `generate_ids` with one beam, one step at a time: each item is the next token of every text.

    `sampling` takes the place of temperature, top_k and top_p, and knows penalties and biases as well. A draft wants a
    single text.
    Mistakes in the arguments are raised at once. While the steps are being taken the model is in evaluation
    mode; its mode comes back when they end or the iterator is closed.
    """
    sampling = sampling or Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    require_writing(model)
    if samples < 1:
        raise UserError(f"samples is a number of texts, at least 1, not {samples}.")
    prompt = read_prompt(model, ids, mask, max_new_tokens)
    ends = end_tokens(model) if stop_at_end else ()
    every = repeated(prompt, samples)
    rules = [
        *rules_of(model, every, max_new_tokens, ends),
        *penalties_of(sampling, model.config.vocab_size),
    ]
    generator = seeded(seed, device_of(model))
    if draft is not None:
        check_draft(model, draft)
        if len(every.start) > 1:
            raise UserError("With a draft, stream_ids writes one text: give it one prompt, or use generate_ids.")
        return speculate(model, draft, prompt, max_new_tokens, ends, rules, sampling, generator)
    return _steps(model, prompt, every, max_new_tokens, ends, rules, sampling, generator)


def _steps(
    model: Transformer,
    first: Prompt,
    prompt: Prompt,
    max_new_tokens: int,
    ends: Sequence[int],
    rules: Sequence[Rule],
    sampling: Sampling,
    generator: torch.Generator | None,
) -> Iterator[Tensor]:
    batch, read = prompt.start.shape
    stop = torch.tensor(ends, device=prompt.start.device) if ends else None
    fill, step = filler(model, ends), decoder_step(model)
    with evaluating(model):
        # Inference mode must not be left on while the caller is at work between two steps.
        with torch.inference_mode():
            cache, scores = read_once(model, step, first, batch // len(first.start), read + max_new_tokens)
            ended = torch.zeros(batch, dtype=torch.bool, device=scores.device)
            texts = torch.cat((prompt.start, prompt.start.new_zeros(batch, max_new_tokens)), dim=1)
            padding = prompt.padding
        for new in range(max_new_tokens):
            with torch.inference_mode():
                history = History(ids=texts[:, : read + new], padding=padding, new=new)
                if new > 0 and cache_is_stale(model, read + new):
                    scores = checked(reread(model, prompt, history))
                elif new > 0:
                    scores = checked(step(texts[:, read + new - 1, None], cache)[:, 0])
                for rule in rules:
                    scores = rule(scores, history)
                token = sampling.choose(scores, generator)
                if stop is not None:
                    token = torch.where(ended, fill, token)
                    ended = ended | torch.isin(token, stop)
                texts[:, read + new] = token
            # A clone made outside of inference mode is an ordinary tensor, fit to train on.
            yield token.clone()
            if stop is not None and bool(ended.all()):
                return
