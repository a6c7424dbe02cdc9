"""How likely a model finds given texts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from anyformer.errors import UserError
from anyformer.generation.inference import (
    DAMAGED,
    check_ids,
    evaluating,
    float_logits,
    require_generative,
    require_tokenizer,
)
from anyformer.generation.prefix_cache import common_prefix
from anyformer.generation.prompt import encode_prompt, pad
from anyformer.generation.special_ids import decoder_start_id, input_pad_id
from anyformer.model import Transformer
from anyformer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Score:
    """The log-probability of each token of a text, given all that comes before it."""

    tokens: list[int]
    """Those that were scored; the first of a text with nothing before it can't be."""
    logprobs: list[float]
    """In nats."""

    @property
    def logprob(self) -> float:
        """That of the whole text, in nats."""
        return math.fsum(self.logprobs)

    @property
    def perplexity(self) -> float:
        """The exponential of the mean of the negative log-probabilities; not a number where there are none."""
        return math.exp(-self.logprob / len(self.logprobs)) if self.logprobs else math.nan


def score(
    model: Transformer,
    tokenizer: Tokenizer | None,
    texts: str | Sequence[str],
    prompts: str | Sequence[str] | None = None,
    batch_size: int = 8,
) -> list[Score]:
    """Score texts instead of writing them: to rank answers, or to find what surprises a model.

    Args:
        model: A decoder-only model, or an encoder-decoder.
        tokenizer: Its tokenizer.
        texts: What is scored; of an encoder-decoder the whole of it, with its end-of-text.
        prompts: What each text follows, as it would in ``prompt + text``; one string is that of all. An
            encoder-decoder's sources, which it can't do without.
        batch_size: Texts that are read at a time, those of about equal length together.

    Returns:
        A score for each text, in their order.

    Raises:
        UserError: an empty text, one beyond the context with its prompt, other numbers of texts and prompts, a model
            that doesn't write or has no tokenizer.
    """
    tokenizer = require_tokenizer(tokenizer, "give the model token ids")
    require_generative(model)
    if batch_size < 1:
        raise UserError(f"batch_size is a number of texts, at least 1, not {batch_size}.")
    texts = [texts] if isinstance(texts, str) else list(texts)
    if prompts is None and model.config.is_encoder_decoder:
        raise UserError("An encoder-decoder scores a text as the answer to a source: give the sources as prompts.")
    before = [prompts] * len(texts) if prompts is None or isinstance(prompts, str) else list(prompts)
    if len(before) != len(texts):
        raise UserError(
            f"There are {len(texts)} texts and {len(before)} prompts: give a prompt for each, or one for all."
        )
    pairs = [_encode(model, tokenizer, text, prompt) for text, prompt in zip(texts, before, strict=True)]
    for number, pair in enumerate(pairs, start=1):
        _check(model, pair, number)
    order = sorted(range(len(pairs)), key=lambda place: -len(pairs[place].ids))
    found: dict[int, Score] = {}
    for begin in range(0, len(order), batch_size):
        members = order[begin : begin + batch_size]
        some = [pairs[member] for member in members]
        found |= dict(zip(members, _score(model, some, input_pad_id(model, tokenizer)), strict=True))
    return [found[place] for place in range(len(pairs))]


@dataclass(frozen=True)
class _Pair:
    ids: list[int]
    known: int
    """How many of them are not scored."""
    source: list[int] | None = None


def _encode(model: Transformer, tokenizer: Tokenizer, text: str, prompt: str | None) -> _Pair:
    if model.config.is_encoder_decoder:
        return _Pair([decoder_start_id(model), *tokenizer.encode(text)], 1, tokenizer.encode(prompt or ""))
    if prompt is None:
        start, plain, _ = tokenizer.encode_parts(text)
        return _Pair([*start, *plain], max(1, len(start) if plain else 0))
    known, whole = encode_prompt(model, tokenizer, prompt), encode_prompt(model, tokenizer, prompt + text)
    # A token that reaches from the prompt into the text is scored with the text.
    return _Pair(whole, max(1, common_prefix(known, whole)))


def _check(model: Transformer, pair: _Pair, number: int) -> None:
    if len(pair.ids) < 2 or (len(pair.ids) == pair.known):
        raise UserError(f"Text {number} has no token that could be scored: it is empty, or one token with no prompt.")
    context = model.config.context_length
    for what, ids in (("Text", pair.ids), ("Source", pair.source or [])):
        if context is not None and len(ids) > context:
            raise UserError(f"{what} {number} has {len(ids)} tokens, and the model can read {context}: shorten it.")
    check_ids(torch.tensor(pair.ids), model.config.vocab_size)


def _score(model: Transformer, pairs: Sequence[_Pair], fill: int) -> list[Score]:
    ids, mask = (part.to(model.device) for part in pad([pair.ids for pair in pairs], fill))
    source: Tensor | None = None
    source_mask: Tensor | None = None
    if pairs[0].source is not None:
        source, source_mask = (part.to(model.device) for part in pad([pair.source or [] for pair in pairs], fill))
    with evaluating(model), torch.inference_mode():
        logits = float_logits(model(ids[:, :-1], source, mask=mask[:, :-1], source_mask=source_mask))
        log_p = -torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    rows = cast("list[list[float]]", log_p.view(len(pairs), -1).tolist())
    found = [
        Score(pair.ids[pair.known :], row[pair.known - 1 : len(pair.ids) - 1])
        for pair, row in zip(pairs, rows, strict=True)
    ]
    if any(math.isnan(score.logprob) for score in found):
        raise UserError(DAMAGED)
    return found
