"""Log-likelihoods of continuations. A context that several of them have in common is read once."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from anyformer.generation.cached_decoder import DecoderStep, common_prefix
from anyformer.generation.inference import check_ids, check_nan, evaluating, head_logits, require_generative
from anyformer.generation.prompt import decoder_start_id, pad
from anyformer.model import Transformer
from anyformer.training.memory import keep_freed_memory

Ids = tuple[int, ...]

_SCORED_TOKENS, _READ_TOKENS = 512, 4096
"""Tokens of a batch: those whose logits are held, and, with padding, those whose keys and values are."""
_REDUCED_LOGITS = 1 << 19
"""Logits that are reduced at a time: they stay in the cache of a core."""
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
    if model.device.type == "cpu":
        keep_freed_memory()
    found: dict[int, LogLikelihood] = {}
    with evaluating(model), torch.inference_mode():
        read = _EncoderDecoder(model) if model.config.is_encoder_decoder else _Decoder(model)
        for contexts in _groups(_contexts(model, continuations, max_length or model.config.max_length)):
            read.contexts(
                [context.ids for context in contexts], max(len(ids) for each in contexts for ids in each.rows)
            )
            for batch in _batches(contexts):
                logits = read.rows([row.owner for row in batch], [row.ids for row in batch])
                picked = _pick(logits, batch)
                found |= picked
                progress(len(picked))
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
    """Contexts that are read together, the longest first."""
    group = list[_Context]()
    for context in sorted(contexts, key=lambda context: len(context.ids), reverse=True):
        if group and (len(group) + 1) * len(group[0].ids) > _READ_TOKENS:
            yield group
            group = []
        group.append(context)
    if group:
        yield group


def _batches(contexts: list[_Context]) -> Iterator[list[_Row]]:
    """The rows of contexts, the longest first."""
    rows = [_Row(owner, ids, found) for owner, each in enumerate(contexts) for ids, found in each.rows.items()]
    batch, tokens = list[_Row](), 0
    for row in sorted(rows, key=lambda row: len(row.ids), reverse=True):
        if batch and tokens + len(row.ids) > _SCORED_TOKENS:
            yield batch
            batch, tokens = [], 0
        batch.append(row)
        tokens += len(row.ids)
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

    def rows(self, owners: Sequence[int], rows: Sequence[Ids]) -> Float[Tensor, "tokens vocab"]:
        """The logits after each token of rows, each behind the context of this number."""
        ids, mask = _pad(rows, self.model)
        cache = self.cache.copy(torch.tensor(owners, device=self.model.device))
        return self.step(ids, cache, mask=mask, packed=True).flatten(0, 1)

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

    def rows(self, owners: Sequence[int], rows: Sequence[Ids]) -> Float[Tensor, "tokens vocab"]:
        """The logits after each token of rows, each for the source of this number."""
        model = self.model
        assert model.decoder is not None
        index = torch.tensor(owners, device=model.device)
        ids, mask = _pad(rows, model)
        hidden = model.decoder(
            model.token_embedding(ids),
            ids,
            mask=mask,
            encoder_states=self.states[index],
            source_mask=None if self.source_mask is None else self.source_mask[index],
        )
        return head_logits(model, hidden.flatten(0, 1) if mask is None else hidden[mask])


def _pad(rows: Sequence[Ids], model: Transformer, vocab_size: int | None = None) -> tuple[Tensor, Tensor | None]:
    """Rows as one tensor, padded on the right, and its mask, None without padding. Raises UserError for wrong ids."""
    padding = model.config.embedding.padding or 0
    ids, mask = pad(rows, padding, model.device)
    check_ids(ids, vocab_size or model.config.vocab_size)
    return ids, None if bool(mask.all()) else mask


def _common_length(rows: Sequence[Ids]) -> int:
    """How many tokens all rows begin with: as many as the first and the last in the order of their tokens."""
    return common_prefix(min(rows), max(rows))


def _pick(logits: Float[Tensor, "tokens vocab"], batch: Sequence[_Row]) -> dict[int, LogLikelihood]:
    """The log-likelihoods of the continuations by their index, from the logits after each token of the rows."""
    parts = logits.split(-(-_REDUCED_LOGITS // logits.shape[1]))
    reduced = [(part.amax(dim=1), part.logsumexp(dim=1)) for part in parts]
    highest, logsumexp = (torch.cat(each) for each in zip(*reduced, strict=True))
    check_nan(highest[:, None])
    found: dict[int, LogLikelihood] = {}
    end = 0
    for row in batch:
        begin, end = end, end + len(row.ids)
        for index, ids in row.targets:
            target = torch.tensor(ids, device=logits.device)
            check_ids(target, logits.shape[1])
            chosen = logits[begin:end].gather(1, target[:, None]).squeeze(1)
            # Where a maximum is takes several times as long to find, and few continuations have nothing but maxima.
            is_greedy = bool((chosen == highest[begin:end]).all())
            is_greedy = is_greedy and bool((logits[begin:end].argmax(dim=1) == target).all())
            found[index] = LogLikelihood((chosen - logsumexp[begin:end]).tolist(), is_greedy)
    return found
