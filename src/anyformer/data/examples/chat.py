"""Conversations as token ids, with the assistant's answers to be learned.

An answer is what the chat template writes beyond the prompt: the conversation up to it, with the generation prompt. So
the ids before an answer are those that the model will see when it is to give it. A template that marks the answers,
with ``{% generation %}``, is taken at its word instead, as `transformers` and TRL do.
"""

from __future__ import annotations

from collections.abc import Sequence

from anyformer.data.examples import ChatExample
from anyformer.data.examples.completion import end_of_text
from anyformer.data.examples.encoded import LearnedTokens
from anyformer.errors import UserError
from anyformer.tokenizer import Tokenizer
from anyformer.tokenizer.prompt import common_prefix, encode_continuation, encode_conversation, render_conversation

_SHOWN = 40
"""Characters of a rendered conversation that a message repeats."""


def encode_chat(tokenizer: Tokenizer, example: ChatExample, *, learn_all: bool = False) -> LearnedTokens:
    """The ids of a conversation in one row.

    Args:
        tokenizer: The model's.
        example: A conversation.
        learn_all: Learn everything in it, and not the answers only.

    Raises:
        UserError: as `encode_chat_rows`, and where that gives several rows.
    """
    rows = encode_chat_rows(tokenizer, example, learn_all=learn_all)
    if len(rows) > 1:
        raise UserError(
            f"{example.where}: the chat template shows earlier answers otherwise than as they are given, so this "
            f"conversation is {len(rows)} rows: let only the last answer be learned."
        )
    return rows[0]


def encode_chat_rows(tokenizer: Tokenizer, example: ChatExample, *, learn_all: bool = False) -> list[LearnedTokens]:
    """The ids of a conversation.

    The tokens of an answer are learned up to the one that ends it, but not a line end that the template writes after
    that. Usually they are one row. Where the template changes an answer once another message follows, as those do that
    leave out what the model thought, there is a row for each answer, with what is before it as generation shows it; so
    it is without a template, as the end of text is behind an answer only when it is given.

    Args:
        tokenizer, example, learn_all: As for `encode_chat`.

    Raises:
        UserError: the conversation begins with an answer; the template refuses the messages; it doesn't write the
            prompt of an answer before the answer; without a template there is no token that ends an answer.
    """
    try:
        return _Encoder(tokenizer, example).rows(learn_all)
    except UserError as error:
        raise UserError(f"{example.where}: {error}") from error


def generation_mismatch(tokenizer: Tokenizer, example: ChatExample, rows: Sequence[LearnedTokens]) -> str | None:
    """Difference between the text that is learned and the one that the model sees when it is to answer.

    Args:
        tokenizer: The model's.
        example: A conversation.
        rows: What `encode_chat_rows` makes of it.

    Returns:
        A sentence, or None where each answer is learned behind exactly the ids that generation and chat give its
        prompt.
    """
    encoder = _Encoder(tokenizer, example)
    for index in encoder.answers:
        prompt = encoder.ids(encoder.render(index, True))
        fits = [row for row in rows if list(row.tokens[: len(prompt)]) == prompt]
        if not fits:
            row = max(rows, key=lambda row: common_prefix(row.tokens, prompt))
            place = common_prefix(row.tokens, prompt)
            seen, shown = (
                tokenizer.decode(list(ids[place : place + _SHOWN]), skip_special=False) for ids in (prompt, row.tokens)
            )
            return (
                f"{example.where}: the chat template writes {_quoted(shown)} before the answer in message {index + 1}, "
                f"and {_quoted(seen)} when the model is asked for it: correct the template."
            )
        if not any(any(row.learned[len(prompt) :][:1]) for row in fits):
            return (
                f"{example.where}: the answer in message {index + 1} begins with tokens that are not learned: correct "
                "the blocks {% generation %} in the chat template."
            )
    return None


def added_system_prompt(tokenizer: Tokenizer) -> str | None:
    """The system prompt that the chat template writes into a conversation that has none; None: it writes none."""
    system, user = "SYSTEM-PROMPT", "USER-MESSAGE"
    asked = [{"role": "user", "content": user}]
    try:
        given = tokenizer.chat([{"role": "system", "content": system}, *asked], False)
        alone = tokenizer.chat(asked, False)
    except UserError:  # no template, or one that takes no system message
        return None
    before, _, rest = given.partition(system)
    after = rest.partition(user)[0]
    start = alone.partition(user)[0]
    if not rest or not start.startswith(before) or not start.endswith(after):
        return None
    return start[len(before) : len(start) - len(after)] or None


class _Encoder:
    """Encodes one conversation."""

    def __init__(self, tokenizer: Tokenizer, example: ChatExample) -> None:
        self._tokenizer = tokenizer
        self._example = example
        self._special = tokenizer.special_ids
        added = tokenizer.backend.get_added_tokens_decoder().items()
        self._separating = {id_ for id_, token in added if token.special and not token.normalized}
        self._known: tuple[str, list[int]] = "", []
        self.answers = [index for index, learned in enumerate(example.learned) if learned]

    def render(self, count: int, add_generation_prompt: bool) -> str:
        """The text of the first messages."""
        messages = self._example.messages[:count]
        return render_conversation(self._tokenizer, messages, add_generation_prompt, self._example.tools)

    def ids(self, text: str) -> list[int]:
        """The ids of a rendered conversation.

        One that continues the latest one is encoded from the last special token of that on: what is before such a token
        is encoded without regard to what follows.
        """
        if self._tokenizer.chat_template is None:
            return encode_conversation(self._tokenizer, text)
        known, before = self._known if text.startswith(self._known[0]) else ("", [])
        new, offsets = self._tokenizer.encode_offsets(text[len(known) :])
        ids = before + new
        last = next((k for k in reversed(range(len(new))) if new[k] in self._separating), None)
        if last is not None:
            self._known = text[: len(known) + offsets[last][0]], ids[: len(before) + last]
        return ids or encode_conversation(self._tokenizer, text)

    def rows(self, learn_all: bool) -> list[LearnedTokens]:
        """The conversation as rows."""
        has_template = self._tokenizer.chat_template is not None
        if not self.answers or (learn_all and has_template):
            ids = self.ids(self.render(len(self._example.messages), False))
            return [LearnedTokens(ids, [False] + [learn_all] * (len(ids) - 1))]  # nothing predicts the first token
        if self.answers[0] == 0:
            raise UserError(
                'the conversation begins with an answer: put a question before it, or "train": false into it.'
            )
        marked = self._marked() if has_template else None
        if marked is not None:
            return [marked]
        rows: list[_Row] = []
        for index in self.answers:
            prompt, answer, learned, mismatch = self._answer(index)
            if not rows or not self._extend(rows[-1], prompt, learn_all):
                # What was learned in the row before isn't learned again.
                known = common_prefix(rows[-1].tokens, prompt) if rows else 1
                rows.append(_Row(prompt, [False] * known + [learn_all] * (len(prompt) - known)))
            rows[-1].add(answer, learned, mismatch)
        return [LearnedTokens(row.tokens, row.learned, row.mismatches) for row in rows]

    def _extend(self, row: _Row, prompt: list[int], learned: bool) -> bool:
        """Append what the next prompt has more than a row; False: it doesn't begin with the row.

        It may do without what follows the token that ends the answer, such as an end of text after the last answer.
        """
        same = common_prefix(row.tokens, prompt)
        if same < len(row.tokens):
            ends = (k for k in range(row.answer, same) if row.learned[k] and row.tokens[k] in self._special)
            end = max(ends, default=-1) + 1
            if not end or self._tokenizer.decode(row.tokens[end:]).strip():
                return False
            row.learned[end:] = [False] * (len(row.learned) - end)
        row.tokens[same:], row.learned[same:] = prompt[same:], [learned] * (len(prompt) - same)
        return True

    def _answer(self, index: int) -> tuple[list[int], list[int], int, bool]:
        """Ids of the prompt and of the answer, how many of the latter are learned, and whether they would merge."""
        prompt = self.render(index, True)
        whole = self.render(index + 1, False)
        if not whole.startswith(prompt):
            place = common_prefix(prompt, whole)
            raise UserError(
                f"the chat template writes {_quoted(whole[place:])} before the answer in message {index + 1}, where "
                f"it writes {_quoted(prompt[place:])} when the model is asked for it: correct the template, or the "
                "message."
            )
        answer = whole[len(prompt) :]
        self._check_header(index, prompt, answer)
        prompt_ids = self.ids(prompt)
        if self._tokenizer.chat_template is None:
            eos = end_of_text(self._tokenizer)
            answer = answer.removesuffix("\n")
            ids, mismatch = self._continuation(prompt_ids, prompt, answer)
            return prompt_ids, [*ids, eos], len(ids) + 1, mismatch
        ids, mismatch = self._continuation(prompt_ids, prompt, answer)
        return prompt_ids, ids, self._length(ids), mismatch

    def _continuation(self, prompt_ids: list[int], prompt: str, answer: str) -> tuple[list[int], bool]:
        return encode_continuation(self._tokenizer, prompt_ids, self.ids(prompt + answer), answer)

    def _length(self, answer: list[int]) -> int:
        """The tokens of an answer up to the one that ends it."""
        end = max((place for place, token in enumerate(answer) if token in self._special), default=-1) + 1
        return end if end and not self._tokenizer.decode(answer[end:]).strip() else len(answer)

    def _check_header(self, index: int, prompt: str, answer: str) -> None:
        """Raise UserError for a template that leaves it to the model to say who speaks."""
        content = self._example.messages[index].get("content")
        if not isinstance(content, str) or not (content := content.strip()):
            return
        header = answer.partition(content)[0].strip()
        if header and header != answer.strip() and self.render(index, False) == prompt:
            raise UserError(
                f"the chat template writes {_quoted(header)} before an answer, but not when the model is asked for one "
                "(add_generation_prompt), so it would have to write that itself: add it to the template."
            )

    def _marked(self) -> LearnedTokens | None:
        """The conversation with the answers that the template marks; None: it marks none."""
        example = self._example
        text, spans = self._tokenizer.chat_spans(example.messages, False, example.tools)
        if not spans:
            return None
        for index, (message, learned) in enumerate(zip(example.messages, example.learned, strict=True)):
            if message.get("role") == "assistant" and not learned:
                begin, end = (common_prefix(text, self.render(count, False)) for count in (index, index + 1))
                spans = [span for span in spans if not begin <= span[0] <= end]
        ids, offsets = self._tokenizer.encode_offsets(text)
        learned = [any(begin < last and first < end for begin, end in spans) for first, last in offsets]
        return LearnedTokens(ids, learned)


class _Row:
    """A row that grows by answers."""

    def __init__(self, tokens: list[int], learned: list[bool]) -> None:
        self.tokens, self.learned = list(tokens), learned
        self.mismatches = 0
        self.answer = len(tokens)
        """Where the latest answer begins."""

    def add(self, answer: list[int], learned: int, mismatch: bool) -> None:
        """Append an answer, the first tokens of which are learned."""
        self.answer = len(self.tokens)
        self.tokens += answer
        self.learned += [place < learned for place in range(len(answer))]
        self.mismatches += mismatch


def _quoted(text: str) -> str:
    return repr(text[:_SHOWN] + "..." * (len(text) > _SHOWN))
