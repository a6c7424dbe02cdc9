"""Log-probabilities of given texts."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch

from anyformer.checkpoint.load import takes_model
from anyformer.errors import UserError
from anyformer.evaluation.scorer import Query, Scorer
from anyformer.generation import inference
from anyformer.generation.prompt import decoder_start_id, encode_prompt
from anyformer.model import Transformer
from anyformer.one_line import OneLine
from anyformer.tokenizer import Tokenizer
from anyformer.tokenizer.prompt import common_prefix
from anyformer.tokenizer.texts import texts_of


@dataclass(frozen=True, repr=False)
class Score(OneLine):
    """The log-probability of each token of a text, given all tokens before it."""

    shown: ClassVar = ("logprob", "perplexity", "tokens")

    tokens: list[int]
    """Ids of the scored tokens; the first of a text without a prompt can't be scored."""
    logprobs: list[float]
    """Log-probability of each token, in nats."""

    @property
    def logprob(self) -> float:
        """Log-probability of the whole text, in nats."""
        return math.fsum(self.logprobs)

    @property
    def perplexity(self) -> float:
        """The exponential of the mean negative log-probability; NaN without tokens."""
        return math.exp(-self.logprob / len(self.logprobs)) if self.logprobs else math.nan


@takes_model
def score(
    model: Transformer,
    tokenizer: Tokenizer | None,
    texts: str | Iterable[str],
    prompts: str | Iterable[str] | None = None,
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
        UserError: rows or what else is no text, an empty text or source, one beyond the context with its prompt, other
            numbers of texts and prompts, a model that doesn't generate text or has no tokenizer.
    """
    tokenizer = inference.require_tokenizer(tokenizer, "give the model token ids")
    inference.require_generative(model)
    if batch_size < 1:
        raise UserError(f"batch_size is a number of texts, at least 1, not {batch_size}.")
    texts = texts_of(texts)
    if prompts is None and model.config.is_encoder_decoder:
        raise UserError("An encoder-decoder scores a text as the answer to a source: give the sources as prompts.")
    before = [prompts] * len(texts) if prompts is None or isinstance(prompts, str) else texts_of(prompts, "Prompt")
    if len(before) != len(texts):
        raise UserError(
            f"There are {len(texts)} texts and {len(before)} prompts: give a prompt for each, or one for all."
        )
    queries = [
        _query(model, tokenizer, number, text, prompt)
        for number, (text, prompt) in enumerate(zip(texts, before, strict=True), start=1)
    ]
    scores = Scorer(model, batch_size)(queries)
    return [Score([*query.targets], [*each.logprobs]) for query, each in zip(queries, scores, strict=True)]


def _query(model: Transformer, tokenizer: Tokenizer, number: int, text: str, prompt: str | None) -> Query:
    source = list[int]()
    if model.config.is_encoder_decoder:
        ids, prompt_length = [decoder_start_id(model), *tokenizer.encode(text)], 1
        source = tokenizer.encode(prompt or "")
        if not source:
            raise UserError(f"Source {number} is empty: an encoder-decoder scores a text as the answer to a source.")
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
    return Query(ids[:-1], prompt_length - 1, ids[prompt_length:], source)
