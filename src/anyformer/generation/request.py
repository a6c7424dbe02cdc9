"""A text of a running batch: how its tokens are chosen, and what they become."""

import queue
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anyformer.blocks.kv_cache import KeyValueCache
from anyformer.generation.config import GenerationConfig
from anyformer.generation.inference import DamagedError, argmax
from anyformer.generation.logits_processors import History, LogitsProcessor, process
from anyformer.generation.prompt import Prompt
from anyformer.generation.sampling import Sampler, make_sampler
from anyformer.generation.speculative_decoding import Draft, Speculator
from anyformer.generation.stop_strings import Detokenizer
from anyformer.model import Transformer

Finish = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True)
class TokenLogprob:
    """Log-probability of a token, before penalties and temperature."""

    token: int
    logprob: float
    """In nats."""
    top: dict[int, float]
    """The likeliest tokens in its place, the likeliest first."""


def token_logprobs(
    logits: Float[Tensor, "tokens vocab"], tokens: Int[Tensor, " tokens"], top: int
) -> list[TokenLogprob]:
    """The log-probability of each token by the logits in its place, with so many of the likeliest tokens there."""
    log_p = logits.log_softmax(dim=-1)
    best = log_p.topk(min(top, log_p.shape[-1]), dim=-1)
    likeliest = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    tops = (dict(zip(*pair, strict=True)) for pair in likeliest)
    return [*map(TokenLogprob, tokens.tolist(), log_p.gather(1, tokens[:, None])[:, 0].tolist(), tops)]


@runtime_checkable
class Constraint(Protocol):
    """A processor that decides token by token what one text may be, after all others."""

    def __call__(self, logits: Tensor, history: History) -> Tensor:
        """The logits, with -inf for each token that may not come next. Raises UserError where none may."""
        ...

    def push(self, token: int) -> bool:
        """Note the token that was chosen; returns whether the text is complete with it."""
        ...


@dataclass(eq=False, kw_only=True)
class Request:
    """A text of a `BatchingEngine`.

    Iterating waits for its pieces, while another thread steps. Each piece is handed out once.
    """

    prompt: Prompt
    tokens: list[int] = field(default_factory=list[int])
    """The new ones so far, with the one that ended the text."""
    text: str = ""
    """Their text as far as it is certain; "" without a tokenizer."""
    finish_reason: Finish | None = None
    """None: not yet. stop: an end-of-text token or a stop string; length: max_new_tokens; error: a step raised."""
    error: BaseException | None = None
    """The reason of an end with "error"."""
    logprobs: list[TokenLogprob] = field(default_factory=list[TokenLogprob])
    """One for each token, if asked for."""
    cache: KeyValueCache | None = None
    """Keys and values of the prompt while it is prefilled."""
    adapter: str | None = None
    """The adapter that it is generated with."""
    cached_tokens: int = 0
    """Tokens of the prompt whose keys and values an earlier text had left."""
    guessed: int = 0
    """Tokens that a draft has guessed."""
    accepted: int = 0
    """Guessed tokens that the model chose."""
    latest_accepted: int = 0
    """Guessed tokens that the model chose in the latest step."""
    _speculator: Speculator | None = None
    _eos: frozenset[int]
    _processors: Sequence[LogitsProcessor]
    _sampler: Sampler
    _detokenizer: Detokenizer | None
    _top: int | None
    _constraint: Constraint | None = None
    _pieces: queue.SimpleQueue[str | None] = field(default_factory=queue.SimpleQueue[str | None])

    @property
    def finished(self) -> bool:
        """Whether no more will come."""
        return self.finish_reason is not None

    @property
    def ends_with_eos(self) -> bool:
        """Whether its last token ended the text, and is no part of it."""
        return bool(self.tokens) and self.tokens[-1] in self._eos

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended it."""
        return None if self._detokenizer is None else self._detokenizer.matched

    def __iter__(self) -> Iterator[str]:
        while (piece := self._pieces.get()) is not None:
            yield piece
        self._pieces.put(None)  # whoever iterates again, or beside, ends as well

    def append(self, logits: Tensor, largest: int) -> None:
        """Choose the next token by its logits, [1, vocab], of which that token has the largest."""
        token, scores = largest, logits
        if self._processors:
            new = torch.tensor([self.tokens], dtype=torch.long, device=logits.device)
            ids = torch.cat((self.prompt.ids, new), dim=1)
            scores = process(scores, self._processors, History(ids, new.new_zeros(1), len(self.tokens)))
            token = int(argmax(scores)) if self._sampler.greedy else token
        if not self._sampler.greedy:
            token = int(self._sampler(scores))
        if self._top is not None:
            self.logprobs += token_logprobs(logits, torch.tensor([token], device=logits.device), self._top)
        self.tokens.append(token)
        stopped = token in self._eos
        if not stopped and self._detokenizer is not None:
            self._append_text(self._detokenizer.push_token(token))
            stopped = self._detokenizer.stopped
        if not stopped and self._constraint is not None:
            stopped = self._constraint.push(token)
        if stopped:
            self.finish("stop")
        elif len(self.tokens) == self.prompt.max_new_tokens:
            self.finish("length")

    def guess(self, model: Transformer, draft: Draft, room: int) -> list[int]:
        """At most `room` tokens that may come next."""
        if self._speculator is None:  # likeliest guesses: a token that is drawn equals them as often as any
            self._speculator = Speculator(model, draft, self.prompt, make_sampler(GenerationConfig(), model.device))
        text: list[int] = [*self.prompt.ids[0].tolist(), *self.tokens]
        room = min(room, self.prompt.max_new_tokens - len(self.tokens) - 1)
        tokens = self._speculator.propose(text, self.latest_accepted, room).tokens
        self.guessed += len(tokens)
        return tokens

    def finish(self, reason: Finish) -> None:
        """Hand out what was held back, and say why it is over."""
        try:
            if self._detokenizer is not None:
                self._append_text(self._detokenizer.flush())
        finally:
            self.finish_reason = reason
            self._pieces.put(None)

    def _append_text(self, piece: str) -> None:
        if piece:
            self.text += piece
            self._pieces.put(piece)


def append_tokens(
    request: Request, logits: Tensor, tokens: Sequence[int], guesses: Sequence[int] = ()
) -> Exception | None:
    """Choose the next token of a text, and one more behind each guess that was right.

    `logits` are those behind the latest token and behind each guess, [1 + guesses or more, vocab], `tokens` the
    likeliest by them.

    A text ends if that fails; returns the reason.
    """
    before = len(request.tokens)
    try:
        for number, (best, guess) in enumerate(zip(tokens, (*guesses, None), strict=False)):
            if best < 0:
                raise DamagedError
            request.append(logits[number : number + 1], best)
            if request.finished or request.tokens[-1] != guess:
                break
        request.latest_accepted = len(request.tokens) - before - 1
        request.accepted += request.latest_accepted
    except Exception as error:
        request.error = error
        request.finish("error")
        return error
    return None
