"""Log-likelihoods of given tokens, of any language model. What several texts have in common is read once.

::

    decoder            the cat sat  ->  cat sat on      each token given those before it
    encoder            the [M] sat  ->      cat         the tokens behind masks
    encoder-decoder    <s> die      ->  die Katze       each token given those before it and the source

The pseudo-log-likelihood of a masked model hides the later pieces of a token's word with it::

    ids      the  cat  sou  ##ven  ##ir          words    0  1  2  2  2
    given    the  cat [M]  [M]  [M]  ->  sou
             the  cat  sou [M]  [M]  ->  ##ven
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from anyformer.blocks.head import LanguageModelHead
from anyformer.errors import UserError
from anyformer.evaluation.logits import Progress
from anyformer.generation.cached_decoder import DecoderStep
from anyformer.generation.inference import (
    DamagedError,
    cache_is_stale,
    check_ids,
    check_length,
    evaluating,
    head_logits,
    require_generative,
)
from anyformer.generation.prompt import batches_by_length, decoder_start_id, pad
from anyformer.kernels.threads import adaptive_threads
from anyformer.model import Transformer
from anyformer.tokenizer.prompt import common_prefix
from anyformer.training.memory import keep_freed_memory

Ids = tuple[int, ...]

_SCORED_TOKENS, _READ_TOKENS = 512, 4096
"""Tokens of a batch: those whose logits are held, by a processor, and, with padding, those that are read."""
_REDUCED_LOGITS, _HELD_LOGITS = 1 << 19, 1 << 27
"""Logits that are reduced at a time, so that they stay in the cache of a core; and those of one text that are held."""
_WORTH_SHARING = 32
"""Tokens that all texts of a batch must begin with to be read before the others."""


class Query(NamedTuple):
    """Tokens to be scored.

    Attributes:
        tokens: Tokens that the decoder reads, or the encoder of a model without a decoder.
        first: Index of the token whose output predicts the first target.
        targets: The tokens to be scored, at least one; the output at ``first + i`` predicts ``targets[i]``.
        source: Tokens that the encoder of an encoder-decoder reads.
    """

    tokens: Sequence[int]
    first: int
    targets: Sequence[int]
    source: Sequence[int] = ()


class LogLikelihood(NamedTuple):
    """Log-likelihood of tokens.

    Attributes:
        logprobs: Log-probability of each token, in nats.
        is_greedy: Whether each token is the likeliest one at its place.
    """

    logprobs: Sequence[float]
    is_greedy: bool

    @property
    def logprob(self) -> float:
        """The sum over all tokens, in nats."""
        return math.fsum(self.logprobs)


class _Row(NamedTuple):
    ids: Ids
    """Tokens that are read behind the context."""
    first: int
    outputs: int
    """Number of outputs that are needed, from the first on."""


_Targets = list[tuple[int, Ids]]
"""Scored targets of a row, each with the index of its query."""
_Item = tuple[int, _Row, _Targets]
"""The number of a context in its group, a row behind it, and what is scored of that."""


class Scorer:
    """Scores tokens in batches of texts of about the same length; no other logits are computed than those needed.

    Args:
        model: A language model of any family. Its weights must not change between two calls.
        batch_size: Texts of a batch at most; None: as many as its tokens allow.
    """

    def __init__(self, model: Transformer, batch_size: int | None = None) -> None:
        if not isinstance(model.head, LanguageModelHead):
            raise ValueError("a model without a language-model head has no logits")
        self.model, self.batch_size = model, batch_size
        self.scored_tokens = _SCORED_TOKENS
        if model.device.type == "cpu":
            keep_freed_memory()
        else:
            self.scored_tokens = max(_SCORED_TOKENS, _HELD_LOGITS // model.config.vocab_size)
        self._read = _CachedReader(model) if model.config.is_decoder_only else _Reader(model)

    def __call__(self, queries: Sequence[Query], progress: Progress = lambda count: None) -> list[LogLikelihood]:
        """Score tokens, in the order of the queries. Raises UserError for an id outside of the vocabulary, or NaN."""
        rows_of, results = self._contexts(queries), [LogLikelihood((), True)] * len(queries)
        contexts = [*rows_of]
        lengths = [len(context) + max(len(row.ids) for row in rows) for context, rows in rows_of.items()]
        most = torch.get_num_threads() if self.model.device.type == "cpu" else 1
        with evaluating(self.model), torch.inference_mode(), adaptive_threads(most, torch.set_num_threads) as threads:
            for group in batches_by_length(lengths, _READ_TOKENS, self.batch_size):
                read = [contexts[index] for index in group]
                items = [(owner, *item) for owner, context in enumerate(read) for item in rows_of[context].items()]
                self._read.contexts(read, max(len(row.ids) for _, row, _ in items))
                for batch in self._batches(items):
                    threads.begin()
                    for start, logits in self._read.logits(batch):
                        for index, part in _pick(logits, batch, start):
                            logprobs, is_greedy = results[index]
                            results[index] = LogLikelihood((*logprobs, *part.logprobs), is_greedy and part.is_greedy)
                    threads.end(sum(row.outputs for _, row, _ in batch))
                    progress(sum(len(targets) for _, _, targets in batch))
        return results

    def _contexts(self, queries: Sequence[Query]) -> dict[Ids, dict[_Row, _Targets]]:
        """The distinct rows behind each distinct context: the beginning of a decoder's texts, or a source."""
        contexts: dict[Ids, dict[_Row, _Targets]] = {}
        for index, (tokens, first, targets, source) in enumerate(queries):
            # Keys and values of a context are kept, unless longer texts change what they are.
            cut = first if self.model.config.is_decoder_only and not cache_is_stale(self.model, len(tokens)) else 0
            row = _Row(tuple(tokens[cut:]), first - cut, len(targets))
            context = contexts.setdefault(tuple(source) or tuple(tokens[:cut]), {})
            context.setdefault(row, []).append((index, tuple(targets)))
        return contexts

    def _batches(self, items: Sequence[_Item]) -> Iterator[list[_Item]]:
        """Rows that share a batch, the longest first."""
        for group in batches_by_length([len(row.ids) for _, row, _ in items], _READ_TOKENS, self.batch_size):
            batch, count = list[_Item](), 0
            for item in map(items.__getitem__, group):
                if batch and count + item[1].outputs > self.scored_tokens:
                    yield batch
                    batch, count = [], 0
                batch.append(item)
                count += item[1].outputs
            yield batch


class _CachedReader:
    """A decoder-only model. It reads contexts once, and each row goes on from a copy of their keys and values."""

    def __init__(self, model: Transformer) -> None:
        self.model, self.step = model, DecoderStep(model)

    def contexts(self, contexts: Sequence[Ids], room: int) -> None:
        """Read contexts, with room for so many tokens behind each."""
        # All begin with what the first and the last in the order of their tokens begin with.
        shared, longest = common_prefix(min(contexts), max(contexts)), max(map(len, contexts))
        if shared >= _WORTH_SHARING and len(contexts) > 1:
            self.cache = self.model.make_cache(1, longest + room)
            self._prefill([contexts[0][:shared]])
            self.cache.select(torch.zeros(len(contexts), dtype=torch.long, device=self.model.device))
        else:
            self.cache, shared = self.model.make_cache(len(contexts), longest + room), 0
        if longest > shared:
            self._prefill([ids[shared:] for ids in contexts])

    def logits(self, batch: Sequence[_Item]) -> Iterator[tuple[int, Float[Tensor, "scored vocab"]]]:
        """The logits that rows need, in order: parts, and the number of the first of each."""
        owners, ids, mask, scored = _rows(batch, self.model)
        cache = self.cache.copy(owners)
        start, size = 0, ids.shape[1]
        if len(ids) == 1 and not cache_is_stale(self.model, size):  # a long text alone is read in parts
            size = max(_SCORED_TOKENS, _HELD_LOGITS // self.model.config.vocab_size)
        for part, needed in zip(ids.split(size, dim=1), scored.split(size, dim=1), strict=True):
            logits = self.step(part, cache, mask=mask, packed=True).flatten(0, 1)
            needed = needed.flatten() if mask is None else needed[mask]
            yield start, logits if bool(needed.all()) else logits[needed]
            start += int(needed.sum())

    def _prefill(self, rows: Sequence[Ids]) -> None:
        ids, mask = _pad(rows, self.model)
        self.step(ids, self.cache, mask=mask, last_only=True)


class _Reader:
    """A model with an encoder. It reads sources once."""

    def __init__(self, model: Transformer) -> None:
        self.model = model

    def contexts(self, contexts: Sequence[Ids], room: int) -> None:
        """Read sources, where there are any."""
        self.states: Tensor | None = None
        self.source_mask: Tensor | None = None
        if self.model.config.is_encoder_decoder:
            source, self.source_mask = _pad(contexts, self.model, self.model.config.source_vocab_size)
            self.states = self.model.encode(source, self.source_mask)

    def logits(self, batch: Sequence[_Item]) -> Iterator[tuple[int, Float[Tensor, "scored vocab"]]]:
        """The logits that rows need, as of `_CachedReader`."""
        model = self.model
        owners, ids, mask, scored = _rows(batch, model)
        stack = model.decoder or model.encoder
        assert stack is not None
        hidden = stack(
            model.token_embedding(ids),
            ids,
            mask=mask,
            encoder_states=None if self.states is None else self.states[owners],
            source_mask=None if self.source_mask is None else self.source_mask[owners],
            needed=scored,
        )
        for part, states in enumerate(hidden[scored].split(_SCORED_TOKENS)):
            yield part * _SCORED_TOKENS, head_logits(model, states)


def _pad(rows: Sequence[Ids], model: Transformer, vocab_size: int | None = None) -> tuple[Tensor, Tensor | None]:
    """Rows as one tensor, padded on the right, and its mask, None without padding. Raises UserError for wrong ids."""
    padding = model.config.embedding.padding or 0
    ids, mask = pad(rows, padding, model.device)
    check_ids(ids, vocab_size or model.config.vocab_size)
    return ids, None if bool(mask.all()) else mask


def _rows(batch: Sequence[_Item], model: Transformer) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Index of each row's context, ids and mask, see `_pad`, and which logits are needed, [batch, time]."""
    ids, mask = _pad([row.ids for _, row, _ in batch], model)
    rows = torch.tensor([(owner, row.first, row.first + row.outputs) for owner, row, _ in batch], device=ids.device)
    owners, first, end = rows.unbind(1)
    indices = torch.arange(ids.shape[1], device=ids.device)
    return owners, ids, mask, (first[:, None] <= indices) & (indices < end[:, None])


def _pick(
    logits: Float[Tensor, "scored vocab"], batch: Sequence[_Item], start: int
) -> Iterator[tuple[int, LogLikelihood]]:
    """The log-likelihoods of targets that these logits predict, from `start` on, by the index of their query."""
    parts = logits.split(-(-_REDUCED_LOGITS // logits.shape[1]))
    reduced = [(part.amax(dim=1), part.logsumexp(dim=1)) for part in parts]
    highest, logsumexp = (torch.cat(each) for each in zip(*reduced, strict=True))
    if bool(logsumexp.isnan().any()):
        raise DamagedError
    row_start = -start
    for _, row, queries in batch:
        begin, end = max(0, row_start), max(0, min(row_start + row.outputs, len(logits)))
        for index, ids in queries if begin < end else ():
            target = torch.tensor(ids[begin - row_start : end - row_start], device=logits.device)
            check_ids(target, logits.shape[1])
            chosen = logits[begin:end].gather(1, target[:, None]).squeeze(1)
            # Where a maximum is takes several times as long to find, and few texts have nothing but maxima.
            is_greedy = bool((chosen == highest[begin:end]).all())
            is_greedy = is_greedy and bool((logits[begin:end].argmax(dim=1) == target).all())
            yield index, LogLikelihood((chosen - logsumexp[begin:end]).tolist(), is_greedy)
        row_start += row.outputs


class Continuation(NamedTuple):
    """A continuation that is scored, and the context that it follows or the source; at least one token each."""

    context: Sequence[int]
    ids: Sequence[int]


def log_likelihoods(
    model: Transformer,
    continuations: Sequence[Continuation],
    *,
    max_length: int | None = None,
    progress: Progress = lambda count: None,
) -> list[LogLikelihood]:
    """Score continuations by a decoder-only model or an encoder-decoder.

    Args:
        continuations: Of any lengths. One that is too long with its context loses the beginning of the context.
        max_length: Tokens that the model is to see at most; None: as many as it was trained on.

    Raises:
        UserError: a model that doesn't generate text, an id outside of its vocabulary, an output that is NaN.
        ValueError: a continuation that is empty, has no context, or is longer than `max_length`.
    """
    require_generative(model)
    longest = max_length or model.config.max_length
    start = (decoder_start_id(model),) if model.config.is_encoder_decoder else ()
    queries = list[Query]()
    for context, ids in continuations:
        if not context or not 1 <= len(ids) <= longest:
            raise ValueError(f"a continuation has a context and from 1 to {longest} tokens")
        if start:
            queries.append(Query((*start, *ids[:-1]), 0, ids, context[-longest:]))
        else:
            seen = (*context, *ids)[-longest - 1 : -1]
            queries.append(Query(seen, len(seen) - len(ids), ids))
    return Scorer(model)(queries, progress)


class MaskedText(NamedTuple):
    """A text whose tokens are to be predicted.

    Attributes:
        ids: Its tokens, those that the tokenizer puts around it included.
        words: For each of them the number of its word.
        scored: Indices of those that are predicted, at least one.
    """

    ids: Sequence[int]
    words: Sequence[int]
    scored: Sequence[int]


def pseudo_log_likelihoods(model: Transformer, texts: Sequence[MaskedText], mask_id: int) -> list[list[float]]:
    """Score tokens of texts by a masked language model.

    A token is predicted with itself and the later tokens of its word hidden. Were they to be seen, the pieces of a long
    word would give each other away (Kauf & Ivanova 2023, section 3: PLL-word-l2r). Where each token is a word of its
    own this is the pseudo-log-likelihood of Salazar et al. (2020, section 2).

    The sum over a text ranks texts. It is not the logarithm of a probability.

    Returns:
        For each text the log-probabilities of its `scored` tokens, in nats.

    Raises:
        UserError: a model that doesn't fill masks, a text beyond its context, an id outside of its vocabulary, an
            output that is NaN.
    """
    if not model.config.is_encoder_only or not isinstance(model.head, LanguageModelHead):
        raise UserError("Pseudo-log-likelihoods are those of an encoder with a masked-language-model head.")
    queries = list[Query]()
    for number, (ids, words, scored) in enumerate(texts, start=1):
        check_length(f"Text {number}", len(ids), model)
        for index in scored:
            hidden = [word == words[index] and place >= index for place, word in enumerate(words)]
            masked = [mask_id if hide else id_ for hide, id_ in zip(hidden, ids, strict=True)]
            queries.append(Query(masked, index, (ids[index],)))
    results = iter(Scorer(model)(queries))
    return [[next(results).logprob for _ in text.scored] for text in texts]
