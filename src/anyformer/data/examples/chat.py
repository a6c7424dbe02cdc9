"""Conversations as token ids, with the assistant's answers as targets.

An answer is what the chat template writes beyond the prompt: the conversation up to it, with the generation prompt. So
the ids before an answer are those that the model will see when it is to give it. A template that marks the answers,
with ``{% generation %}``, is taken at its word instead, as `transformers` and TRL do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from anyformer.data.examples import ChatExample
from anyformer.data.examples.encoded import EncodedRow, end_of_text
from anyformer.errors import UserError, located
from anyformer.tokenizer import Tokenizer
from anyformer.tokenizer.prompt import common_prefix, encode_continuation, encode_conversation, render_conversation

_SHOWN = 40
"""Characters of a rendered conversation that a message repeats."""


def encode_chat(tokenizer: Tokenizer, example: ChatExample, *, learn_all: bool = False) -> EncodedRow:
    """The ids of a conversation in one row; raises UserError as `encode_chat_rows`, and where that gives several."""
    rows = encode_chat_rows(tokenizer, example, learn_all=learn_all)
    if len(rows) > 1:
        raise UserError(
            f"{example.location}: the chat template shows earlier answers otherwise than as they are given, so this "
            f"conversation is {len(rows)} rows: let only the last answer be learned."
        )
    return rows[0]


def encode_chat_rows(tokenizer: Tokenizer, example: ChatExample, *, learn_all: bool = False) -> list[EncodedRow]:
    """The ids of a conversation, of which the answers are targets, or with `learn_all` everything.

    The tokens of an answer are targets up to the one that ends it, but not a line end that the template writes after
    that. Usually they are one row. Where the template changes an answer once another message follows, as those do that
    leave out what the model thought, there is a row for each answer, with what is before it as generation shows it; so
    it is without a template, as the end of text is behind an answer only when it is given.

    Raises:
        UserError: the conversation begins with an answer; the template refuses the messages; it doesn't write the
            prompt of an answer before the answer; without a template there is no token that ends an answer.
    """
    with located(example.location):
        return _Encoder(tokenizer, example).rows(learn_all)


def generation_mismatch(tokenizer: Tokenizer, example: ChatExample, rows: Sequence[EncodedRow]) -> str | None:
    """Difference between the text that is learned and the one that the model sees when it is to answer.

    It is a sentence, or None where each answer is learned behind exactly the ids that generation and chat give its
    prompt. `rows` are those of `encode_chat_rows`.
    """
    encoder = _Encoder(tokenizer, example)
    for index in encoder.answers:
        prompt = encoder.ids(encoder.render(index, True))
        fits = [row for row in rows if list(row.tokens[: len(prompt)]) == prompt]
        if not fits:
            row = max(rows, key=lambda row: common_prefix(row.tokens, prompt))
            same = common_prefix(row.tokens, prompt)
            seen, shown = (
                tokenizer.decode(list(ids[same : same + _SHOWN]), skip_special=False) for ids in (prompt, row.tokens)
            )
            return (
                f"{example.location}: the chat template writes {_quoted(shown)} before the answer in message "
                f"{index + 1}, and {_quoted(seen)} when the model is asked for it: correct the template."
            )
        if not any(any(row.loss_mask[len(prompt) :][:1]) for row in fits):
            return (
                f"{example.location}: the answer in message {index + 1} begins with tokens that are not learned: "
                "correct the blocks {% generation %} in the chat template."
            )
    return None


def added_system_prompt(tokenizer: Tokenizer) -> str | None:
    """The system prompt that the chat template writes into a conversation that has none; None: it writes none."""
    system, user = "SYSTEM-PROMPT", "USER-MESSAGE"
    messages = [{"role": "user", "content": user}]
    try:
        explicit = tokenizer.chat([{"role": "system", "content": system}, *messages], False)
        alone = tokenizer.chat(messages, False)
    except UserError:  # no template, or one that takes no system message
        return None
    before, _, rest = explicit.partition(system)
    after = rest.partition(user)[0]
    start = alone.partition(user)[0]
    if not rest or not start.startswith(before) or not start.endswith(after):
        return None
    return start[len(before) : len(start) - len(after)] or None


class _Encoder:
    def __init__(self, tokenizer: Tokenizer, example: ChatExample) -> None:
        self._tokenizer = tokenizer
        self._example = example
        self._has_template = tokenizer.chat_template is not None
        self._special = tokenizer.special_ids
        added = tokenizer.backend.get_added_tokens_decoder().items()
        self._separating = {id_ for id_, token in added if token.special and not token.normalized}
        self._encoded: tuple[str, int, list[int]] = "", 0, []
        self.answers = [index for index, is_target in enumerate(example.loss_mask) if is_target]

    def render(self, count: int, add_generation_prompt: bool) -> str:
        messages = self._example.messages[:count]
        return render_conversation(self._tokenizer, messages, add_generation_prompt, self._example.tools)

    def ids(self, text: str) -> list[int]:
        """The ids of a rendered conversation.

        One that continues the latest one is encoded from the last special token of that on: what is before such a token
        is encoded without regard to what follows.
        """
        if not self._has_template:
            return encode_conversation(self._tokenizer, text)
        _, start, before = self._encoded if text.startswith(self._encoded[0]) else ("", 0, [])
        new, offsets = self._tokenizer.encode_offsets(text[start:])
        ids = before + new
        last = next((k for k in reversed(range(len(new))) if new[k] in self._separating), None)
        if last is not None:
            begin, end = offsets[last]
            self._encoded = text[: start + end], start + begin, ids[: len(before) + last]
        return ids or encode_conversation(self._tokenizer, text)

    def rows(self, learn_all: bool) -> list[EncodedRow]:
        if not self.answers or (learn_all and self._has_template):
            ids = self.ids(self.render(len(self._example.messages), False))
            return [EncodedRow(ids, [False] + [learn_all] * (len(ids) - 1))]  # nothing predicts the first token
        if self.answers[0] == 0:
            raise UserError(
                'the conversation begins with an answer: put a question before it, or "train": false into it.'
            )
        if self._has_template and (marked := self._marked()) is not None:
            return [marked]
        rows: list[_Row] = []
        for index in self.answers:
            prompt, answer, targets, mismatch = self._answer(index)
            if not rows or not self._extend(rows[-1], prompt, learn_all):
                # Targets of the row before aren't targets again.
                same = common_prefix(rows[-1].tokens, prompt) if rows else 1
                rows.append(_Row([*prompt], [False] * same + [learn_all] * (len(prompt) - same)))
            row = rows[-1]
            row.answer = len(row.tokens)
            row.tokens += answer
            row.loss_mask += [position < targets for position in range(len(answer))]
            row.mismatches += mismatch
        return [EncodedRow(row.tokens, row.loss_mask, row.mismatches) for row in rows]

    def _extend(self, row: _Row, prompt: list[int], is_target: bool) -> bool:
        """Append what the next prompt has more than a row; False: it doesn't begin with the row.

        It may do without what follows the token that ends the answer, such as an end of text after the last answer.
        """
        same = common_prefix(row.tokens, prompt)
        if same < len(row.tokens):
            ends = (k for k in range(row.answer, same) if row.loss_mask[k] and row.tokens[k] in self._special)
            end = max(ends, default=-1) + 1
            if not end or self._tokenizer.decode(row.tokens[end:]).strip():
                return False
            row.loss_mask[end:] = [False] * (len(row.loss_mask) - end)
        row.tokens[same:], row.loss_mask[same:] = prompt[same:], [is_target] * (len(prompt) - same)
        return True

    def _answer(self, index: int) -> tuple[list[int], list[int], int, bool]:
        """Ids of the prompt and of the answer, how many of the latter are targets, and whether they would merge."""
        prompt, whole = self.render(index, True), self.render(index + 1, False)
        if not whole.startswith(prompt):
            same = common_prefix(prompt, whole)
            raise UserError(
                f"the chat template writes {_quoted(whole[same:])} before the answer in message {index + 1}, where "
                f"it writes {_quoted(prompt[same:])} when the model is asked for it: correct the template, or the "
                "message."
            )
        answer = whole[len(prompt) :]
        self._check_header(index, prompt, answer)
        eos: list[int] = []
        if not self._has_template:
            eos, answer = [end_of_text(self._tokenizer)], answer.removesuffix("\n")
        before = self.ids(prompt)
        ids, mismatch = encode_continuation(self._tokenizer, before, self.ids(prompt + answer), answer)
        return before, ids + eos, len(ids) + 1 if eos else self._end(ids), mismatch

    def _end(self, answer: list[int]) -> int:
        """The number of tokens of an answer up to the one that ends it."""
        end = max((position for position, token in enumerate(answer) if token in self._special), default=-1) + 1
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

    def _marked(self) -> EncodedRow | None:
        """The conversation with the answers that the template marks; None: it marks none."""
        example = self._example
        text, spans = self._tokenizer.chat_spans(example.messages, False, example.tools)
        if not spans:
            return None
        for index, (message, is_target) in enumerate(zip(example.messages, example.loss_mask, strict=True)):
            if message.get("role") == "assistant" and not is_target:
                begin, end = (common_prefix(text, self.render(count, False)) for count in (index, index + 1))
                spans = [span for span in spans if not begin <= span[0] <= end]
        ids, offsets = self._tokenizer.encode_offsets(text)
        return EncodedRow(ids, [any(begin < last and first < end for begin, end in spans) for first, last in offsets])


@dataclass
class _Row:
    """A row that grows by answers, the latest of which begins at token `answer`."""

    tokens: list[int]
    loss_mask: list[bool]
    mismatches: int = 0
    answer: int = 0


def _quoted(text: str) -> str:
    return repr(text[:_SHOWN] + "..." * (len(text) > _SHOWN))
