"""Continuous batching: texts enter a running batch, grow side by side, and leave it when they end."""

import queue
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, Unpack, cast, runtime_checkable

import torch
from torch import Tensor

from anyformer.blocks.kv_cache import KeyValueCache
from anyformer.errors import UserError
from anyformer.generation.cached_decoder import DecoderStep
from anyformer.generation.config import GenerationConfig, GenerationOptions, resolve
from anyformer.generation.inference import cache_limit, check_nan, evaluating, require_generative
from anyformer.generation.logits_processors import History, LogitsProcessor, make_processors, process
from anyformer.generation.prefix_store import PrefixStore
from anyformer.generation.prompt import Prompt, encode_prompt, eos_ids, make_prompt
from anyformer.generation.sampling import Sampler, make_sampler
from anyformer.generation.stop_strings import Detokenizer
from anyformer.model import Transformer
from anyformer.tokenizer import Tokenizer

Finish = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True)
class TokenLogprob:
    """Log-probability of a token, before penalties and temperature."""

    token: int
    logprob: float
    """In nats."""
    top: dict[int, float]
    """The likeliest tokens in its place, the likeliest first."""


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
    logprobs: list[TokenLogprob] = field(default_factory=list[TokenLogprob])
    """One for each token, if asked for."""
    cache: KeyValueCache | None = None
    """Keys and values of the prompt while it is prefilled."""
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

    def append(self, logits: Tensor) -> None:
        """Choose the next token by its logits, [1, vocab]."""
        scores = logits
        if self._processors:
            new = torch.tensor([self.tokens], dtype=torch.long, device=logits.device)
            ids = torch.cat((self.prompt.ids, new), dim=1)
            scores = process(scores, self._processors, History(ids, new.new_zeros(1), len(self.tokens)))
        token = int(scores.argmax() if self._sampler.greedy else self._sampler(scores))
        if self._top is not None:
            log_p = logits[0].log_softmax(dim=-1)
            best = log_p.topk(min(self._top, len(log_p)))
            top: dict[int, float] = dict(zip(best.indices.tolist(), best.values.tolist(), strict=True))
            self.logprobs.append(TokenLogprob(token, float(log_p[token]), top))
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


class _TextError(Exception):
    """One text failed, for a reason of its own."""

    def __init__(self, reason: Exception) -> None:
        self.reason = reason


def _append(request: Request, logits: Tensor) -> Exception | None:
    """Choose the next token of a text, which ends if that fails; returns the reason."""
    try:
        request.append(check_nan(logits))
    except Exception as error:
        request.finish("error")
        return error
    return None


class BatchingEngine:
    """Continuous batching: many texts at a time, each as it would be generated alone.

    One thread calls `step` (or `run`). `submit` and `cancel` may be called from any thread.

    Args:
        model: A decoder-only model or an encoder-decoder.
        tokenizer: Its tokenizer; None: prompts are ids, and there is no text.
        slots: Texts of the running batch; the others wait.
        capacity: Longest text with its prompt, in tokens; the memory of all slots is reserved at once. None: the
            model's context, but no more than 2048.
        chunk: Tokens of a prompt that are read between two steps, so that a long one does not hold up the others.
        prefixes: Texts whose keys and values are kept, for prompts of decoder-only models that begin with the same
            tokens, as the next turn of a chat does. They take memory beside the slots.

    Raises:
        UserError: a model that doesn't generate text, or a size below 1.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer | None = None,
        slots: int = 16,
        capacity: int | None = None,
        chunk: int = 256,
        prefixes: int = 0,
    ) -> None:
        require_generative(model)
        self.capacity = min(size for size in (cache_limit(model), capacity or 2048) if size is not None)
        if slots < 1 or chunk < 1 or self.capacity < 2:
            raise UserError(f"slots and chunk are at least 1, and capacity 2, not {slots}, {chunk} and {capacity}.")
        self.model, self.tokenizer, self.slots, self.chunk = model, tokenizer, slots, chunk
        self._step = DecoderStep(model)
        with torch.inference_mode():
            self._cache = model.make_cache(slots, self.capacity)
            self._cache.clear()
        self._waiting = deque[Request]()
        """The first of them may have been read in part."""
        self._running: list[Request] = []
        self._prefixes = PrefixStore(model, prefixes)
        self._lock = threading.RLock()

    @property
    def running(self) -> int:
        """Texts of the running batch."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Texts that have no token yet."""
        return len(self._waiting)

    def submit(
        self,
        prompt: str | Sequence[int],
        config: GenerationConfig | None = None,
        *,
        logprobs: int | None = None,
        also_eos: int | None = None,
        constraint: Constraint | None = None,
        skip_special: bool = True,
        **options: Unpack[GenerationOptions],
    ) -> Request:
        """Add a text, which enters the batch as soon as a slot is free.

        Args:
            prompt: A text or ids; for an encoder-decoder the source.
            config: How it is generated; None: greedily. With a seed, sampling gives the same text in any company.
            logprobs: Log-probabilities are noted, with those of so many of the likeliest tokens; None: not.
            also_eos: A token that ends the text as well, such as the end of a turn of a chat.
            constraint: What the text may be; for this request alone.
            skip_special: Special tokens have no text.
            options: Fields of the config that differ.

        Raises:
            UserError: an empty prompt, one that leaves no room for its answer, text without a tokenizer, a config that
                `GenerationConfig` refuses, beams or samples.
        """
        model, tokenizer = self.model, self.tokenizer
        config = resolve(model, config, options, beams=False, stop_strings=tokenizer is not None)
        if config.samples != 1:
            raise UserError("A request is one text: submit it once for each sample.")
        if logprobs is not None and logprobs < 0:
            raise UserError(f"logprobs is a number of tokens, 0 or more, not {logprobs}.")
        if not isinstance(prompt, str):
            ids = [int(token) for token in prompt]
        elif tokenizer is None:
            raise UserError("This engine has no tokenizer, so it reads no text: give it token ids.")
        else:
            ids = encode_prompt(model, tokenizer, prompt)
        batch = make_prompt(model, torch.tensor([ids], dtype=torch.long), None, config.max_new_tokens)
        if batch.capacity > self.capacity:
            raise UserError(
                f"The prompt and its {batch.max_new_tokens} new tokens are {batch.capacity}, and the engine has room "
                f"for texts of {self.capacity} tokens: shorten it, or ask for less."
            )
        eos = eos_ids(model, config) if also_eos is None else (*eos_ids(model, config), also_eos)
        before = () if model.config.is_encoder_decoder else ids
        request = Request(
            prompt=batch,
            _eos=frozenset(eos),
            _processors=[*make_processors(model, batch, eos, config), *([] if constraint is None else [constraint])],
            _sampler=make_sampler(config, model.device),
            _detokenizer=None if tokenizer is None else Detokenizer(tokenizer, before, config.stop, skip_special),
            _top=logprobs,
            _constraint=constraint,
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
            elif request in self._waiting:
                self._waiting.remove(request)
                request.cache = None
            request.finish("cancelled")

    def step(self) -> bool:
        """Read a chunk of a prompt, and generate a token more of every text; False: there is nothing left to do.

        Raises:
            UserError: the model answers with NaN. The texts that it answers end with "error", the others go on, and so
                they do after an exception of one text's own logits processors or tokenizer, which is raised as it is.
                After any other exception all texts end with "error", since the cache may hold a part of a step.
        """
        with self._lock, evaluating(self.model), torch.inference_mode():
            try:
                return self._advance()
            except _TextError as error:
                raise error.reason from None
            except BaseException:
                self._fail()
                raise

    def run(self) -> None:
        """Step until every text is over. Raises as `step`."""
        while self.step():
            pass

    def _advance(self) -> bool:
        if self._running:
            latest = torch.tensor([[request.tokens[-1]] for request in self._running], device=self.model.device)
            logits = self._step(latest, self._cache)[:, 0]
            errors = [_append(*each) for each in zip(list(self._running), logits.split(1), strict=True)]
            for row in reversed(range(len(self._running))):
                if self._running[row].finished:
                    self._leave(row)
            if reasons := [error for error in errors if error is not None]:
                raise _TextError(reasons[0])
        budget = self.chunk
        while budget > 0 and self._waiting and len(self._running) < self.slots:
            budget -= self._read(self._waiting[0], budget)
        return bool(self._running or self._waiting)

    def _read(self, request: Request, budget: int) -> int:
        """Read a chunk of a prompt; returns what it costs in tokens."""
        prompt = request.prompt
        if request.cache is None:
            ids = cast("list[int]", cast("Any", prompt.ids[0]).tolist())
            request.cache = self._prefixes.find(ids) or self.model.make_cache(1, len(ids))
        cache = request.cache
        chunk = prompt.ids[:, cache.length : cache.length + budget]
        source = prompt.source if cache.length == 0 else None
        logits = self._step(chunk, cache, source=source, last_only=True)[:, -1]
        if cache.length == prompt.ids.shape[1]:
            self._waiting.popleft().cache = None
            error = _append(request, logits)
            if not request.finished:
                self._cache.put(len(self._running), cache)
                self._running.append(request)
            if error is not None:
                raise _TextError(error)
            self._prefixes.keep(cache)
        return chunk.shape[1] + (0 if source is None else source.shape[1])

    def _fail(self) -> None:
        """End all texts where they are."""
        requests = [*self._running, *self._waiting]
        for held in (self._running, self._waiting, self._cache, self._prefixes):
            held.clear()
        for request in requests:
            request.cache = None
            if not request.finished:
                request.finish("error")

    def _leave(self, row: int) -> None:
        if self._running[row].finish_reason != "error":
            self._prefixes.keep(self._cache, row)
        self._cache.remove(row)
        self._running[row] = self._running[-1]
        self._running.pop()
