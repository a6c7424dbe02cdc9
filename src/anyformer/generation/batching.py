"""Continuous batching: texts enter a running batch, grow side by side, and leave it when they end."""

import threading
from collections import deque
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from typing import Unpack, cast

import torch
from torch import Tensor

from anyformer.blocks.linear import using_adapters
from anyformer.errors import UserError, nearest
from anyformer.generation.cached_decoder import DecoderStep, PrefixStore
from anyformer.generation.config import GenerationConfig, GenerationOptions, resolve
from anyformer.generation.inference import cache_limit, evaluating, likeliest, require_generative
from anyformer.generation.logits_processors import make_processors
from anyformer.generation.prompt import encode_prompt, eos_ids, make_prompt
from anyformer.generation.request import Constraint, Request, append_tokens
from anyformer.generation.sampling import make_sampler
from anyformer.generation.speculative_decoding import MAX_ROWS, Draft, check_draft
from anyformer.generation.stop_strings import Detokenizer
from anyformer.model import Transformer
from anyformer.tokenizer import Tokenizer

_WARM_TOKENS = 8
"""New tokens of each text that `warm_up` generates."""
_SHARE_BESIDE_TEXTS = 4
"""The part of a chunk that is read between two steps of running texts. Smaller parts of a prompt take longer in all."""


class _TextError(Exception):
    """One text failed, for a reason of its own."""

    def __init__(self, reason: Exception) -> None:
        self.reason = reason


class BatchingEngine:
    """Continuous batching: many texts at a time, each as it would be generated alone.

    One thread calls `step` (or `run`). `submit` and `cancel` may be called from any thread.

    Args:
        model: A decoder-only model or an encoder-decoder.
        tokenizer: Its tokenizer; None: prompts are ids, and there is no text.
        slots: Texts of the running batch; the others wait.
        capacity: Longest text with its prompt, in tokens; the memory of all slots is reserved at once. None: the
            model's context, but no more than 2048.
        chunk: Tokens of prompts that are read at a time; a quarter of it between two steps of running texts, which
            prompts do not hold up.
        prefixes: Texts whose keys and values are kept, for prompts of decoder-only models that begin with the same
            tokens, as the next turn of a chat does. They take memory beside the slots.
        adapters: Adapters of the model that act for the requests that name one of them, and for no other.
        draft: Guesses tokens while few texts run, see `generate_ids`; texts are the same, sampled ones as well.

    Raises:
        UserError: a model that doesn't generate text, a size below 1, or a draft that can't guess for the model.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer | None = None,
        slots: int = 16,
        capacity: int | None = None,
        chunk: int = 256,
        prefixes: int = 0,
        adapters: Collection[str] = (),
        draft: Draft | None = None,
    ) -> None:
        require_generative(model)
        self.capacity = min(size for size in (cache_limit(model), capacity or 2048) if size is not None)
        if slots < 1 or chunk < 1 or self.capacity < 2:
            raise UserError(f"slots and chunk are at least 1, and capacity 2, not {slots}, {chunk} and {capacity}.")
        self.model, self.tokenizer, self.slots, self.chunk = model, tokenizer, slots, chunk
        self.adapters = adapters
        self.draft: Draft | None = draft
        if draft is not None:
            check_draft(model, draft)
        self._step = DecoderStep(model)
        with torch.inference_mode():
            self._cache = model.make_cache(slots, self.capacity)
            self._cache.clear()
        self._waiting = deque[Request]()
        """The first of them may have been read in part."""
        self._running: list[Request] = []
        self._prefixes = PrefixStore(model, prefixes, self.capacity)
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
        adapter: str | None = None,
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
            adapter: One of the engine's adapters; None: the model without them.
            options: Fields of the config that differ.

        Raises:
            UserError: an empty prompt, one that leaves no room for its answer, text without a tokenizer, a config that
                `GenerationConfig` refuses, beams or samples, or an adapter that the engine does not have.
        """
        model, tokenizer = self.model, self.tokenizer
        config = resolve(model, config, options, beams=False, stop_strings=tokenizer is not None)
        if config.samples != 1:
            raise UserError("A request is one text: submit it once for each sample.")
        if logprobs is not None and logprobs < 0:
            raise UserError(f"logprobs is a number of tokens, 0 or more, not {logprobs}.")
        if adapter is not None and adapter not in self.adapters:
            raise UserError(f"The engine has no adapter {adapter!r} ({nearest(adapter, self.adapters)}).")
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
            adapter=adapter,
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

    def warm_up(self, adapter: str | None = None) -> None:
        """Generate some tokens in every slot, so that no request pays for what the first one does.

        Raises:
            UserError: the model answers with NaN.
        """
        size = self.model.config.source_vocab_size or self.model.config.vocab_size
        for length in (min(self.chunk, self.capacity - _WARM_TOKENS), *[1] * (self.slots - 1)):
            ids = [number % size for number in range(max(1, length))]
            self.submit(ids, max_new_tokens=min(_WARM_TOKENS, self.capacity - 1), adapter=adapter, stop_at_eos=False)
        self.run()
        self._prefixes.clear()

    def using(self, adapters: Sequence[str | None]) -> AbstractContextManager[None]:
        """Let the adapter of each row of a batch act on it in this thread; None: none.

        The model's adapters that are not the engine's act on all rows.
        """
        rows = dict[str, Tensor | None].fromkeys(self.model.adapter_configs.keys() - set(self.adapters))
        for name in {*adapters} - {None}:
            chosen = [row for row, adapter in enumerate(adapters) if adapter == name]
            is_all = len(chosen) == len(adapters)
            rows[cast("str", name)] = None if is_all else torch.tensor(chosen, device=self.model.device)
        return using_adapters(rows)

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
            except BaseException as error:
                self._fail(error)
                raise

    def run(self) -> None:
        """Step until every text is over. Raises as `step`."""
        with evaluating(self.model):
            while self.step():
                pass

    def _advance(self) -> bool:
        if self._running:
            running, guesses = list(self._running), self._guesses()
            latest = [[request.tokens[-1], *guessed] for request, guessed in zip(running, guesses, strict=True)]
            width = max(map(len, latest))
            latest = [row + [0] * (width - len(row)) for row in latest]  # a token that is read in vain
            with self.using([request.adapter for request in running]):
                logits = self._step(torch.tensor(latest, device=self.model.device), self._cache)
            chosen = zip(running, logits, likeliest(logits).tolist(), guesses, strict=True)
            errors = [append_tokens(*each) for each in chosen]
            if width > 1:
                rejected = [width - 1 - request.latest_accepted for request in running]
                self._cache.truncate(self._cache.lengths - torch.tensor(rejected, device=self.model.device))
            for row in reversed(range(len(self._running))):
                if self._running[row].finished:
                    self._leave(row)
            if reasons := [error for error in errors if error is not None]:
                raise _TextError(reasons[0])
        budget = whole = max(1, self.chunk // _SHARE_BESIDE_TEXTS) if self._running else self.chunk
        while self._waiting and len(self._running) < self.slots:
            # A few tokens take as long as many: a second prompt is read if that is all of it.
            if budget < whole and self._unread(self._waiting[0]) > budget:
                break
            budget -= self._read(self._waiting[0], budget)
        return bool(self._running or self._waiting)

    def _guesses(self) -> list[list[int]]:
        """Tokens that may come next in each running text; none where many run."""
        running = self._running
        room = min(MAX_ROWS // len(running), self.capacity - self._cache.length) - 1
        if self.draft is None or room < 1:
            return [[] for _ in running]
        return [request.guess(self.model, self.draft, room) for request in running]

    @staticmethod
    def _unread(request: Request) -> int:
        """Tokens of a prompt that have not been read."""
        prompt = request.prompt
        if request.cache is None:
            return prompt.ids.shape[1] + (0 if prompt.source is None else prompt.source.shape[1])
        return prompt.ids.shape[1] - request.cache.length

    def _read(self, request: Request, budget: int) -> int:
        """Read a chunk of a prompt; returns what it costs in tokens."""
        prompt = request.prompt
        if request.cache is None:
            ids: list[int] = prompt.ids[0].tolist()
            request.cache = self._prefixes.find(ids, request.adapter)
            request.cached_tokens = request.cache.length
        cache = request.cache
        chunk = prompt.ids[:, cache.length : cache.length + budget]
        source = prompt.source if cache.length == 0 else None
        with self.using([request.adapter]):
            logits = self._step(chunk, cache, source=source, last_only=True)
        if cache.length == prompt.ids.shape[1]:
            self._waiting.popleft().cache = None
            error = append_tokens(request, logits[0], likeliest(logits)[0].tolist())
            if not request.finished:
                self._cache.put(len(self._running), cache)
                self._running.append(request)
            if error is not None:
                raise _TextError(error)
            self._prefixes.keep(cache, adapter=request.adapter)
        return chunk.shape[1] + (0 if source is None else source.shape[1])

    def _fail(self, error: BaseException) -> None:
        """End all texts where they are."""
        requests = [*self._running, *self._waiting]
        for held in (self._running, self._waiting, self._cache, self._prefixes):
            held.clear()
        for request in requests:
            request.cache = None
            if not request.finished:
                request.error = error
                request.finish("error")

    def _leave(self, row: int) -> None:
        if self._running[row].finish_reason != "error":
            self._prefixes.keep(self._cache, row, self._running[row].adapter)
        self._cache.remove(row)
        self._running[row] = self._running[-1]
        self._running.pop()
