"""Log-likelihoods of continuations. A context that several of them have in common is read once."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from anyformer.blocks.head import LanguageModelHead
from anyformer.generation.cached_decoder import DecoderStep, common_prefix
from anyformer.generation.inference import check_ids, check_nan, evaluating, require_generative
from anyformer.generation.prompt import decoder_start_id, pad
from anyformer.model import Transformer

Ids = tuple[int, ...]

_SCORED_TOKENS, _READ_TOKENS = 512, 4096
"""Tokens of a batch, padding included: those whose logits are held, and those that are only read."""
_LEAST_TOKENS = 128
"""Tokens of a batch that make fast matrix products already: what would fill more with padding waits for the next."""
_CONTEXT_FILLED, _ROW_FILLED = 0.7, 0.8
"""Contexts, and rows behind them, that are shorter than so much of the longest one are not read with it."""
_WORTH_SHARING = 32
"""Tokens that all texts of a batch must begin with to be read before the others."""


class Continuation(NamedTuple):
    """What is scored.

    Attributes:
        context: Tokens that it follows, at least one; of an encoder-decoder the source.
        ids: Its tokens, at least one.
    """

    context: Sequence[int]
    ids: Sequence[int]


class LogLikelihood(NamedTuple):
    """How likely a continuation is.

    Attributes:
        logprobs: Of each token, in nats.
        is_greedy: Whether each of its tokens is the likeliest one after those before it.
    """

    logprobs: Sequence[float]
    is_greedy: bool

    @property
    def logprob(self) -> float:
        """That of the whole continuation, in nats."""
        return math.fsum(self.logprobs)


def log_likelihoods(
    model: Transformer,
    continuations: Sequence[Continuation],
    *,
    max_length: int | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> list[LogLikelihood]:
    """Score continuations.

    Args:
        model: A decoder-only model or an encoder-decoder.
        continuations: Of any lengths. What is too long with its context loses the beginning of the context.
        max_length: Tokens that the model is to see at most; None: as many as it was trained on.
        progress: Called after each batch with the number of its continuations.

    Raises:
        UserError: a model that doesn't generate text, an id outside of its vocabulary, an output that is NaN.
        ValueError: a continuation that is empty, has no context, or is longer than `max_length`.
    """
    require_generative(model)
    found: dict[int, LogLikelihood] = {}
    with evaluating(model), torch.inference_mode():
        read = _EncoderDecoder(model) if model.config.is_encoder_decoder else _Decoder(model)
        for contexts in _groups(_contexts(model, continuations, max_length or model.config.max_length)):
            read.contexts(
                [context.ids for context in contexts], max(len(ids) for each in contexts for ids in each.rows)
            )
            for batch in _batches(contexts):
                logits = read.rows([row.owner for row in batch], [row.ids for row in batch])
                check_nan(logits.flatten(0, 1))
                targets = [(row, *target) for row, each in enumerate(batch) for target in each.targets]
                found |= _pick(logits, targets)
                progress(len(targets))
    return [found[index] for index in range(len(continuations))]


@dataclass(frozen=True)
class _Context:
    """What is read before (of an encoder-decoder the source), and the tokens after which logits are needed.

    Attributes:
        rows: For these tokens the continuations, which differ at most in their last token, and their indices.
    """

    ids: Ids
    rows: dict[Ids, list[tuple[int, Ids]]] = field(default_factory=dict[Ids, list[tuple[int, Ids]]])


class _Row(NamedTuple):
    owner: int
    """The number of its context in the group."""
    ids: Ids
    targets: list[tuple[int, Ids]]


def _contexts(model: Transformer, continuations: Sequence[Continuation], longest: int) -> list[_Context]:
    """The distinct contexts, with the distinct tokens behind each."""
    contexts: dict[Ids, _Context] = {}
    start = (decoder_start_id(model),) if model.config.is_encoder_decoder else ()
    for index, (context, ids) in enumerate(continuations):
        if not context or not 1 <= len(ids) <= longest:
            raise ValueError(f"a continuation has a context and from 1 to {longest} tokens")
        if start:
            before, read = tuple(context[-longest:]), (*start, *ids[:-1])
        else:
            seen = (*context, *ids)[-longest - 1 : -1]
            before, read = seen[: len(seen) - len(ids)], seen[len(seen) - len(ids) :]
        contexts.setdefault(before, _Context(before)).rows.setdefault(read, []).append((index, tuple(ids)))
    return [*contexts.values()]


def _groups(contexts: list[_Context]) -> Iterator[list[_Context]]:
    """Contexts of about the same length that are read together, the longest first."""
    group = list[_Context]()
    for context in sorted(contexts, key=lambda context: len(context.ids), reverse=True):
        longest = len(group[0].ids) if group else 0
        if group and ((len(group) + 1) * longest > _READ_TOKENS or len(context.ids) < _CONTEXT_FILLED * longest):
            yield group
            group = []
        group.append(context)
    if group:
        yield group


def _batches(contexts: list[_Context]) -> Iterator[list[_Row]]:
    """The rows of contexts, those of about the same length together, the longest first."""
    rows = [_Row(owner, ids, found) for owner, each in enumerate(contexts) for ids, found in each.rows.items()]
    batch = list[_Row]()
    for row in sorted(rows, key=lambda row: len(row.ids), reverse=True):
        longest = len(batch[0].ids) if batch else 0
        shorter = len(row.ids) < _ROW_FILLED * longest and len(batch) * longest >= _LEAST_TOKENS
        if batch and (shorter or (len(batch) + 1) * longest > _SCORED_TOKENS):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


class _Decoder:
    """A decoder-only model. It reads contexts once, and each row goes on from a copy of their keys and values."""

    def __init__(self, model: Transformer) -> None:
        self.model, self.step = model, DecoderStep(model)

    def contexts(self, contexts: Sequence[Ids], room: int) -> None:
        """Read contexts, with room for so many tokens behind each."""
        shared, longest = _common_length(contexts), max(map(len, contexts))
        if shared >= _WORTH_SHARING and len(contexts) > 1:
            self.cache = self.model.make_cache(1, longest + room)
            self._read([contexts[0][:shared]])
            self.cache.select(torch.zeros(len(contexts), dtype=torch.long, device=self.model.device))
        else:
            self.cache, shared = self.model.make_cache(len(contexts), longest + room), 0
        if longest > shared:
            self._read([ids[shared:] for ids in contexts])

    def rows(self, owners: Sequence[int], rows: Sequence[Ids]) -> Float[Tensor, "rows time vocab"]:
        """The logits of rows, each behind the context of this number."""
        ids, mask = _pad(rows, self.model)
        return self.step(ids, self.cache.copy(torch.tensor(owners, device=self.model.device)), mask=mask)

    def _read(self, rows: Sequence[Ids]) -> None:
        ids, mask = _pad(rows, self.model)
        self.step(ids, self.cache, mask=mask, last_only=True)


class _EncoderDecoder:
    """An encoder-decoder. It reads sources once."""

    def __init__(self, model: Transformer) -> None:
        self.model = model

    def contexts(self, contexts: Sequence[Ids], room: int) -> None:
        """Read sources."""
        source, self.source_mask = _pad(contexts, self.model, self.model.config.source_vocab_size)
        self.states = self.model.encode(source, self.source_mask)

    def rows(self, owners: Sequence[int], rows: Sequence[Ids]) -> Float[Tensor, "rows time vocab"]:
        """The logits of rows, each for the source of this number."""
        model = self.model
        assert model.decoder is not None
        assert isinstance(model.head, LanguageModelHead)
        index = torch.tensor(owners, device=model.device)
        ids, mask = _pad(rows, model)
        hidden = model.decoder(
            model.token_embedding(ids),
            ids,
            mask=mask,
            encoder_states=self.states[index],
            source_mask=None if self.source_mask is None else self.source_mask[index],
        )
        return model.head(hidden, model.token_embedding.weight).float()


def _pad(rows: Sequence[Ids], model: Transformer, vocab_size: int | None = None) -> tuple[Tensor, Tensor | None]:
    """Rows as one tensor, padded on the right, and its mask, None without padding. Raises UserError for wrong ids."""
    padding = model.config.embedding.padding or 0
    ids, mask = pad(rows, padding, model.device)
    check_ids(ids, vocab_size or model.config.vocab_size)
    return ids, None if bool(mask.all()) else mask


def _common_length(rows: Sequence[Ids]) -> int:
    """How many tokens all rows begin with: as many as the first and the last in the order of their tokens."""
    return common_prefix(min(rows), max(rows))


def _pick(
    logits: Float[Tensor, "rows time vocab"], targets: Sequence[tuple[int, int, Ids]]
) -> dict[int, LogLikelihood]:
    """The log-likelihoods by index, from the row of the logits, the index and the ids of each; the logits are spent."""
    rows = torch.tensor([row for row, _, _ in targets], device=logits.device)
    ids, mask = pad([ids for _, _, ids in targets], 0, logits.device)
    time = torch.arange(ids.shape[1], device=logits.device)
    check_ids(ids, logits.shape[-1])
    chosen = logits[rows[:, None], time, ids]
    highest, best = logits.max(dim=-1, keepdim=True)
    logsumexp = (highest + logits.sub_(highest).exp_().sum(dim=-1, keepdim=True).log()).squeeze(-1)
    logprobs = chosen - logsumexp[rows, : ids.shape[1]]
    greedy = ((best.squeeze(-1)[rows, : ids.shape[1]] == ids) | ~mask).all(dim=1)
    found: list[list[float]] = logprobs.tolist()
    return {
        index: LogLikelihood(each[: len(ids)], bool(is_greedy))
        for (_, index, ids), each, is_greedy in zip(targets, found, greedy, strict=True)
    }
