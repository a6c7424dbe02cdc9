"""Token ids in, token ids out: one loop for greedy decoding, sampling, streams, speculative decoding and chats."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from typing import Unpack

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from anyformer.errors import UserError
from anyformer.generation.beam_search import beam_search_ids
from anyformer.generation.cached_decoder import CachedDecoder
from anyformer.generation.config import GenerationConfig, GenerationOptions, resolve
from anyformer.generation.inference import DamagedError, argmax, evaluating, likeliest, require_generative
from anyformer.generation.logits_processors import History, LogitsProcessor, make_processors, process
from anyformer.generation.prompt import Prompt, eos_ids, make_prompt, pad_id
from anyformer.generation.sampling import Sampler, make_sampler
from anyformer.generation.speculative_decoding import NO_GUESSES, Draft, Speculator, check_draft, verify
from anyformer.model import Transformer


def generate_ids(
    model: Transformer,
    ids: Int[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"] | None = None,
    config: GenerationConfig | None = None,
    *,
    draft: Draft | None = None,
    **options: Unpack[GenerationOptions],
) -> Int[Tensor, "texts new"]:
    """Continue prompts, or rewrite sources, and return the new tokens only.

    What the model's generation settings force or ban is obeyed, see `logits_processors`.

    Args:
        model: A decoder-only model or an encoder-decoder; it stays in the mode that it is in.
        ids: Prompts; for an encoder-decoder the sources.
        mask: False for padding, on the left or the right; None: there is none.
        config: None: greedily, with as many beams as the model's generation settings ask for. Samples of the same
            prompt are consecutive rows.
        draft: Guesses tokens ahead, so that the model needs fewer steps: a smaller model with the same vocabulary, or
            "prompt" for what followed the same tokens before. Texts are the same as without, sampled ones in
            distribution; they are generated one by one.
        options: Fields of the config that differ.

    Returns:
        The new ids, on the model's device: each text with its end-of-text token, then padding (end-of-text again where
        the model has no padding token).

    Raises:
        UserError: an empty prompt, one beyond the context, a model that doesn't generate text, a config that
            `GenerationConfig` refuses, beams together with a draft.
    """
    config = resolve(model, config, options, stop_strings=False)
    if config.beams > 1:
        if draft is not None:
            raise UserError("A draft is for texts without beams: leave it out, or ask for one beam.")
        return beam_search_ids(model, ids, mask, config).ids[:, 0]
    if draft is None or config.samples * len(ids) == 1:
        return torch.stack(list(stream_ids(model, ids, mask, config, draft=draft)), dim=1)
    # All are checked before the first is generated.
    config = config.replace(max_new_tokens=make_prompt(model, ids, mask, config.max_new_tokens).max_new_tokens)
    texts = list[Tensor]()
    for number in range(config.samples * len(ids)):
        row = [number // config.samples]
        # One seed for all would draw the same text for the same prompt.
        one = replace(config, samples=1, seed=None if config.seed is None else config.seed + number)
        steps = stream_ids(model, ids[row], None if mask is None else mask[row], one, draft=draft)
        texts.append(torch.cat(list(steps)))
    return pad_sequence(texts, batch_first=True, padding_value=pad_id(model, eos_ids(model, config)))


def stream_ids(
    model: Transformer,
    ids: Int[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"] | None = None,
    config: GenerationConfig | None = None,
    *,
    draft: Draft | None = None,
    **options: Unpack[GenerationOptions],
) -> Iterator[Int[Tensor, " texts"]]:
    """The tokens of `generate_ids` with one beam, step by step: each item is the next token of every text.

    Mistakes in the arguments are raised at once. While the steps are being taken the model is in evaluation
    mode; its mode comes back when they end or the iterator is closed. With a draft there can be one text only.
    """
    config = resolve(model, config, options, beams=False, stop_strings=False)
    require_generative(model)
    prompt = make_prompt(model, ids, mask, config.max_new_tokens)
    if draft is not None:
        check_draft(model, draft)
        if config.samples * len(ids) > 1:
            raise UserError("With a draft, stream_ids writes one text: give it one prompt, or use generate_ids.")
    eos = eos_ids(model, config)
    processors = make_processors(model, prompt.repeat(config.samples), eos, config)
    decoder, sampler = CachedDecoder(model, config.samples), make_sampler(config, model.device)
    return decode(decoder, prompt, processors, sampler, eos, draft=draft)


def decode(
    decoder: CachedDecoder,
    prompt: Prompt,
    processors: Sequence[LogitsProcessor],
    sampler: Sampler,
    eos: Sequence[int],
    *,
    draft: Draft | None = None,
) -> Generator[Int[Tensor, " texts"]]:
    """The loop over tokens: the next one of every text, until all have ended.

    The decoder computes logits, the processors change them, and the sampler chooses tokens by them. A draft guesses
    tokens of a single text.
    """
    model, start = decoder.model, prompt.ids.shape[1]
    length, end = start, prompt.capacity
    with evaluating(model):
        # Inference mode must not be left on while the caller is at work between two steps.
        with torch.inference_mode():
            logits = decoder.prefill(prompt)[:, None]
            prompt = decoder.prompt
            texts = torch.cat((prompt.ids, prompt.ids.new_zeros(len(prompt.ids), prompt.max_new_tokens)), dim=1)
            padding, pad = prompt.padding, pad_id(model, eos)
            stop = torch.tensor(eos, device=texts.device) if eos else None
            ended = torch.zeros(len(texts), dtype=torch.bool, device=texts.device)
            speculator = None if draft is None else Speculator(model, draft, prompt, sampler)
        guesses, accepted = NO_GUESSES, 0
        while True:
            best = likeliest(logits)
            for accepted in range(logits.shape[1]):
                guess = guesses.tokens[accepted] if accepted < len(guesses.tokens) else None
                with torch.inference_mode():
                    token = best[:, accepted]
                    if bool((token < 0).any()):
                        raise DamagedError
                    scores = process(
                        logits[:, accepted], processors, History(texts[:, :length], padding, length - start)
                    )
                    if sampler.greedy:
                        token = argmax(scores) if processors else token
                    elif guess is None:
                        token = sampler(scores)
                    else:
                        guessed = None if guesses.probabilities is None else guesses.probabilities[accepted]
                        token = verify(sampler, scores, guess, guessed)
                    if stop is not None:
                        token = torch.where(ended, pad, token)
                        ended = ended | torch.isin(token, stop)
                    texts[:, length] = token
                    length += 1
                # A clone made outside of inference mode is an ordinary tensor, fit to train on.
                yield token.clone()
                if length == end or (stop is not None and bool(ended.all())):
                    return
                if guess is not None and int(token) != guess:
                    break
            with torch.inference_mode():
                if speculator is not None:
                    text: list[int] = texts[0, :length].tolist()
                    guesses = speculator.propose(text, accepted, end - length - 1)
                logits = decoder.step(texts[:, :length], guesses.tokens)
