"""Writing text token by token, with a cache of what has been read.

stream_ids       the loop: yields the next token of every text, step by step
generate_ids     ids in, new ids out
generate         texts in, texts out
generate_stream  one text in, pieces of text out as they come
"""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from anyformer.errors import UserError
from anyformer.generation.inference import device_of, evaluating, require_tokenizer
from anyformer.generation.prompt import Prompt, encode_prompt, pad, padding_id, read_prompt
from anyformer.generation.rules import History, Rule, RuleContext, generation_settings, rules_for
from anyformer.generation.sampling import Sampling
from anyformer.model import ModelOutput, Transformer
from anyformer.tokenizer import StreamDecoder, Tokenizer

_CONTEXT = 32
"""Tokens of the prompt that the new ones are decoded behind: whether a word starts with a space depends on
them."""


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
) -> Int[Tensor, "batch new"]:
    """Continue prompts, or rewrite sources, and return the new tokens only.

    What the model's generation settings force or ban is obeyed (see `rules`); their beams and sampling are not.

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

    Returns:
        The new ids, where the model is.

    Raises:
        UserError: an empty prompt, one beyond the context, a model that doesn't write, a sampling value out of
            range.
    """
    steps = stream_ids(model, ids, mask, max_new_tokens, stop_at_end, temperature, top_k, top_p, seed)
    return torch.stack(list(steps), dim=1)


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
) -> Iterator[Int[Tensor, " batch"]]:
    """The tokens of `generate_ids` one step at a time: each item holds the next token of every text.

    Mistakes in the arguments are raised at once. While the steps are being taken the model is in evaluation
    mode; its mode comes back when they end or the iterator is closed.
    """
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    require_writing(model)
    prompt = read_prompt(model, ids, mask, max_new_tokens)
    ends = end_tokens(model) if stop_at_end else ()
    given = (prompt.start, prompt.mask) if prompt.source is None else (prompt.source, prompt.source_mask)
    context = RuleContext(
        vocab_size=model.config.vocab_size,
        max_new_tokens=max_new_tokens,
        ends=ends,
        ids=given[0],
        mask=given[1],
    )
    rules = rules_for(generation_settings(model), context)
    generator = None if seed is None else torch.Generator(device=device_of(model)).manual_seed(seed)
    return _steps(model, prompt, max_new_tokens, ends, rules, sampling, generator)


def _steps(
    model: Transformer,
    prompt: Prompt,
    max_new_tokens: int,
    ends: Sequence[int],
    rules: Sequence[Rule],
    sampling: Sampling,
    generator: torch.Generator | None,
) -> Iterator[Tensor]:
    batch, read = prompt.start.shape
    stop = torch.tensor(ends, device=prompt.start.device) if ends else None
    filler = _filler(model, ends)
    with evaluating(model):
        # Inference mode must not be left on while the caller is at work between two steps.
        with torch.inference_mode():
            cache = model.make_cache(batch, read + max_new_tokens)
            out = model(
                prompt.start,
                prompt.source,
                mask=prompt.mask,
                source_mask=prompt.source_mask,
                cache=cache,
                last_only=True,
            )
            scores = _next_scores(out)
            if bool(scores.isnan().any()):
                raise UserError("The model answers with NaN: its weights are damaged, or its training diverged.")
            ended = torch.zeros(batch, dtype=torch.bool, device=scores.device)
            texts = torch.cat((prompt.start, prompt.start.new_zeros(batch, max_new_tokens)), dim=1)
            padding = prompt.padding
        for new in range(max_new_tokens):
            with torch.inference_mode():
                history = History(ids=texts[:, : read + new], padding=padding, new=new)
                if new > 0 and _cache_is_stale(model, read + new):
                    scores = _reread(model, prompt, history)
                elif new > 0:
                    scores = _next_scores(model(texts[:, read + new - 1, None], cache=cache, last_only=True))
                for rule in rules:
                    scores = rule(scores, history)
                token = sampling.choose(scores, generator)
                if stop is not None:
                    token = torch.where(ended, filler, token)
                    ended = ended | torch.isin(token, stop)
                texts[:, read + new] = token
            # A clone made outside of inference mode is an ordinary tensor, fit to train on.
            yield token.clone()
            if stop is not None and bool(ended.all()):
                return


def _cache_is_stale(model: Transformer, length: int) -> bool:
    """Whether the latest tokens change what earlier ones mean, as with dynamic scaling beyond the trained length."""
    scaling = model.config.position.scaling
    return scaling is not None and scaling.kind == "dynamic" and length > model.config.max_length


def _reread(model: Transformer, prompt: Prompt, history: History) -> Float[Tensor, "batch vocab"]:
    """The scores of the next token, from reading everything anew."""
    mask = None if prompt.mask is None else history.real
    return _next_scores(model(history.ids, prompt.source, mask=mask, source_mask=prompt.source_mask))


def _next_scores(out: ModelOutput) -> Float[Tensor, "batch vocab"]:
    if out.logits is None:
        raise ValueError("a model without a language-model head scores no tokens")
    return out.logits[:, -1].float()


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
) -> list[str]:
    """Continue prompts, or rewrite sources, as one batch.

    Args:
        model: A decoder-only model or an encoder-decoder.
        tokenizer: Its tokenizer.
        prompts: Texts of any lengths; one string is a list of one. A decoder-only model gets them without the
            end-of-text that a tokenizer may put after a text.
        max_new_tokens, temperature, top_k, top_p, seed, stop_at_end: as in `generate_ids`.

    Returns:
        The new text of each prompt, without the prompt and without special tokens; ``prompt + text`` reads on.

    Raises:
        UserError: as `generate_ids`, and where there is no tokenizer.
    """
    tokenizer = require_tokenizer(tokenizer, "give generate_ids token ids")
    require_writing(model)
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not texts:
        return []
    rows = [encode_prompt(model, tokenizer, text) for text in texts]
    ids, mask = pad(rows, padding_id(model, tokenizer))
    new = generate_ids(model, ids, mask, max_new_tokens, stop_at_end, temperature, top_k, top_p, seed)
    ends = frozenset(end_tokens(model)) if stop_at_end else frozenset[int]()
    answers = [_until(row, ends) for row in cast("Any", new).tolist()]
    if model.config.is_encoder_decoder:
        return [tokenizer.decode(answer) for answer in answers]
    return [_continuation(tokenizer, row, answer) for row, answer in zip(rows, answers, strict=True)]


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
) -> Iterator[str]:
    """The text of `generate` for one prompt, in pieces as soon as they are certain; joined they are that text.

    Raises:
        UserError: at once, as `generate`.
    """
    tokenizer = require_tokenizer(tokenizer, "give stream_ids token ids")
    require_writing(model)
    row = encode_prompt(model, tokenizer, prompt)
    ids = torch.tensor([row], dtype=torch.long)
    steps = stream_ids(model, ids, None, max_new_tokens, stop_at_end, temperature, top_k, top_p, seed)
    ends = frozenset(end_tokens(model)) if stop_at_end else frozenset[int]()
    return _pieces(tokenizer, [] if model.config.is_encoder_decoder else row[-_CONTEXT:], steps, ends)


def _pieces(
    tokenizer: Tokenizer, before: Sequence[int], steps: Iterator[Tensor], ends: frozenset[int]
) -> Iterator[str]:
    decoder = StreamDecoder(tokenizer)
    shown = sum(len(decoder.push(token)) for token in before)
    # What the decoder still holds back of the prompt is no new text.
    held = len(tokenizer.decode(before)) - shown if before else 0
    for step in steps:
        token = int(step)
        piece = "" if token in ends else decoder.push(token)
        if piece[held:]:
            yield piece[held:]
        held = max(0, held - len(piece))
    if rest := decoder.flush()[held:]:
        yield rest


def _continuation(tokenizer: Tokenizer, prompt: Sequence[int], new: Sequence[int]) -> str:
    before = list(prompt[-_CONTEXT:])
    known, whole = tokenizer.decode(before), tokenizer.decode([*before, *new])
    return whole[len(known) :]


def _until(ids: list[int], ends: frozenset[int]) -> list[int]:
    """The ids before the first that ends the text."""
    return next((ids[:place] for place, token in enumerate(ids) if token in ends), ids)


def end_tokens(model: Transformer) -> tuple[int, ...]:
    """The tokens that end a text: those of the generation settings, else those of the config."""
    eos = cast("int | list[int] | None", generation_settings(model).get("eos_token_id"))
    known = model.config.tokens.eos if eos is None else [eos] if isinstance(eos, int) else eos
    return tuple(token for token in known if 0 <= token < model.config.vocab_size)


def _filler(model: Transformer, ends: Sequence[int]) -> int:
    """What stands after the end of a text that others outlast."""
    known = (generation_settings(model).get("pad_token_id"), model.config.tokens.pad, *ends)
    return next((token for token in known if token is not None and 0 <= token < model.config.vocab_size), 0)


def require_writing(model: Transformer) -> None:
    """Raise UserError for a model that can't write text."""
    if model.config.is_encoder_only:
        raise UserError(
            "An encoder reads text and doesn't write it: use `embed` for its vectors, or `fill` for the "
            "words behind masks."
        )
    if model.config.head.kind != "language_model":
        raise UserError(
            f"This model has no language-model head (its head is {model.config.head.kind!r}), so it can't "
            "write text: load one that was saved with it."
        )
