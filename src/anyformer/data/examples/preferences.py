"""Preferences: two answers to a prompt, in all the ways that data sets write them."""

from __future__ import annotations

from collections.abc import Sequence

from anyformer.data.examples import ChatExample, CompletionExample, Message, PreferenceExample
from anyformer.data.examples.messages import conversation, text_or_messages
from anyformer.data.examples.parts import Parts, fault
from anyformer.errors import quote

_ASKED = ("instruction", "question", "input")
"""Columns of what a user asks an assistant; a column `prompt` of texts has texts that are continued."""


def preference(parts: Parts) -> PreferenceExample:
    """A pair of texts after a text; or of conversations, where any of its parts is one, or an instruction.

    Raises:
        UserError: A part is faulty, or the answers don't differ.
    """
    chosen, rejected = _messages(parts, "chosen"), _messages(parts, "rejected")
    if chosen == rejected:
        raise fault(parts.where, "has the same answer twice", "one of the two must be the better one")
    prompt = _messages(parts, "prompt") if parts.has("prompt") else None
    if isinstance(chosen, str) and isinstance(rejected, str):
        if prompt is None:
            return _text_preference(parts, *_shared_text(chosen, rejected))
        if isinstance(prompt, str) and parts.column("prompt") not in _ASKED and not parts.has("system"):
            return _text_preference(parts, prompt, chosen, rejected)
    return _conversations(parts, prompt, chosen, rejected)


def _text_preference(parts: Parts, prompt: str, chosen: str, rejected: str) -> PreferenceExample:
    """A pair of texts after a text. Raises UserError where one of them is empty."""
    if not chosen.strip() or not rejected.strip():
        raise fault(parts.where, "has an empty answer", "fill it in, or leave the row out")
    sides = [
        CompletionExample(where=parts.where, segments=(((prompt, False),) if prompt else ()) + ((text, True),))
        for text in (chosen, rejected)
    ]
    return PreferenceExample(where=parts.where, chosen=sides[0], rejected=sides[1])


def _messages(parts: Parts, part: str) -> str | list[Message]:
    found = text_or_messages(parts.value(part), parts.where, f"its column {quote(parts.column(part))}")
    return found if isinstance(found, str) else found[0]


def _shared_text(chosen: str, rejected: str) -> tuple[str, str, str]:
    """The text that both answers begin with, up to the last whole word, and what follows in each."""
    pairs = enumerate(zip(chosen, rejected, strict=False))
    begin = next((index for index, (one, other) in pairs if one != other), min(len(chosen), len(rejected)))
    # A word that one of them goes on with belongs to the answer, with the space before it.
    while begin and not chosen[begin - 1].isspace():
        begin -= 1
    while begin and chosen[begin - 1] == " ":
        begin -= 1
    return chosen[:begin], chosen[begin:], rejected[begin:]


def _conversations(
    parts: Parts,
    prompt: str | Sequence[Message] | None,
    chosen: str | Sequence[Message],
    rejected: str | Sequence[Message],
) -> PreferenceExample:
    if isinstance(prompt, str):
        more = parts.text("input", empty=True) if parts.column("prompt") != "input" else ""
        prompt = [{"role": "user", "content": f"{prompt}\n{more}" if more else prompt}]
    sides: list[Sequence[Message]] = [
        [{"role": "assistant", "content": side}] if isinstance(side, str) else side for side in (chosen, rejected)
    ]
    if prompt is None or all(side[0]["role"] != "assistant" for side in sides):
        # The prompt is what both begin with.
        pairs = enumerate(zip(*sides, strict=False))
        count = next((index for index, (one, other) in pairs if one != other), min(map(len, sides)))
        prompt, sides = sides[0][:count], [side[count:] for side in sides]
    return PreferenceExample(
        where=parts.where,
        chosen=_side(parts, prompt, sides[0], "chosen"),
        rejected=_side(parts, prompt, sides[1], "rejected"),
    )


def _side(parts: Parts, prompt: Sequence[Message], answer: Sequence[Message], name: str) -> ChatExample:
    own = [message["role"] == "assistant" for message in answer]
    if not any(own):
        raise fault(parts.where, f"has no answer of the assistant in its column {quote(parts.column(name))}")
    for message in answer:
        if message["role"] == "assistant" and not message["content"].strip() and "tool_calls" not in message:
            raise fault(parts.where, f"has an empty answer in its column {quote(parts.column(name))}")
    return conversation(parts, [*prompt, *answer], [False] * len(prompt) + own)
