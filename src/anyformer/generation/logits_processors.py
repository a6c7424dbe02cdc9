"""Logits processors: what changes the logits of the next token before it is chosen.

Those of the model's `generation_config.json` are applied as Hugging Face applies them in greedy search, and in its
order; those of a `GenerationConfig` follow. A processor looks at each text of a batch by itself: padding counts neither
as length nor as a token of the text.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from anyformer.errors import UserError
from anyformer.generation.config import GenerationConfig, generation_settings
from anyformer.generation.prompt import Prompt
from anyformer.model import Transformer


class History(NamedTuple):
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
Condition = Callable[[History], Bool[Tensor, " batch"] | bool]
"""The texts in which something holds; True or False: in all of them, in none."""


def process(logits: Tensor, processors: Iterable[LogitsProcessor], history: History) -> Float[Tensor, "batch vocab"]:
    """The logits after all processors."""
    for processor in processors:
        logits = processor(logits, history)
    return logits


def make_processors(
    model: Transformer, prompt: Prompt, eos: Sequence[int], config: GenerationConfig
) -> list[LogitsProcessor]:
    """The processors of texts that follow this prompt: the model's, then those of the config.

    Raises UserError for a token outside the vocabulary, or a penalty that is not positive.
    """
    settings, vocab_size = generation_settings(model), model.config.vocab_size
    return [*model_processors(settings, prompt, eos, vocab_size), *config_processors(config, vocab_size)]


def config_processors(config: GenerationConfig, vocab_size: int) -> Iterator[LogitsProcessor]:
    """Processors for a `GenerationConfig`. Raises UserError for a bias on a token that does not exist."""
    if config.repetition_penalty != 1.0:
        yield partial(repetition_penalty, penalty=config.repetition_penalty)
    if (presence := config.presence_penalty) or config.frequency_penalty:
        yield partial(frequency_penalty, presence=presence, frequency=config.frequency_penalty)
    if _valid("logit_bias", config.logit_bias, vocab_size):
        yield partial(logit_bias, biases=config.logit_bias)


def model_processors(
    settings: Mapping[str, Any], prompt: Prompt, eos: Sequence[int], vocab_size: int
) -> Iterator[LogitsProcessor]:
    """Processors for a model's generation settings, in the order in which they are applied.

    Raises UserError for a setting that names a token outside the vocabulary, or a penalty that is not positive.
    """
    device = prompt.ids.device
    ids, mask = (prompt.ids, prompt.mask) if prompt.source is None else (prompt.source, prompt.source_mask)
    source = {"ids": ids, "mask": torch.ones_like(ids, dtype=torch.bool) if mask is None else mask}

    def tokens(name: str) -> list[int]:
        value = cast("int | list[int] | None", settings.get(name))
        return [] if value is None else [value] if isinstance(value, int) else value

    def valid(name: str, ids: Sequence[int]) -> tuple[int, ...]:
        return _valid(f"generation_config.json: {name}", ids, vocab_size)

    def token_mask(ids: Sequence[int]) -> Bool[Tensor, " vocab"]:
        index = torch.tensor([token for token in ids if 0 <= token < vocab_size], dtype=torch.long, device=device)
        return torch.zeros(vocab_size, dtype=torch.bool, device=device).index_fill_(0, index, value=True)

    def penalty(name: str) -> float:
        value = 1.0 if settings.get(name) is None else float(settings[name])
        if not value > 0:
            raise UserError(f"generation_config.json: {name} is a positive number, not {settings[name]}.")
        return value

    if pairs := cast("list[tuple[list[int], float]] | None", settings.get("sequence_bias")):
        biases = {valid("sequence_bias", ids): float(bias) for ids, bias in pairs}
        yield sequence_bias(biases, vocab_size, device)
    if (value := penalty("encoder_repetition_penalty")) != 1.0:
        # Tokens that the source has become likelier.
        yield partial(repetition_penalty, penalty=1 / value, **source)
    if (value := penalty("repetition_penalty")) != 1.0:
        yield partial(repetition_penalty, penalty=value)
    if size := settings.get("no_repeat_ngram_size"):
        yield partial(no_repeat_ngram, size=size)
    if size := settings.get("encoder_no_repeat_ngram_size"):
        yield partial(no_repeat_ngram, size=size, **source)
    # A lone end-of-text can't be a bad word: no text would ever end.
    bad_words = cast("list[list[int]] | None", settings.get("bad_words_ids")) or []
    if bad_words := [ids for ids in bad_words if not (len(ids) == 1 and ids[0] in eos)]:
        biases = {valid("bad_words_ids", ids): -torch.inf for ids in bad_words}
        yield sequence_bias(biases, vocab_size, device)
    if eos and (length := settings.get("min_length")) and settings.get("min_new_tokens") is None:
        yield partial(ban, tokens=token_mask(eos), where=lambda text: text.new < length and text.lengths < length)
    if eos and (count := settings.get("min_new_tokens")):
        yield partial(ban, tokens=token_mask(eos), where=lambda text: text.new < count)
    if first := tokens("forced_bos_token_id"):
        allowed = valid("forced_bos_token_id", first)
        yield partial(force, tokens=allowed, where=lambda text: text.new == 0 and text.lengths == 1)
    if last := tokens("forced_eos_token_id"):
        allowed = valid("forced_eos_token_id", last)
        yield partial(force, tokens=allowed, where=lambda text: text.new == prompt.max_new_tokens - 1)
    if banned := tokens("suppress_tokens"):
        yield partial(ban, tokens=token_mask(banned), where=lambda text: True)
    if banned := tokens("begin_suppress_tokens"):
        yield partial(ban, tokens=token_mask(banned), where=partial(_begin, after_first=bool(first)))


def _valid(name: str, ids: Iterable[int], vocab_size: int) -> tuple[int, ...]:
    for token in ids:
        if not 0 <= token < vocab_size:
            raise UserError(f"{name} names token {token}, and the vocabulary has {vocab_size}.")
    return tuple(ids)


def sequence_bias(biases: Mapping[tuple[int, ...], float], vocab_size: int, device: torch.device) -> LogitsProcessor:
    """Add a sequence's bias (-inf bans) to its last token wherever the text ends with the tokens before it."""
    single = torch.zeros(vocab_size, device=device)
    by_length: dict[int, list[tuple[tuple[int, ...], float]]] = {}
    for sequence, bias in biases.items():
        if len(sequence) == 1:
            single[sequence[0]] = bias
        elif sequence:
            by_length.setdefault(len(sequence) - 1, []).append((sequence, bias))
    tensor = partial(torch.tensor, device=device)
    longer = [
        (tensor([ids[:-1] for ids, _ in group]), tensor([ids[-1] for ids, _ in group]), tensor([b for _, b in group]))
        for group in by_length.values()
    ]

    def add_biases(logits: Tensor, history: History) -> Tensor:
        added = single.expand_as(logits).clone()
        for prefixes, last, bias in longer:
            width = prefixes.shape[1]
            if width > history.ids.shape[1]:
                continue
            matches = (history.ids[:, None, -width:] == prefixes).all(dim=-1) & (history.lengths >= width)[:, None]
            added.index_add_(1, last, torch.where(matches, bias, 0.0))
        return logits + added

    return add_biases


def repetition_penalty(
    logits: Tensor, history: History, penalty: float, ids: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """Lower the logits of tokens of the text (Keskar et al. 2019, section 4.1), or of `ids` where `mask` is True."""
    tokens = _token_mask(history.ids, history.mask, logits) if ids is None else _token_mask(ids, mask, logits)
    return torch.where(tokens, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def no_repeat_ngram(
    logits: Tensor, history: History, size: int, ids: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """Ban tokens that would complete an n-gram of the text (Paulus et al. 2018), or of `ids` where `mask` is True."""
    ids, mask = (history.ids, history.mask) if ids is None or mask is None else (ids, mask)
    length = history.ids.shape[1]
    if ids.shape[1] < size or length < size - 1:
        return logits
    ngrams = ids.unfold(1, size, 1)
    matches = (ngrams[..., :-1] == history.ids[:, None, length + 1 - size :]).all(dim=-1)
    valid = mask.unfold(1, size, 1).all(dim=-1) & (history.lengths >= size - 1)[:, None]
    return logits.masked_fill(_token_mask(ngrams[..., -1], matches & valid, logits), -torch.inf)


def ban(logits: Tensor, history: History, tokens: Bool[Tensor, " vocab"], where: Condition) -> Tensor:
    """Ban tokens."""
    texts = where(history)
    if texts is False:
        return logits
    return logits.masked_fill(tokens if texts is True else tokens & texts[:, None], -torch.inf)


def force(logits: Tensor, history: History, tokens: Sequence[int], where: Condition) -> Tensor:
    """Allow nothing but these tokens."""
    texts = where(history)
    if texts is False:
        return logits
    allowed = torch.full_like(logits, -torch.inf)
    allowed[:, list(tokens)] = 0.0
    return allowed if texts is True else torch.where(texts[:, None], allowed, logits)


def _begin(history: History, *, after_first: bool) -> Bool[Tensor, " batch"] | bool:
    """The texts whose first new token is next, or the second after a start of one token if the first is forced."""
    if history.new > 1 or (history.new == 1 and not after_first):
        return False
    begins = (history.lengths - history.new > 1) | (not after_first)
    return begins if history.new == 0 else ~begins


def frequency_penalty(logits: Tensor, history: History, presence: float, frequency: float) -> Tensor:
    """``logit - count * frequency - (count > 0) * presence``, counting the new tokens (OpenAI's documentation)."""
    if history.new == 0:
        return logits
    new = history.ids[:, -history.new :]
    counts = torch.zeros_like(logits).scatter_add_(1, new, torch.ones_like(new, dtype=logits.dtype))
    return logits - counts * frequency - (counts > 0) * presence


def logit_bias(logits: Tensor, history: History, biases: Mapping[int, float]) -> Tensor:
    """Add to the logits of these tokens."""
    biased = logits.clone()
    biased[:, list(biases)] += torch.tensor(list(biases.values()), device=logits.device)
    return biased


def _token_mask(ids: Tensor, valid: Tensor | None, logits: Tensor) -> Bool[Tensor, "batch vocab"]:
    """True for each id that is valid and has a logit, as those of the source's own vocabulary may not."""
    batch, vocab = logits.shape
    columns = (ids if valid is None else ids.masked_fill(~valid, vocab)).clamp(max=vocab)
    return torch.zeros((batch, vocab + 1), dtype=torch.bool, device=logits.device).scatter_(1, columns, True)[:, :-1]
