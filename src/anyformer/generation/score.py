"""Log-probabilities of given texts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F

from anyformer.checkpoint.by_name import takes_model
from anyformer.errors import UserError
from anyformer.generation import inference
from anyformer.generation.prompt import batches, decoder_start_id, encode_prompt, input_pad_id, pad
from anyformer.model import Transformer
from anyformer.one_line import OneLine
from anyformer.tokenizer import Tokenizer
from anyformer.tokenizer.prompt import common_prefix


@dataclass(frozen=True, repr=False)
class Score(OneLine):
    """The log-probability of each token of a text, given all tokens before it."""

    shown: ClassVar = ("logprob", "perplexity", "tokens")

    tokens: list[int]
    """Ids of the scored tokens; the first of a text without a prompt can't be scored."""
    logprobs: list[float]
    """In nats."""

    @property
    def logprob(self) -> float:
        """That of the whole text, in nats."""
        return math.fsum(self.logprobs)

    @property
    def perplexity(self) -> float:
        """The exponential of the mean negative log-probability; NaN without tokens."""
        return math.exp(-self.logprob / len(self.logprobs)) if self.logprobs else math.nan


@takes_model
def score(
    model: Transformer,
    tokenizer: Tokenizer | None,
    texts: str | Sequence[str],
    prompts: str | Sequence[str] | None = None,
    batch_size: int = 8,
) -> list[Score]:
    """Score texts instead of generating them: to rank answers, or to find what surprises a model.

    Args:
        model, tokenizer: A decoder-only model or an encoder-decoder, and its tokenizer.
        texts: What is scored; of an encoder-decoder with its end-of-text.
        prompts: What each text follows, as in ``prompt + text``; one string is that of all. For an encoder-decoder the
            sources, which it can't do without.
        batch_size: Texts of a batch, those of about equal length together.

    Raises:
        UserError: an empty text, one beyond the context with its prompt, other numbers of texts and prompts, a model
            that doesn't generate text or has no tokenizer.
    """
    tokenizer = inference.require_tokenizer(tokenizer, "give the model token ids")
    inference.require_generative(model)
    if batch_size < 1:
        raise UserError(f"batch_size is a number of texts, at least 1, not {batch_size}.")
    texts = [texts] if isinstance(texts, str) else texts
    if prompts is None and model.config.is_encoder_decoder:
        raise UserError("An encoder-decoder scores a text as the answer to a source: give the sources as prompts.")
    before = [prompts] * len(texts) if prompts is None or isinstance(prompts, str) else prompts
    if len(before) != len(texts):
        raise UserError(
            f"There are {len(texts)} texts and {len(before)} prompts: give a prompt for each, or one for all."
        )
    rows = [
        _encode(model, tokenizer, number, text, prompt)
        for number, (text, prompt) in enumerate(zip(texts, before, strict=True), start=1)
    ]
    scores: dict[int, Score] = {}
    for indices in batches([row.ids for row in rows], batch_size):
        batch = [rows[index] for index in indices]
        scores |= zip(indices, _score(model, batch, input_pad_id(model, tokenizer)), strict=True)
    return [scores[index] for index in range(len(rows))]


@dataclass(frozen=True)
class _Row:
    ids: list[int]
    prompt_length: int
    """How many of the ids are not scored."""
    source: list[int]


def _encode(model: Transformer, tokenizer: Tokenizer, number: int, text: str, prompt: str | None) -> _Row:
    source = list[int]()
    if model.config.is_encoder_decoder:
        ids, prompt_length = [decoder_start_id(model), *tokenizer.encode(text)], 1
        source = tokenizer.encode(prompt or "")
    elif prompt is None:
        start, plain, _ = tokenizer.encode_parts(text)
        ids, prompt_length = [*start, *plain], len(start) if plain else 0
    else:
        ids = encode_prompt(model, tokenizer, prompt + text)
        # A token that reaches from the prompt into the text is scored with the text.
        prompt_length = common_prefix(encode_prompt(model, tokenizer, prompt), ids)
    prompt_length = max(1, prompt_length)
    if len(ids) < 2 or len(ids) == prompt_length:
        raise UserError(f"Text {number} has no token that could be scored: it is empty, or one token with no prompt.")
    inference.check_length(f"Text {number}", len(ids), model)
    inference.check_length(f"Source {number}", len(source), model)
    inference.check_ids(torch.tensor(ids), model.config.vocab_size)
    return _Row(ids, prompt_length, source)


def _score(model: Transformer, rows: Sequence[_Row], pad_id: int) -> list[Score]:
    ids, mask = pad([row.ids for row in rows], pad_id, model.device)
    source = source_mask = None
    if model.config.is_encoder_decoder:
        source, source_mask = pad([row.source for row in rows], pad_id, model.device)
    with inference.evaluating(model), torch.inference_mode():
        logits = inference.float_logits(model(ids[:, :-1], source, mask=mask[:, :-1], source_mask=source_mask))
        log_p = -F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(rows), -1)
    logprobs: list[list[float]] = cast("Any", log_p).tolist()
    scores = [
        Score(row.ids[row.prompt_length :], found[row.prompt_length - 1 : len(row.ids) - 1])
        for row, found in zip(rows, logprobs, strict=True)
    ]
    if any(math.isnan(score.logprob) for score in scores):
        raise UserError(inference.DAMAGED)
    return scores
