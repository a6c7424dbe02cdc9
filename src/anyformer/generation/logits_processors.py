"""Logits processors: what changes the logits of the next token before it is chosen.

Those of the model's `generation_config.json` are applied as Hugging Face applies them in greedy search, and in its
order; those of a `GenerationConfig` follow. A processor looks at each text of a batch by itself: padding counts neither
as length nor as a token of the text.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from anyformer.errors import UserError
from anyformer.generation.config import GenerationConfig, generation_settings
from anyformer.generation.prompt import Prompt
from anyformer.model import Transformer


@dataclass(frozen=True, kw_only=True)
class History:
    """The tokens of a batch of texts so far."""

    ids: Int[Tensor, "batch length"]
    """Prompt and new tokens, padded on the left."""
    padding: Int[Tensor, " batch"]
    """Padding tokens before each text."""
    new: int
    """How many of the tokens are new."""

    @property
    def lengths(self) -> Int[Tensor, " batch"]:
        """Tokens of each text, without padding."""
        return self.ids.shape[1] - self.padding

    @property
    def mask(self) -> Bool[Tensor, "batch length"]:
        """False for padding."""
        return torch.arange(self.ids.shape[1], device=self.ids.device)[None] >= self.padding[:, None]


LogitsProcessor = Callable[[Float[Tensor, "batch vocab"], History], Float[Tensor, "batch vocab"]]
"""Takes the logits of the next token and returns others."""


def make_processors(
    model: Transformer, prompt: Prompt, eos: Sequence[int], config: GenerationConfig
) -> list[LogitsProcessor]:
    """The processors of texts that follow this prompt: the model's, then those of the config.

    Raises:
        UserError: a token outside the vocabulary, or a penalty that is not positive.
    """
    vocab_size = model.config.vocab_size
    return [
        *model_processors(generation_settings(model), prompt, eos, vocab_size),
        *config_processors(config, vocab_size),
    ]


def config_processors(config: GenerationConfig, vocab_size: int) -> list[LogitsProcessor]:
    """Those that a `GenerationConfig` asks for. Raises UserError for a bias on a token that there is not."""
    processors: list[LogitsProcessor] = []
    if config.repetition_penalty != 1.0:
        processors.append(repetition_penalty(config.repetition_penalty))
    if config.presence_penalty or config.frequency_penalty:
        processors.append(presence_and_frequency_penalty(config.presence_penalty, config.frequency_penalty))
    if config.logit_bias:
        for token in config.logit_bias:
            if not 0 <= token < vocab_size:
                raise UserError(f"logit_bias names token {token}, and the vocabulary has {vocab_size}.")
        processors.append(logit_bias(list(config.logit_bias), list(config.logit_bias.values())))
    return processors


def model_processors(
    settings: Mapping[str, Any], prompt: Prompt, eos: Sequence[int], vocab_size: int
) -> list[LogitsProcessor]:
    """Those that a model's generation settings ask for, in the order in which they are applied.

    Raises:
        UserError: a setting that names a token outside the vocabulary, or a penalty that is not positive.
    """
    device = prompt.ids.device
    given = (prompt.ids, prompt.mask) if prompt.source is None else (prompt.source, prompt.source_mask)

    def tokens(name: str) -> list[int]:
        value = cast("int | list[int] | None", settings.get(name))
        return [] if value is None else [value] if isinstance(value, int) else list(value)

    def known(name: str, ids: Sequence[int]) -> tuple[int, ...]:
        for token in ids:
            if not 0 <= token < vocab_size:
                raise UserError(
                    f"generation_config.json: {name} names token {token}, and the vocabulary has {vocab_size}."
                )
        return tuple(ids)

    def mask(ids: Sequence[int]) -> Tensor:
        valid = torch.tensor([token for token in ids if 0 <= token < vocab_size], dtype=torch.long, device=device)
        return torch.zeros(vocab_size, dtype=torch.bool, device=device).index_fill_(0, valid, value=True)

    processors: list[LogitsProcessor] = []
    if pairs := cast("list[tuple[list[int], float]] | None", settings.get("sequence_bias")):
        biases = {known("sequence_bias", ids): float(bias) for ids, bias in pairs}
        processors.append(sequence_bias(biases, vocab_size, device))
    if (penalty := settings.get("encoder_repetition_penalty")) not in (None, 1.0):
        processors.append(encoder_repetition_penalty(_positive("encoder_repetition_penalty", penalty), *given))
    if (penalty := settings.get("repetition_penalty")) not in (None, 1.0):
        processors.append(repetition_penalty(_positive("repetition_penalty", penalty)))
    if size := settings.get("no_repeat_ngram_size"):
        processors.append(no_repeat_ngram(size))
    if size := settings.get("encoder_no_repeat_ngram_size"):
        processors.append(encoder_no_repeat_ngram(size, *given))
    # A lone end-of-text can't be a bad word: no text would ever end.
    words = cast("list[list[int]] | None", settings.get("bad_words_ids")) or []
    if bad := [tuple(ids) for ids in words if not (len(ids) == 1 and ids[0] in eos)]:
        biases = {known("bad_words_ids", ids): -torch.inf for ids in bad}
        processors.append(sequence_bias(biases, vocab_size, device))
    if eos and (length := settings.get("min_length")) and settings.get("min_new_tokens") is None:
        processors.append(min_length(mask(eos), length))
    if eos and (count := settings.get("min_new_tokens")):
        processors.append(min_new_tokens(mask(eos), count))
    if first := tokens("forced_bos_token_id"):
        processors.append(forced_bos(known("forced_bos_token_id", first)))
    if last := tokens("forced_eos_token_id"):
        processors.append(forced_eos(known("forced_eos_token_id", last), prompt.max_new_tokens))
    if banned := tokens("suppress_tokens"):
        processors.append(suppress_tokens(mask(banned)))
    if banned := tokens("begin_suppress_tokens"):
        processors.append(begin_suppress_tokens(mask(banned), after_first=bool(first)))
    return processors


def sequence_bias(biases: Mapping[tuple[int, ...], float], vocab_size: int, device: torch.device) -> LogitsProcessor:
    """Add a bias to the last token of each sequence wherever the text ends with the tokens before it.

    Args:
        biases: The bias of each sequence of ids; -inf bans.
        vocab_size: Number of logits.
        device: Where the logits are.
    """
    lone = torch.zeros(vocab_size, device=device)
    by_length: dict[int, list[tuple[tuple[int, ...], float]]] = {}
    for sequence, bias in biases.items():
        if len(sequence) == 1:
            lone[sequence[0]] = bias
        elif sequence:
            by_length.setdefault(len(sequence) - 1, []).append((sequence, bias))
    longer = [
        (
            torch.tensor([sequence[:-1] for sequence, _ in group], device=device),
            torch.tensor([sequence[-1] for sequence, _ in group], device=device),
            torch.tensor([bias for _, bias in group], device=device),
        )
        for group in by_length.values()
    ]

    def process(logits: Tensor, history: History) -> Tensor:
        added = lone.expand_as(logits).clone()
        for beginnings, endings, added_biases in longer:
            width = beginnings.shape[1]
            if width > history.ids.shape[1]:
                continue
            begun = (history.ids[:, None, -width:] == beginnings).all(dim=-1) & (history.lengths >= width)[:, None]
            added.index_add_(1, endings, torch.where(begun, added_biases, 0.0))
        return logits + added

    return process


def encoder_repetition_penalty(penalty: float, ids: Tensor, mask: Tensor | None) -> LogitsProcessor:
    """Raise the logits of tokens that the source has (of those it lacks, relatively, lower them)."""

    def process(logits: Tensor, history: History) -> Tensor:
        return torch.where(_seen_tokens(ids, mask, logits), _penalize(logits, 1 / penalty), logits)

    return process


def repetition_penalty(penalty: float) -> LogitsProcessor:
    """Lower the logits of tokens that the text has already (Keskar et al. 2019, section 4.1)."""

    def process(logits: Tensor, history: History) -> Tensor:
        return torch.where(_seen_tokens(history.ids, history.mask, logits), _penalize(logits, penalty), logits)

    return process


def no_repeat_ngram(size: int) -> LogitsProcessor:
    """Ban tokens that would complete a run of `size` tokens that the text has already (Paulus et al. 2018)."""

    def process(logits: Tensor, history: History) -> Tensor:
        return _ban_ngrams(logits, history, size, history.ids, history.mask)

    return process


def encoder_no_repeat_ngram(size: int, ids: Tensor, mask: Tensor | None) -> LogitsProcessor:
    """Ban tokens that would complete a run of `size` tokens of the source."""
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask

    def process(logits: Tensor, history: History) -> Tensor:
        return _ban_ngrams(logits, history, size, ids, real)

    return process


def suppress_tokens(tokens: Bool[Tensor, " vocab"]) -> LogitsProcessor:
    """Ban tokens always."""

    def process(logits: Tensor, history: History) -> Tensor:
        return logits.masked_fill(tokens, -torch.inf)

    return process


def min_new_tokens(tokens: Bool[Tensor, " vocab"], count: int) -> LogitsProcessor:
    """Ban tokens until there are this many new ones."""

    def process(logits: Tensor, history: History) -> Tensor:
        return logits.masked_fill(tokens, -torch.inf) if history.new < count else logits

    return process


def min_length(tokens: Bool[Tensor, " vocab"], length: int) -> LogitsProcessor:
    """Ban tokens until the text, prompt included, has this many."""

    def process(logits: Tensor, history: History) -> Tensor:
        if history.new >= length:
            return logits
        return logits.masked_fill(tokens & (history.lengths < length)[:, None], -torch.inf)

    return process


def begin_suppress_tokens(tokens: Bool[Tensor, " vocab"], *, after_first: bool) -> LogitsProcessor:
    """Ban tokens as the first new one, or as the second after a start of one token if the first is forced."""

    def process(logits: Tensor, history: History) -> Tensor:
        if history.new > 1 or (history.new == 1 and not after_first):
            return logits
        begins = (history.lengths - history.new > 1) | (not after_first)
        here = begins if history.new == 0 else ~begins
        return logits.masked_fill(tokens & here[:, None], -torch.inf)

    return process


def forced_bos(tokens: Sequence[int]) -> LogitsProcessor:
    """Allow nothing else after a start of one token."""

    def process(logits: Tensor, history: History) -> Tensor:
        if history.new > 0:
            return logits
        return torch.where((history.lengths == 1)[:, None], _only(tokens, logits), logits)

    return process


def forced_eos(tokens: Sequence[int], max_new_tokens: int) -> LogitsProcessor:
    """Allow nothing else as the last token of all."""

    def process(logits: Tensor, history: History) -> Tensor:
        return _only(tokens, logits) if history.new == max_new_tokens - 1 else logits

    return process


def presence_and_frequency_penalty(presence: float, frequency: float) -> LogitsProcessor:
    """``logit - count * frequency - (count > 0) * presence``, counting the new tokens (OpenAI's documentation)."""

    def process(logits: Tensor, history: History) -> Tensor:
        if history.new == 0:
            return logits
        new = history.ids[:, -history.new :]
        counts = torch.zeros_like(logits).scatter_add_(1, new, torch.ones_like(new, dtype=logits.dtype))
        return logits - counts * frequency - (counts > 0) * presence

    return process


def logit_bias(tokens: list[int], biases: list[float]) -> LogitsProcessor:
    """Add to the logits of these tokens."""

    def process(logits: Tensor, history: History) -> Tensor:
        biased = logits.clone()
        biased[:, tokens] += torch.tensor(biases, device=logits.device)
        return biased

    return process


def _positive(name: str, value: Any) -> float:
    if not float(value) > 0:
        raise UserError(f"generation_config.json: {name} is a positive number, not {value}.")
    return float(value)


def _only(tokens: Sequence[int], logits: Tensor) -> Tensor:
    allowed = torch.full_like(logits, -torch.inf)
    allowed[:, list(tokens)] = 0.0
    return allowed


def _penalize(logits: Tensor, penalty: float) -> Tensor:
    return torch.where(logits < 0, logits * penalty, logits / penalty)


def _seen_tokens(ids: Tensor, real: Tensor | None, logits: Tensor) -> Bool[Tensor, "batch vocab"]:
    """Which tokens each text has."""
    return _token_mask(ids, torch.ones_like(ids, dtype=torch.bool) if real is None else real, logits)


def _ban_ngrams(logits: Tensor, history: History, size: int, ids: Tensor, real: Tensor) -> Tensor:
    """Ban what followed, anywhere in `ids`, on the last size - 1 tokens of each text."""
    length = history.ids.shape[1]
    if ids.shape[1] < size or length < size - 1:
        return logits
    runs = ids.unfold(1, size, 1)
    begun = (runs[..., :-1] == history.ids[:, None, length + 1 - size :]).all(dim=-1)
    counts = real.unfold(1, size, 1).all(dim=-1) & (history.lengths >= size - 1)[:, None]
    return logits.masked_fill(_token_mask(runs[..., -1], begun & counts, logits), -torch.inf)


def _token_mask(ids: Tensor, where: Tensor, logits: Tensor) -> Bool[Tensor, "batch vocab"]:
    """True at each id for which `where` holds; ids without a score (of the source's own vocabulary) go
    nowhere."""
    batch, vocab = logits.shape
    spare = ids.masked_fill(~where, vocab).clamp(max=vocab)
    return torch.zeros((batch, vocab + 1), dtype=torch.bool, device=logits.device).scatter_(1, spare, True)[:, :-1]
