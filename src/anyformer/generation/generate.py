"""Texts in, texts out.

generate          a text for each prompt
generate_samples  several texts for each prompt
generate_n_best   the best texts that beam search finds for each prompt, with their scores
generate_stream   one text in pieces
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Unpack, cast

import torch
from torch import Tensor

from anyformer.errors import UserError
from anyformer.generation.beam_search import Hypotheses, beam_search_ids
from anyformer.generation.config import GenerationConfig, GenerationOptions, resolve
from anyformer.generation.decode import generate_ids, stream_ids
from anyformer.generation.inference import require_generative, require_tokenizer
from anyformer.generation.prompt import encode_prompt, pad
from anyformer.generation.special_ids import eos_ids, input_pad_id
from anyformer.generation.speculative_decoding import Draft
from anyformer.generation.stop_strings import Detokenizer, continuation, cut_at_stop
from anyformer.model import Transformer
from anyformer.tokenizer import Tokenizer

Prompts = str | Sequence[str] | Sequence[Sequence[int]]
"""Texts of any lengths, one string being a list of one; or the ids of each, see `encode_prompt`."""


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
    prompts: Prompts,
    config: GenerationConfig | None = None,
    *,
    batch_size: int | None = None,
    progress: Callable[[int], None] | None = None,
    draft: Draft | None = None,
    **options: Unpack[GenerationOptions],
) -> list[str]:
    """Continue prompts, or rewrite sources.

    Args:
        model: A decoder-only model or an encoder-decoder.
        tokenizer: Its tokenizer.
        prompts: Texts, or the ids of each. A decoder-only model gets a text without the end-of-text that a tokenizer
            may put after it.
        config: How; None: greedily, with as many beams as the model's generation settings ask for.
        batch_size: Prompts of a batch, those of about equal length together; None: all. Each batch samples with the
            seed anew.
        progress: Called after each batch with the number of its prompts.
        draft: As in `generate_ids`.
        options: Fields of the config that differ.

    Returns:
        The new text of each prompt, in the order of the prompts, without the prompt and without special tokens;
        ``prompt + text`` reads on.

    Raises:
        UserError: as `generate_ids`, where there is no tokenizer, and for a batch size below 1.
    """
    config = resolve(model, config, options)
    if config.samples != 1:
        raise UserError("`generate` makes one text of each prompt: ask `generate_samples` for samples.")
    texts = _generate(model, tokenizer, prompts, config, _search_or_sample(model, config, draft), batch_size, progress)
    return [text for ((text, _),) in texts]


def generate_samples(
    model: Transformer,
    tokenizer: Tokenizer | None,
    prompts: Prompts,
    config: GenerationConfig | None = None,
    *,
    batch_size: int | None = None,
    progress: Callable[[int], None] | None = None,
    draft: Draft | None = None,
    **options: Unpack[GenerationOptions],
) -> list[list[str]]:
    """Several texts for each prompt, as many as the config has `samples`; without a config the temperature is 1.

    Args:
        model, tokenizer, prompts, config, batch_size, progress, draft, options: As in `generate`.

    Raises:
        UserError: as `generate`.
    """
    config = resolve(model, config or GenerationConfig(temperature=1.0), options)
    texts = _generate(model, tokenizer, prompts, config, _search_or_sample(model, config, draft), batch_size, progress)
    return [[text for text, _ in samples] for samples in texts]


def generate_n_best(
    model: Transformer,
    tokenizer: Tokenizer | None,
    prompts: Prompts,
    n_best: int,
    config: GenerationConfig | None = None,
    *,
    batch_size: int | None = None,
    progress: Callable[[int], None] | None = None,
    **options: Unpack[GenerationOptions],
) -> list[list[Hypothesis]]:
    """The best texts that beam search finds for each prompt, the best first.

    Args:
        n_best: How many. Where neither config nor options say how many beams, there are no fewer.
        model, tokenizer, prompts, config, batch_size, progress, options: As in `generate`.

    Raises:
        UserError: as `generate`, and for more texts than beams.
    """
    if config is None and "beams" not in options:
        options["beams"] = max(n_best, GenerationConfig.for_model(model).beams)
    config = resolve(model, config, options)
    ids_config = config.replace(stop=())

    def search(ids: Tensor, mask: Tensor) -> Hypotheses:
        return beam_search_ids(model, ids, mask, ids_config, n_best=n_best)

    texts = _generate(model, tokenizer, prompts, config, search, batch_size, progress)
    return [[Hypothesis(*best) for best in found] for found in texts]


def _search_or_sample(
    model: Transformer, config: GenerationConfig, draft: Draft | None
) -> Callable[[Tensor, Tensor], Hypotheses]:
    ids_config = config.replace(stop=())

    def write(ids: Tensor, mask: Tensor) -> Hypotheses:
        new = generate_ids(model, ids, mask, ids_config, draft=draft).unflatten(0, (len(ids), -1))
        return Hypotheses(new, torch.zeros(new.shape[:2], device=new.device))  # nobody asks for the scores

    return write


def _generate(
    model: Transformer,
    tokenizer: Tokenizer | None,
    prompts: Prompts,
    config: GenerationConfig,
    write: Callable[[Tensor, Tensor], Hypotheses],
    batch_size: int | None,
    progress: Callable[[int], None] | None,
) -> list[list[tuple[str, float]]]:
    """The texts and scores that `write` makes of the ids and mask of each batch, in the order of the prompts."""
    tokenizer = require_tokenizer(tokenizer, "give generate_ids token ids")
    require_generative(model)
    if batch_size is not None and batch_size < 1:
        raise UserError(f"batch_size is a number of prompts, at least 1, not {batch_size}.")
    texts = [prompts] if isinstance(prompts, str) else prompts
    rows = [encode_prompt(model, tokenizer, text) if isinstance(text, str) else list(text) for text in texts]
    # The longest come first: if they fit into memory, so do all others.
    order = range(len(rows)) if batch_size is None else sorted(range(len(rows)), key=lambda row: -len(rows[row]))
    size = batch_size or max(1, len(rows))
    eos = frozenset(eos_ids(model)) if config.stop_at_eos else frozenset[int]()

    def text_of(before: Sequence[int], new: list[int]) -> str:
        new = next((new[:position] for position, token in enumerate(new) if token in eos), new)
        return "".join(cut_at_stop([continuation(tokenizer, before, new)], config.stop))

    answers: dict[int, list[tuple[str, float]]] = {}
    for begin in range(0, len(rows), size):
        members = order[begin : begin + size]
        found = write(*pad([rows[member] for member in members], input_pad_id(model, tokenizer)))
        ids: list[list[list[int]]] = cast("Any", found.ids).tolist()
        scores: list[list[float]] = cast("Any", found.scores).tolist()
        for member, new, score in zip(members, ids, scores, strict=True):
            before = [] if model.config.is_encoder_decoder else rows[member]
            answers[member] = list(zip([text_of(before, row) for row in new], score, strict=True))
        if progress is not None:
            progress(len(members))
    return [answers[row] for row in range(len(rows))]


def generate_stream(
    model: Transformer,
    tokenizer: Tokenizer | None,
    prompt: str | Sequence[int],
    config: GenerationConfig | None = None,
    *,
    draft: Draft | None = None,
    **options: Unpack[GenerationOptions],
) -> Iterator[str]:
    """The text of `generate` with one beam for one prompt, in pieces as soon as they are certain; joined they are that
    text.

    Args:
        model, tokenizer, prompt, config, draft, options: As in `generate`; but None is greedy decoding.

    Raises:
        UserError: at once, as `generate`.
    """
    config = resolve(model, config, options, beams=False)
    tokenizer = require_tokenizer(tokenizer, "give stream_ids token ids")
    require_generative(model)
    if config.samples != 1:
        raise UserError("A stream is one text: ask `generate_samples` for samples.")
    row = encode_prompt(model, tokenizer, prompt) if isinstance(prompt, str) else list(prompt)
    steps = stream_ids(model, torch.tensor([row], dtype=torch.long), None, config.replace(stop=()), draft=draft)
    eos = eos_ids(model) if config.stop_at_eos else ()
    return _pieces(Detokenizer(tokenizer, [] if model.config.is_encoder_decoder else row, config.stop), steps, eos)


def _pieces(text: Detokenizer, steps: Iterator[Tensor], eos: Sequence[int]) -> Iterator[str]:
    for step in steps:
        token = int(step)
        if token not in eos and (piece := text.push(token)):
            yield piece
        if text.stopped:
            return
    if rest := text.flush():
        yield rest
