"""Continuous batching: texts enter a running batch, are written side by side, and leave it when they end."""

import queue
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

import torch
from torch import Tensor

from anyformer.blocks.kv_cache import KeyValueCache
from anyformer.errors import UserError
from anyformer.generation.inference import device_of, evaluating
from anyformer.generation.penalties import penalties_of
from anyformer.generation.prompt import Prompt, encode_prompt, read_prompt
from anyformer.generation.reading import DAMAGED, first_scores
from anyformer.generation.rules import History, Rule
from anyformer.generation.sampling import Sampling, seeded
from anyformer.generation.step import decoder_step
from anyformer.generation.stop import Continuation, StopStrings
from anyformer.generation.writing import all_scores, end_tokens, require_writing, rules_of
from anyformer.model import Transformer
from anyformer.tokenizer import Tokenizer

Finish = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True)
class TokenLogprob:
    """How likely the model found a token, before penalties and temperature."""

    token: int
    logprob: float
    """In nats."""
    top: dict[int, float]
    """The likeliest tokens in its place, the likeliest first."""


@dataclass(eq=False, kw_only=True)
class Request:
    """A text that is being written; see `Engine.submit`. Iterating waits for its pieces, while another thread steps."""

    prompt: Prompt
    sampling: Sampling
    max_new_tokens: int
    tokens: list[int] = field(default_factory=list[int])
    """The new ones so far, with the one that ended the text."""
    text: str = ""
    """Their text as far as it is certain; "" without a tokenizer."""
    finish_reason: Finish | None = None
    """None: not yet. stop: an end-of-text token or a stop string; length: max_new_tokens."""
    logprobs: list[TokenLogprob] = field(default_factory=list[TokenLogprob])
    """One for each token, if asked for."""
    _ends: frozenset[int] = frozenset()
    _rules: Sequence[Rule] = ()
    _generator: torch.Generator | None = None
    _words: Continuation | None = None
    _top: int | None = None
    _pieces: queue.SimpleQueue[str | None] = field(default_factory=queue.SimpleQueue[str | None])

    @property
    def finished(self) -> bool:
        """Whether no more will come."""
        return self.finish_reason is not None

    def __iter__(self) -> Iterator[str]:
        while (piece := self._pieces.get()) is not None:
            yield piece

    def take(self, scores: Tensor) -> None:
        """Choose the next token by its scores, [1, vocab]."""
        judged = scores
        if self._rules:
            said = torch.tensor([self.tokens], dtype=torch.long, device=scores.device)
            history = History(
                ids=torch.cat((self.prompt.start, said), dim=1), padding=said.new_zeros(1), new=len(self.tokens)
            )
            for rule in self._rules:
                judged = rule(judged, history)
        token = int(self.sampling.choose(judged, self._generator))
        if self._top is not None:
            log_p = scores[0].log_softmax(dim=-1)
            best = log_p.topk(min(self._top, len(log_p)))
            top: dict[int, float] = dict(zip(best.indices.tolist(), best.values.tolist(), strict=True))
            self.logprobs.append(TokenLogprob(token, float(log_p[token]), top))
        self.tokens.append(token)
        if token in self._ends:
            self.finish("stop")
            return
        if self._words is not None:
            self._say(self._words.push(token))
            if self._words.stopped:
                self.finish("stop")
                return
        if len(self.tokens) == self.max_new_tokens:
            self.finish("length")

    def finish(self, reason: Finish) -> None:
        """Hand out what was held back, and say why it is over."""
        if self._words is not None:
            self._say(self._words.flush())
        self.finish_reason = reason
        self._pieces.put(None)

    def _say(self, piece: str) -> None:
        if piece:
            self.text += piece
            self._pieces.put(piece)


@dataclass
class _Reading:
    """A prompt that is being read, a chunk a step."""

    request: Request
    cache: KeyValueCache
    done: int = 0


class Engine:
    """Writes many texts at a time, each as it would be written alone.

    One thread calls `step` (or `run`). `submit` and `cancel` may be called from any thread.

    Args:
        model: A decoder-only model or an encoder-decoder.
        tokenizer: Its tokenizer; None: prompts are ids, and there is no text.
        slots: Texts that are written at a time; the others wait.
        capacity: Longest text with its prompt, in tokens; the memory of all slots is reserved at once. None: the
            model's context, but no more than 2048.
        chunk: Tokens of a prompt that are read between two steps, so that a long one does not hold up the others.

    Raises:
        UserError: a model that doesn't write, or a size that is none.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer | None = None,
        slots: int = 16,
        capacity: int | None = None,
        chunk: int = 256,
    ) -> None:
        require_writing(model)
        config = model.config
        scaling = config.position.scaling
        # Beyond the trained length a dynamic scaling gives every token another place, and nothing could be kept.
        context = config.max_length if scaling is not None and scaling.kind == "dynamic" else config.context_length
        self.capacity = min(size for size in (context, capacity or 2048) if size is not None)
        if slots < 1 or chunk < 1 or self.capacity < 2:
            raise UserError(f"slots and chunk are at least 1, and capacity 2, not {slots}, {chunk} and {capacity}.")
        self.model, self.tokenizer, self.slots, self.chunk = model, tokenizer, slots, chunk
        self._step = decoder_step(model)
        with torch.inference_mode():
            self._cache = model.make_cache(slots, self.capacity)
            self._cache.clear()
        self._waiting = deque[Request]()
        self._reading: _Reading | None = None
        self._running: list[Request] = []
        self._lock = threading.RLock()

    @property
    def running(self) -> int:
        """Texts that are being written."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Texts that no token has been written of."""
        return len(self._waiting) + (self._reading is not None)

    def submit(
        self,
        prompt: str | Sequence[int],
        max_new_tokens: int = 20,
        sampling: Sampling | None = None,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        stop_at_end: bool = True,
        logprobs: int | None = None,
    ) -> Request:
        """Let a text be written as soon as a slot is free.

        Args:
            prompt: A text or ids; for an encoder-decoder the source.
            max_new_tokens: Its length at most.
            sampling: How tokens are chosen; None: greedily.
            stop: Strings that end the text, and are no part of it.
            seed: Makes drawing repeatable, whatever else is being written; None: torch's global generator.
            stop_at_end: An end-of-text token ends it too.
            logprobs: Log-probabilities are noted, with those of so many of the likeliest tokens; None: not.

        Raises:
            UserError: an empty prompt, one that leaves no room for its answer, text without a tokenizer.
        """
        model, tokenizer = self.model, self.tokenizer
        if tokenizer is None and (isinstance(prompt, str) or stop is not None):
            raise UserError("This engine has no tokenizer, so it reads no text: give it token ids and no stop strings.")
        if logprobs is not None and logprobs < 0:
            raise UserError(f"logprobs is a number of tokens, 0 or more, not {logprobs}.")
        if isinstance(prompt, str) and tokenizer is not None:
            ids = encode_prompt(model, tokenizer, prompt)
        else:
            ids = [int(token) for token in prompt]
        StopStrings(stop)
        read = read_prompt(model, torch.tensor([ids], dtype=torch.long), None, max_new_tokens)
        if (needed := read.start.shape[1] + max_new_tokens) > self.capacity:
            raise UserError(
                f"The prompt and its {max_new_tokens} new tokens are {needed}, and the engine has room for texts of "
                f"{self.capacity} tokens: shorten it, or ask for less."
            )
        ends = end_tokens(model) if stop_at_end else ()
        sampling = sampling or Sampling()
        request = Request(
            prompt=read,
            sampling=sampling,
            max_new_tokens=max_new_tokens,
            _ends=frozenset(ends),
            _rules=[
                *rules_of(model, read, max_new_tokens, ends),
                *penalties_of(sampling, model.config.vocab_size),
            ],
            _generator=seeded(seed, device_of(model)),
            _words=None
            if tokenizer is None
            else Continuation(tokenizer, () if model.config.is_encoder_decoder else ids, stop),
            _top=logprobs,
        )
        self._waiting.append(request)
        return request

    def cancel(self, request: Request) -> None:
        """End a text where it is; its slot is free at once. One that is over stays as it is."""
        with self._lock, torch.inference_mode():
            if request.finished:
                return
            if request in self._running:
                self._leave(self._running.index(request))
            elif self._reading is not None and self._reading.request is request:
                self._reading = None
            elif request in self._waiting:
                self._waiting.remove(request)
            request.finish("cancelled")

    def step(self) -> bool:
        """Read a chunk of a prompt, and write a token more of every text; False: there is nothing left to do."""
        with self._lock, evaluating(self.model), torch.inference_mode():
            writing = bool(self._running)
            if writing:
                latest = torch.tensor([[request.tokens[-1]] for request in self._running], device=self._device())
                scores = self._step(latest, self._cache)[:, 0]
                damaged = cast("list[bool]", scores.amax(dim=-1).isnan().tolist())
                for request, row, bad in zip(list(self._running), scores.split(1), damaged, strict=True):
                    if bad:
                        request.finish("error")
                    else:
                        request.take(row)
                for row in range(len(self._running) - 1, -1, -1):
                    if self._running[row].finished:
                        self._leave(row)
                if any(damaged):
                    raise UserError(DAMAGED)
            self._admit()
            return bool(self._running or self._waiting or self._reading)

    def run(self) -> None:
        """Step until every text is over."""
        while self.step():
            pass

    def _admit(self) -> None:
        """Read prompts, as many tokens of them as a chunk has."""
        budget = self.chunk
        while budget > 0 and len(self._running) < self.slots:
            if self._reading is None:
                if not self._waiting:
                    return
                request = self._waiting.popleft()
                self._reading = _Reading(request, self.model.make_cache(1, request.prompt.start.shape[1]))
            budget -= self._read(self._reading, budget)

    def _read(self, reading: _Reading, budget: int) -> int:
        """Read a piece of a prompt; returns what it costs in tokens."""
        request, prompt = reading.request, reading.request.prompt
        piece = prompt.start[:, reading.done : reading.done + budget]
        source = prompt.source if reading.done == 0 else None
        if source is None:
            scores = self._step(piece, reading.cache, last_only=True)
        else:
            scores = all_scores(self.model(piece, source, cache=reading.cache, last_only=True))
        reading.done += piece.shape[1]
        if reading.done == prompt.start.shape[1]:
            self._reading = None
            try:
                request.take(first_scores(scores))
            except UserError:
                request.finish("error")
                raise
            if not request.finished:
                self._cache.put(len(self._running), reading.cache)
                self._running.append(request)
        return piece.shape[1] + (0 if source is None else source.shape[1])

    def _leave(self, row: int) -> None:
        self._cache.remove(row)
        last = self._running.pop()
        if row < len(self._running):
            self._running[row] = last

    def _device(self) -> torch.device:
        return device_of(self.model)
