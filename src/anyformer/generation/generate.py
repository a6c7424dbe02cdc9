"""Texts in, texts out: a text for each prompt, several samples, the best of a beam search, or one text in pieces."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Unpack

import torch

from anyformer.checkpoint.load import takes_model
from anyformer.errors import UserError
from anyformer.generation.beam_search import Hypotheses, beam_search_ids
from anyformer.generation.config import GenerationConfig, GenerationOptions, resolve
from anyformer.generation.decode import generate_ids, stream_ids
from anyformer.generation.inference import require_generative, require_tokenizer
from anyformer.generation.prompt import batches_by_length, encode_prompt, eos_ids, input_pad_id, pad
from anyformer.generation.speculative_decoding import Draft
from anyformer.generation.stop_strings import Detokenizer, continuation, stream_text
from anyformer.model import Transformer
from anyformer.tokenizer import Tokenizer
from anyformer.tokenizer.texts import texts_of

Prompts = str | Iterable[str] | Iterable[Sequence[int]]
"""Texts of any lengths, one string being a list of one; or the ids of each, see `encode_prompt`."""


@dataclass(frozen=True)
class Hypothesis:
    """A new text for a prompt."""

    text: str
    score: float
    """Its log-probability divided by ``length ** length_penalty``."""
    stopped: bool = False
    """Whether it ended with a token or a string that ends texts; else it was cut off."""


@takes_model
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
        model, tokenizer: A decoder-only model or an encoder-decoder, and its tokenizer.
        prompts: Texts, or the ids of each. A decoder-only model gets a text without the end-of-text that a tokenizer
            may put after it.
        config: None: greedily, with as many beams as the model's generation settings ask for.
        batch_size: Prompts of a batch, those of about equal length together; None: all. Each batch samples with the
            seed anew.
        progress: Called after each batch with the number of its prompts.
        draft: As in `generate_ids`.
        options: Fields of the config that differ.

    Returns:
        The new text of each prompt, in the order of the prompts, without the prompt and without special tokens;
        ``prompt + text`` reads on.

    Raises:
        UserError: as `generate_ids`, where there is no tokenizer, for rows or what else is no text, and for a batch
            size below 1.
    """
    config = resolve(model, config, options)
    if config.samples != 1:
        raise UserError("`generate` makes one text of each prompt: ask `generate_samples` for samples.")
    hypotheses = generate_hypotheses(model, tokenizer, prompts, config, batch_size, progress, draft=draft)
    return [text.text for (text,) in hypotheses]


@takes_model
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

    Arguments and errors are those of `generate`.
    """
    config = resolve(model, config or GenerationConfig(temperature=1.0), options)
    texts = generate_hypotheses(model, tokenizer, prompts, config, batch_size, progress, draft=draft)
    return [[hypothesis.text for hypothesis in samples] for samples in texts]


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
    """The `n_best` texts that beam search finds for each prompt, the best first.

    Other arguments and errors are those of `generate`. Where neither config nor options say how many beams, there are
    at least `n_best`; it raises UserError for fewer.
    """
    if config is None and "beams" not in options:
        options["beams"] = max(n_best, GenerationConfig.for_model(model).beams)
    config = resolve(model, config, options)
    return generate_hypotheses(model, tokenizer, prompts, config, batch_size, progress, n_best=n_best)


@takes_model
def generate_stream(
    model: Transformer,
    tokenizer: Tokenizer | None,
    prompt: str | Sequence[int],
    config: GenerationConfig | None = None,
    *,
    draft: Draft | None = None,
    **options: Unpack[GenerationOptions],
) -> Iterator[str]:
    """The text of `generate` with one beam for one prompt, in pieces as soon as they are certain.

    Arguments and errors, which are raised at once, are those of `generate`; without a config it decodes greedily.
    """
    config = resolve(model, config, options, beams=False)
    tokenizer = require_tokenizer(tokenizer, "give stream_ids token ids")
    require_generative(model)
    if config.samples != 1:
        raise UserError("A stream is one text: ask `generate_samples` for samples.")
    (prompt,) = texts_of([prompt], "Prompt", lists=True)
    row = encode_prompt(model, tokenizer, prompt) if isinstance(prompt, str) else list(prompt)
    steps = stream_ids(model, pad([row], 0)[0], None, config.replace(stop=()), draft=draft)
    text = Detokenizer(tokenizer, [] if model.config.is_encoder_decoder else row, config.stop)
    return stream_text(text, steps, eos_ids(model, config))


def generate_hypotheses(
    model: Transformer,
    tokenizer: Tokenizer | None,
    prompts: Prompts,
    config: GenerationConfig,
    batch_size: int | None = None,
    progress: Callable[[int], None] | None = None,
    *,
    draft: Draft | None = None,
    n_best: int | None = None,
) -> list[list[Hypothesis]]:
    """The samples of each prompt, whose scores are 0; or its `n_best` texts by beam search."""
    tokenizer = require_tokenizer(tokenizer, "give generate_ids token ids")
    require_generative(model)
    if batch_size is not None and batch_size < 1:
        raise UserError(f"batch_size is a number of prompts, at least 1, not {batch_size}.")
    texts = texts_of(prompts, lists=True)
    rows = [encode_prompt(model, tokenizer, each) if isinstance(each, str) else list(each) for each in texts]
    eos, ids_config = eos_ids(model, config), config.replace(stop=())
    results: dict[int, list[Hypothesis]] = {}
    in_order = [range(len(rows))] if rows else []
    by_length = batches_by_length([len(row) for row in rows], None, batch_size)
    for indices in in_order if batch_size is None else by_length:
        ids, mask = pad([rows[index] for index in indices], input_pad_id(model, tokenizer))
        if n_best is None:
            new = generate_ids(model, ids, mask, ids_config, draft=draft).unflatten(0, (len(ids), -1))
            hypotheses = Hypotheses(new, torch.zeros(new.shape[:2]))
        else:
            hypotheses = beam_search_ids(model, ids, mask, ids_config, n_best=n_best)
        for index, texts, scores in zip(indices, hypotheses.ids, hypotheses.scores, strict=True):
            text_of = partial(continuation, tokenizer, [] if model.config.is_encoder_decoder else rows[index])
            results[index] = []
            for new, score in zip(texts.tolist(), scores, strict=True):
                text = text_of(new, config.stop, eos)
                stopped = any(token in eos for token in new) or (bool(config.stop) and text != text_of(new, (), eos))
                results[index].append(Hypothesis(text, float(score), stopped))
        if progress is not None:
            progress(len(indices))
    return [results[index] for index in range(len(rows))]
