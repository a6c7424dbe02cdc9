"""What a model's generation settings demand of its text: forced, banned and discouraged tokens.

The settings are those of `generation_config.json`, applied as Hugging Face applies them in greedy search and
in its order. A rule looks at each text of a batch by itself: padding counts neither as length nor as something
said. Settings of beam search and of sampling are no rules, and are left to whoever searches or samples.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from anyformer.errors import UserError
from anyformer.model import Transformer


@dataclass(frozen=True, kw_only=True)
class History:
    """What a batch of texts consists of so far."""

    ids: Int[Tensor, "batch length"]
    """Prompt and new tokens, padded on the left."""
    padding: Int[Tensor, " batch"]
    """Padding tokens before each text."""
    new: int
    """How many of the tokens are new."""

    @property
    def lengths(self) -> Int[Tensor, " batch"]:
        """Real tokens of each text."""
        return self.ids.shape[1] - self.padding

    @property
    def real(self) -> Bool[Tensor, "batch length"]:
        """False for padding."""
        return torch.arange(self.ids.shape[1], device=self.ids.device)[None] >= self.padding[:, None]


Rule = Callable[[Float[Tensor, "batch vocab"], History], Float[Tensor, "batch vocab"]]
"""Takes the scores of the next token and returns others."""


@dataclass(frozen=True, kw_only=True)
class RuleContext:
    """What the rules need to know of a run besides the settings."""

    vocab_size: int
    max_new_tokens: int
    ends: Sequence[int]
    """Tokens that end a text."""
    ids: Int[Tensor, "batch time"]
    """What the model was given: prompts, or sources."""
    mask: Bool[Tensor, "batch time"] | None
    """False for padding."""


def generation_settings(model: Transformer) -> Mapping[str, Any]:
    """The model's generation_config.json, or where it had none the same-named fields of its config.json."""
    return model.origin.generation or model.origin.config


def rules_for(settings: Mapping[str, Any], context: RuleContext) -> list[Rule]:
    """The rules that the settings ask for, in the order in which they are applied.

    Raises:
        UserError: a setting that names a token outside the vocabulary, or a penalty that is not positive.
    """
    device, vocab, ends = context.ids.device, context.vocab_size, context.ends

    def read(name: str) -> Any:
        return settings.get(name)

    def tokens(name: str) -> list[int]:
        value = cast("int | list[int] | None", settings.get(name))
        return [] if value is None else [value] if isinstance(value, int) else list(value)

    def sequences(name: str) -> list[tuple[int, ...]]:
        return [tuple(ids) for ids in cast("list[list[int]] | None", settings.get(name)) or []]

    def known(name: str, ids: Sequence[int]) -> tuple[int, ...]:
        for token in ids:
            if not 0 <= token < vocab:
                raise UserError(f"generation_config.json: {name} names token {token}, and the vocabulary has {vocab}.")
        return tuple(ids)

    def marked(ids: Sequence[int]) -> Tensor:
        inside = torch.tensor([token for token in ids if 0 <= token < vocab], dtype=torch.long, device=device)
        return torch.zeros(vocab, dtype=torch.bool, device=device).index_fill_(0, inside, value=True)

    rules: list[Rule] = []
    if pairs := cast("list[tuple[list[int], float]] | None", read("sequence_bias")):
        biases = {known("sequence_bias", ids): float(bias) for ids, bias in pairs}
        rules.append(bias_sequences(biases, vocab, device))
    if (penalty := read("encoder_repetition_penalty")) not in (None, 1.0):
        rules.append(favor_source(_positive("encoder_repetition_penalty", penalty), context.ids, context.mask))
    if (penalty := read("repetition_penalty")) not in (None, 1.0):
        rules.append(discourage_repetition(_positive("repetition_penalty", penalty)))
    if size := read("no_repeat_ngram_size"):
        rules.append(ban_repeated_ngrams(size))
    if size := read("encoder_no_repeat_ngram_size"):
        rules.append(ban_source_ngrams(size, context.ids, context.mask))
    # A lone end-of-text can't be a bad word: no text would ever end.
    if bad := [ids for ids in sequences("bad_words_ids") if not (len(ids) == 1 and ids[0] in ends)]:
        rules.append(bias_sequences({known("bad_words_ids", ids): -torch.inf for ids in bad}, vocab, device))
    if ends and (shortest := read("min_length")) and read("min_new_tokens") is None:
        rules.append(ban_below_length(marked(ends), shortest))
    if ends and (fewest := read("min_new_tokens")):
        rules.append(ban_before(marked(ends), fewest))
    if first := tokens("forced_bos_token_id"):
        rules.append(force_first(known("forced_bos_token_id", first)))
    if last := tokens("forced_eos_token_id"):
        rules.append(force_last(known("forced_eos_token_id", last), context.max_new_tokens))
    if banned := tokens("suppress_tokens"):
        rules.append(ban(marked(banned)))
    if banned := tokens("begin_suppress_tokens"):
        rules.append(ban_at_start(marked(banned), after_first=bool(first)))
    return rules


def bias_sequences(biases: Mapping[tuple[int, ...], float], vocab_size: int, device: torch.device) -> Rule:
    """Add a bias to the last token of each sequence wherever the text ends with what comes before it.

    Args:
        biases: The bias of each sequence of ids; -inf bans.
        vocab_size: Number of scores.
        device: Where the scores are.
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

    def rule(scores: Tensor, history: History) -> Tensor:
        added = lone.expand_as(scores).clone()
        for beginnings, endings, added_biases in longer:
            width = beginnings.shape[1]
            if width > history.ids.shape[1]:
                continue
            begun = (history.ids[:, None, -width:] == beginnings).all(dim=-1) & (history.lengths >= width)[:, None]
            added.index_add_(1, endings, torch.where(begun, added_biases, 0.0))
        return scores + added

    return rule


def favor_source(penalty: float, ids: Tensor, mask: Tensor | None) -> Rule:
    """Raise the scores of tokens that the source has (of those it lacks, relatively, lower them)."""

    def rule(scores: Tensor, history: History) -> Tensor:
        return torch.where(_occurring(ids, mask, scores), _penalized(scores, 1 / penalty), scores)

    return rule


def discourage_repetition(penalty: float) -> Rule:
    """Lower the scores of tokens that the text has already (Keskar et al. 2019, section 4.1)."""

    def rule(scores: Tensor, history: History) -> Tensor:
        return torch.where(_occurring(history.ids, history.real, scores), _penalized(scores, penalty), scores)

    return rule


def ban_repeated_ngrams(size: int) -> Rule:
    """Ban tokens that would complete a run of `size` tokens that the text has already (Paulus et al. 2018)."""

    def rule(scores: Tensor, history: History) -> Tensor:
        return _ban_completions(scores, history, size, history.ids, history.real)

    return rule


def ban_source_ngrams(size: int, ids: Tensor, mask: Tensor | None) -> Rule:
    """Ban tokens that would complete a run of `size` tokens of the source."""
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask

    def rule(scores: Tensor, history: History) -> Tensor:
        return _ban_completions(scores, history, size, ids, real)

    return rule


def ban(tokens: Bool[Tensor, " vocab"]) -> Rule:
    """Ban tokens always."""

    def rule(scores: Tensor, history: History) -> Tensor:
        return scores.masked_fill(tokens, -torch.inf)

    return rule


def ban_before(tokens: Bool[Tensor, " vocab"], fewest: int) -> Rule:
    """Ban tokens until there are this many new ones."""

    def rule(scores: Tensor, history: History) -> Tensor:
        return scores.masked_fill(tokens, -torch.inf) if history.new < fewest else scores

    return rule


def ban_below_length(tokens: Bool[Tensor, " vocab"], shortest: int) -> Rule:
    """Ban tokens until the text, prompt included, has this many."""

    def rule(scores: Tensor, history: History) -> Tensor:
        if history.new >= shortest:
            return scores
        return scores.masked_fill(tokens & (history.lengths < shortest)[:, None], -torch.inf)

    return rule


def ban_at_start(tokens: Bool[Tensor, " vocab"], *, after_first: bool) -> Rule:
    """Ban tokens as the first new one, or as the second after a start of one token if the first is forced."""

    def rule(scores: Tensor, history: History) -> Tensor:
        if history.new > 1 or (history.new == 1 and not after_first):
            return scores
        begins = (history.lengths - history.new > 1) | (not after_first)
        here = begins if history.new == 0 else ~begins
        return scores.masked_fill(tokens & here[:, None], -torch.inf)

    return rule


def force_first(tokens: Sequence[int]) -> Rule:
    """Allow nothing else after a start of one token."""

    def rule(scores: Tensor, history: History) -> Tensor:
        if history.new > 0:
            return scores
        return torch.where((history.lengths == 1)[:, None], _only(tokens, scores), scores)

    return rule


def force_last(tokens: Sequence[int], max_new_tokens: int) -> Rule:
    """Allow nothing else as the last token of all."""

    def rule(scores: Tensor, history: History) -> Tensor:
        return _only(tokens, scores) if history.new == max_new_tokens - 1 else scores

    return rule


def _positive(name: str, value: Any) -> float:
    if not float(value) > 0:
        raise UserError(f"generation_config.json: {name} is a positive number, not {value}.")
    return float(value)


def _only(tokens: Sequence[int], scores: Tensor) -> Tensor:
    allowed = torch.full_like(scores, -torch.inf)
    allowed[:, list(tokens)] = 0.0
    return allowed


def _penalized(scores: Tensor, penalty: float) -> Tensor:
    return torch.where(scores < 0, scores * penalty, scores / penalty)


def _occurring(ids: Tensor, real: Tensor | None, scores: Tensor) -> Bool[Tensor, "batch vocab"]:
    """Which tokens each text has."""
    return _marked(ids, torch.ones_like(ids, dtype=torch.bool) if real is None else real, scores)


def _ban_completions(scores: Tensor, history: History, size: int, ids: Tensor, real: Tensor) -> Tensor:
    """Ban what followed, anywhere in `ids`, on the last size - 1 tokens of each text."""
    length = history.ids.shape[1]
    if ids.shape[1] < size or length < size - 1:
        return scores
    runs = ids.unfold(1, size, 1)
    begun = (runs[..., :-1] == history.ids[:, None, length + 1 - size :]).all(dim=-1)
    counts = real.unfold(1, size, 1).all(dim=-1) & (history.lengths >= size - 1)[:, None]
    return scores.masked_fill(_marked(runs[..., -1], begun & counts, scores), -torch.inf)


def _marked(ids: Tensor, where: Tensor, scores: Tensor) -> Bool[Tensor, "batch vocab"]:
    """True at each id for which `where` holds; ids without a score (of the source's own vocabulary) go
    nowhere."""
    batch, vocab = scores.shape
    spare = ids.masked_fill(~where, vocab).clamp(max=vocab)
    return torch.zeros((batch, vocab + 1), dtype=torch.bool, device=scores.device).scatter_(1, spare, True)[:, :-1]
