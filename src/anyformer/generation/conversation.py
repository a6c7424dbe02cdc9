"""Chat: a conversation in turns, rendered by the model's chat template."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Unpack

import torch

from anyformer.errors import UserError
from anyformer.generation.cached_decoder import PrefixCache
from anyformer.generation.config import DEFAULT_NEW_TOKENS, GenerationConfig, GenerationOptions, resolve
from anyformer.generation.decode import decode
from anyformer.generation.inference import cache_limit, check_ids, require_generative, require_tokenizer
from anyformer.generation.logits_processors import make_processors
from anyformer.generation.prompt import Prompt, eos_ids
from anyformer.generation.sampling import make_sampler
from anyformer.generation.stop_strings import Detokenizer, cut_at_stop, stream_text
from anyformer.model import Transformer
from anyformer.tokenizer import Tokenizer
from anyformer.tokenizer.prompt import NEXT_TURN, encode_conversation, is_plain, render_conversation

Message = dict[str, str]
"""``{"role": "system" | "user" | "assistant", "content": "..."}``"""


class Conversation:
    """Questions and answers in turns. Each costs only the tokens that are new, see `PrefixCache`.

    A model without a chat template is shown lines that begin with ``User:`` and ``Assistant:``.

    Args:
        model: A decoder-only model.
        system: How the model is to behave, before the first turn.
        config: How answers are generated; None: as `GenerationConfig.for_chat`. The seed is that of the conversation.
        options: Fields of the config that differ.

    Attributes:
        config: How answers are generated.
        forgotten: How many of the oldest messages the model no longer sees, since its context is full.
        unfinished: Whether the latest answer ended after its maximum of tokens.

    Raises:
        UserError: a model that doesn't generate text or has no tokenizer, a template that takes no system message, a
            config that `GenerationConfig` refuses, beams or samples.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer | None,
        system: str | None = None,
        config: GenerationConfig | None = None,
        **options: Unpack[GenerationOptions],
    ) -> None:
        require_generative(model)
        if not model.config.is_decoder_only:
            raise UserError(
                "An encoder-decoder rewrites a source and holds no conversation: give `anyformer generate` the source."
            )
        self._model = model
        self._tokenizer = require_tokenizer(tokenizer, "give generate_ids token ids")
        self._turns: list[Message] = []
        self._cache = PrefixCache(model)
        self.config = resolve(model, config or GenerationConfig.for_chat(model, **options), options, beams=False)
        if self.config.samples != 1:
            raise UserError("An answer is one text: leave out samples.")
        self._sampler = make_sampler(self.config, model.device)
        self.forgotten = 0
        self.unfinished = False
        self.system = system

    @property
    def has_template(self) -> bool:
        """Whether the model came with a chat template, and so was tuned for chat."""
        return self._tokenizer.chat_template is not None

    @property
    def context(self) -> int | None:
        """The longest conversation in tokens that the model sees; None: any."""
        return cache_limit(self._model)

    @property
    def messages(self) -> list[Message]:
        """The whole conversation, with what the model no longer sees."""
        return [*_system_messages(self._system), *(dict(message) for message in self._turns)]

    @property
    def system(self) -> str | None:
        """The system message. A new one holds for the whole conversation; None: the template's own, if any."""
        return self._system

    @system.setter
    def system(self, text: str | None) -> None:
        messages = [*_system_messages(text), {"role": "user", "content": "?"}]
        render_conversation(self._tokenizer, messages, add_generation_prompt=True)
        self._system = text

    def reset(self) -> None:
        """Begin anew, with the same system message."""
        self._turns.clear()
        self.forgotten, self.unfinished = 0, False

    def answer(self, question: str, **options: Unpack[GenerationOptions]) -> Generator[str, None, None]:
        """The answer in pieces, as soon as they are certain; it ends before a stop string.

        When the iterator ends or is closed, the question and the answer so far become part of the conversation, unless
        there is no answer. If the context is full the oldest turns are left out until the answer has room for
        `max_new_tokens`, or at least for a quarter of the context.

        Args:
            options: Fields of the config that differ for this answer.

        Raises:
            UserError: at once, where the question alone is too long, or the template refuses it.
        """
        config = resolve(self._model, self.config, options, beams=False)
        if "seed" in options:
            self._sampler = make_sampler(config, self._model.device)
        message: Message = {"role": "user", "content": question}
        new = config.max_new_tokens or DEFAULT_NEW_TOKENS
        forgotten, ids = self._truncated(message, new)
        room = new if self.context is None else min(new, self.context - len(ids))
        text = Detokenizer(self._tokenizer, stop=config.stop)
        return self._answer(message, forgotten, stream_text(text, self._tokens(ids, room, config)))

    def _answer(self, message: Message, forgotten: int, pieces: Iterator[str]) -> Generator[str, None, None]:
        self.forgotten = forgotten
        answer, plain = "", is_plain(self._tokenizer)
        try:
            for piece in cut_at_stop(pieces, NEXT_TURN) if plain else pieces:
                # In plain lines the answer begins with the space behind ``Assistant:``.
                if piece := piece.lstrip() if plain and not answer else piece:
                    answer += piece
                    yield piece
        finally:
            if answer.strip():
                self._turns += [message, {"role": "assistant", "content": answer}]

    def _truncated(self, message: Message, max_new_tokens: int) -> tuple[int, list[int]]:
        """The number of messages to leave out, and the ids of the others."""
        context, forgotten = self.context, self.forgotten
        while True:
            ids = self._encode([*_system_messages(self._system), *self._turns[forgotten:], message])
            alone = forgotten >= len(self._turns)
            if context is None or len(ids) + min(1 if alone else max_new_tokens, context // 4) <= context:
                return forgotten, ids
            if alone:
                raise UserError(
                    f"The question alone has {len(ids)} tokens, and the model's context is {context}: shorten it."
                )
            forgotten += 2

    def _tokens(self, ids: Sequence[int], room: int, config: GenerationConfig) -> Iterator[int]:
        """The tokens of the answer, without the one that ends it."""
        model = self._model
        eos = eos_ids(model, config)
        if config.stop_at_eos and self._tokenizer.eos is not None and self._tokenizer.eos not in eos:
            eos = (*eos, self._tokenizer.eos)
        prompt = Prompt(ids=torch.tensor([ids], device=model.device), max_new_tokens=room)
        processors = make_processors(model, prompt, eos, config)
        self.unfinished = False
        with closing(decode(self._cache, prompt, processors, replace(self._sampler, config=config), eos)) as steps:
            for token in map(int, steps):
                if token in eos:
                    return
                yield token
        self.unfinished = True

    def _encode(self, messages: Sequence[Message]) -> list[int]:
        text = render_conversation(self._tokenizer, messages, add_generation_prompt=True)
        ids = encode_conversation(self._tokenizer, text)
        check_ids(torch.tensor(ids), self._model.config.vocab_size)
        return ids


def _system_messages(text: str | None) -> list[Message]:
    return [] if text is None else [{"role": "system", "content": text}]
