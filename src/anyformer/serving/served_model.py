"""A model that is served: its prompts, and the options of its texts."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from anyformer.errors import UserError
from anyformer.generation.config import GenerationConfig
from anyformer.generation.encoders import embed, encode_texts
from anyformer.generation.inference import check_ids
from anyformer.generation.prompt import encode_prompt, eos_ids
from anyformer.generation.request import Constraint, Request
from anyformer.model import Transformer
from anyformer.serving.errors import ApiError, blaming
from anyformer.serving.grammar import Grammars
from anyformer.serving.token_text import TokenText
from anyformer.serving.worker import BatchedCalls, Stream, Worker
from anyformer.tokenizer import Tokenizer
from anyformer.tokenizer.prompt import encode_conversation, render_conversation

T = TypeVar("T")

_CHARACTERS = 32
"""Characters of a text for each token that there is room for: no text has longer tokens on average."""
_LEAST_CHARACTERS = 1 << 16
_QUICK = 2048
"""Longest prompt, in tokens, that is prepared in the event loop: that takes less than a millisecond."""


@dataclass(eq=False)
class ServedModel:
    """A model, its tokenizer, and the thread that runs it.

    Attributes:
        name: The name by which clients ask for it.
        adapter: The adapter that its texts are generated with; None: none.
        parent: The name of the model that it adapts.
        created: When it was loaded, in seconds since 1970.
    """

    name: str
    model: Transformer
    tokenizer: Tokenizer | None
    worker: Worker
    adapter: str | None = None
    parent: str | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.token_text = None if self.tokenizer is None else TokenText(self.tokenizer)
        self.embeddings = BatchedCalls(self.worker, self._embed)

    def _embed(self, texts: Sequence[str | Sequence[int]]) -> Sequence[tuple[Tensor, int]]:
        """A vector for each text, and the number of its tokens."""
        tokenizer = self.require_tokenizer()
        with self._using_adapter():
            rows = encode_texts(self.model, tokenizer, texts)
            return [*zip(embed(self.model, tokenizer, rows).cpu(), map(len, rows), strict=True)]

    def _using_adapter(self) -> AbstractContextManager[None]:
        """Let its adapter alone act in the worker's thread."""
        return nullcontext() if self.worker.engine is None else self.worker.engine.using([self.adapter])

    def warm_up(self) -> None:
        """Compute a little before the worker begins: the first of everything takes longer, and no request should.

        Raises:
            UserError: the model answers with NaN.
        """
        if self.worker.engine is not None:
            self.worker.engine.warm_up(self.adapter)
        elif self.tokenizer is not None:
            self._embed(["a"] * 8)

    async def call(self, function: Callable[[], T]) -> T:
        """Do other work with the model, as `Worker.call`."""

        def adapted() -> T:
            with self._using_adapter():
                return function()

        return await self.worker.call(adapted)

    @property
    def generates(self) -> bool:
        """Whether it writes text."""
        return self.worker.engine is not None

    @property
    def capabilities(self) -> list[str]:
        """The kinds of requests that it answers."""
        config, kind = self.model.config, self.model.config.head.kind
        found = [
            ("chat", self.generates),
            ("completion", self.generates),
            ("embedding", self.tokenizer is not None),
            ("fill", config.is_encoder_only and kind == "language_model"),
            ("classification", kind == "classification"),
        ]
        return [name for name, holds in found if holds]

    @property
    def ends(self) -> list[int]:
        """The tokens that end an answer."""
        eos = None if self.tokenizer is None else self.tokenizer.eos
        return sorted({*eos_ids(self.model, GenerationConfig()), *(() if eos is None else (eos,))})

    def require_tokenizer(self) -> Tokenizer:
        """The tokenizer. Raises ApiError for a model that came without one."""
        if self.tokenizer is None:
            raise ApiError(400, f"The model {self.name} has no tokenizer: send token ids.", "model")
        return self.tokenizer

    def require_generative(self) -> None:
        """Raise ApiError for a model that writes no text."""
        if not self.generates:
            can = ", ".join(self.capabilities) or "nothing that is served"
            raise ApiError(
                400, f"The model {self.name} writes no text; it can do: {can}.", "model", "unsupported_model"
            )

    def encode(self, prompt: str | Sequence[int], param: str = "prompt") -> list[int]:
        """The ids of a prompt that is continued, or of an encoder-decoder's source."""
        config = self.model.config
        with blaming(param):
            if isinstance(prompt, str):
                return encode_prompt(self.model, self.require_tokenizer(), prompt)
            if not prompt:
                raise UserError("The prompt is empty: give the model at least one token to go on from.")
            if max(map(abs, prompt)) >= 1 << 62:
                raise UserError("A token id is outside of the model's vocabulary.")
            check_ids(torch.tensor(prompt), config.source_vocab_size or config.vocab_size)
        return list(prompt)

    async def encode_chat(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None = None) -> list[int]:
        """The ids of a conversation, up to where the answer begins; of an encoder-decoder the last message is read."""
        tokenizer = self.require_tokenizer()
        if self.model.config.is_encoder_decoder:
            return await self.encode_in_thread(str(messages[-1].get("content") or ""), "messages")

        def encode() -> list[int]:
            text = render_conversation(tokenizer, list(messages), True, tools)
            self.check_length(text, "messages")
            return self.encode(encode_conversation(tokenizer, text), "messages")

        with blaming("messages"):
            return await asyncio.to_thread(encode)

    def check_length(self, text: str, param: str) -> None:
        """Raise ApiError for a text that can't fit: to read it would hold the server, and with it everybody."""
        size = max(_CHARACTERS * self.capacity, _LEAST_CHARACTERS)
        if len(text) > size:
            message = f"The text has {len(text):,} characters, and {size:,} are allowed: shorten it."
            raise ApiError(400, message, param, "context_length_exceeded")

    async def encode_in_thread(self, prompt: str | Sequence[int], param: str = "prompt") -> list[int]:
        """The ids of a prompt, as `encode`; a long one is read in another thread."""
        if len(prompt) <= _QUICK:
            return self.encode(prompt, param)
        if isinstance(prompt, str):
            self.check_length(prompt, param)
        return await asyncio.to_thread(self.encode, prompt, param)

    @property
    def capacity(self) -> int:
        """Longest text with its prompt, in tokens."""
        engine = self.worker.engine
        return (self.model.config.context_length or 0) if engine is None else engine.capacity

    def with_prefix(self, ids: list[int], prefix: Sequence[int] | None) -> list[int]:
        """The ids of a prompt and of the beginning of its text. Raises ApiError where there can't be one."""
        if prefix is None:
            return ids
        if self.model.config.is_encoder_decoder:
            message = "An encoder-decoder's text does not go on from its prompt: leave out prefix_ids."
            raise ApiError(400, message, "prefix_ids")
        return ids + self.encode(prefix, "prefix_ids")

    async def submit(
        self,
        ids: Sequence[int],
        config: GenerationConfig,
        count: int,
        *,
        logprobs: int | None = None,
        also_eos: int | None = None,
        constrain: Callable[[], Constraint] | None = None,
        skip_special: bool = True,
    ) -> list[Stream]:
        """Texts that go on from a prompt, each with a seed of its own.

        `constrain` makes what each may be; the others are as for `BatchingEngine.submit`. Raises as `Worker.submit`.
        """
        engine = self.worker.engine
        assert engine is not None

        def prepare() -> list[Request]:
            return [
                engine.submit(
                    ids,
                    _seeded(config, number),
                    logprobs=logprobs,
                    also_eos=also_eos,
                    constraint=None if constrain is None else constrain(),
                    skip_special=skip_special,
                    adapter=self.adapter,
                )
                for number in range(count)
            ]

        # To give so little to another thread takes longer: the two have to wait for each other, as Python runs one.
        quick = constrain is None and count == 1 and len(ids) <= _QUICK
        return await self.worker.submit(prepare, count, quick)

    @cached_property
    def grammars(self) -> Grammars:
        """Grammars that its texts obey."""
        return Grammars(self.model, self.require_tokenizer(), self.ends)

    async def compile(self, rules: Callable[[], str], prompt: Sequence[int], param: str) -> Callable[[], Constraint]:
        """A maker of constraints by a grammar, see `Grammars`. Raises ApiError for one that can't be enforced."""
        before = () if self.model.config.is_encoder_decoder else prompt
        with blaming(param):
            return await asyncio.to_thread(lambda: self.grammars.compile(rules(), before))

    def room(self, prompt: Sequence[int], param: str) -> int:
        """New tokens that there is room for behind a prompt. Raises ApiError where there is none."""
        engine = self.worker.engine
        assert engine is not None
        length = 1 if self.model.config.is_encoder_decoder else len(prompt)
        if length >= engine.capacity:
            raise ApiError(
                400,
                f"The prompt has {length:,} tokens, and texts of this server have at most {engine.capacity:,} with "
                "their answer: shorten it.",
                param,
                "context_length_exceeded",
            )
        return engine.capacity - length


def _seeded(config: GenerationConfig, number: int) -> GenerationConfig:
    """The config of one of several texts of a prompt: with one seed, all would be the same."""
    return config if config.seed is None or number == 0 else config.replace(seed=(config.seed + number) % 2**63)
