"""Rows to examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, cast

from anyformer.data.examples import (
    ChatExample,
    ClassifyExample,
    CompletionExample,
    EmbedExample,
    Example,
    Message,
    Seq2SeqExample,
    TagExample,
    TextExample,
)
from anyformer.data.examples.messages import conversation, read_messages, text_or_messages
from anyformer.data.examples.parts import Parts, as_list, as_object, as_text, fault, from_json, kind_of
from anyformer.data.examples.preferences import preference
from anyformer.data.examples.tasks import Reading
from anyformer.data.rows import Row
from anyformer.errors import UserError, quote


def to_example(row: Row, reading: Reading) -> Example:
    """Make an example of a row.

    Labels, tags and scores are as the row has them; `labels.py` makes names and numbers of them, for which all must be
    known.

    Raises:
        UserError: The row lacks a part, or has a faulty one.
    """
    return BUILDERS[reading.shape.kind](Parts(row, reading))


def _text(parts: Parts) -> TextExample:
    return TextExample(where=parts.where, text=parts.text("text", empty=True))


def _chat(parts: Parts) -> ChatExample:
    place = f"its column {quote(parts.column('messages'))}"
    messages, learned = read_messages(parts.value("messages"), parts.where, place)
    return conversation(parts, messages, learned)


def _alpaca(parts: Parts) -> ChatExample:
    messages, learned = list[Message](), list[bool]()

    def say(question: str, answer: str) -> None:
        messages.extend(({"role": "user", "content": question}, {"role": "assistant", "content": answer}))
        learned.extend((False, True))

    if parts.has("history"):
        place = f"its column {quote(parts.column('history'))}"
        history = from_json(parts.get("history"), parts.where, place)
        for number, turn in enumerate(as_list(history, parts.where, place) if history != [] else [], start=1):
            own = f"turn {number} of {place}"
            both = as_list(turn, parts.where, own)
            if len(both) != 2:
                raise fault(parts.where, f"has {len(both)} texts in {own}", "a turn is a question and its answer")
            say(as_text(both[0], parts.where, own), as_text(both[1], parts.where, own))
    more = parts.text("input", empty=True)
    instruction = parts.text("instruction", empty=bool(more.strip()))
    say("\n".join(filter(None, (instruction, more))), parts.text("output"))
    return conversation(parts, messages, learned)


def _completion(parts: Parts) -> CompletionExample:
    prompt = parts.text("prompt", empty=True)
    segments = (((prompt, False),) if prompt else ()) + ((parts.text("completion"), True),)
    return CompletionExample(where=parts.where, segments=segments)


def _conversation(parts: Parts) -> ChatExample:
    """A prompt and its completion as messages."""
    messages, learned = list[Message](), list[bool]()
    for part, role in (("prompt", "user"), ("completion", "assistant")):
        place = f"its column {quote(parts.column(part))}"
        found = text_or_messages(parts.value(part), parts.where, place)
        if isinstance(found, str):
            messages.append({"role": role, "content": as_text(found, parts.where, place)})
            learned.append(role == "assistant")
        else:
            messages += found[0]
            learned += found[1] if part == "completion" else [False] * len(found[0])
    if not any(message["role"] == "assistant" for message in messages[-1:]):
        raise fault(parts.where, f"has no answer of the assistant at the end of its column {quote(parts.column(part))}")
    return conversation(parts, messages, learned)


def _segments(parts: Parts) -> CompletionExample:
    place, found = f"its column {quote(parts.column('segments'))}", list[tuple[str, bool]]()
    for number, each in enumerate(parts.items("segments"), start=1):
        own = f"segment {number} of {place}"
        segment = as_object(each, parts.where, own)
        learned = segment.get("label")
        if not isinstance(learned, bool):
            advice = 'a segment is like {"text": "...", "label": true}'
            raise fault(parts.where, f"has neither true nor false as the label of {own}", advice)
        if text := as_text(segment.get("text"), parts.where, own, empty=True):
            found.append((text, learned))
    if not any(learned for _, learned in found):
        raise fault(parts.where, f"has no segment with the label true in {place}", "there is nothing to learn")
    return CompletionExample(where=parts.where, segments=tuple(found))


def _classify(parts: Parts) -> ClassifyExample:
    second = parts.text("second") if parts.has("second") or "second" in parts.required else None
    return ClassifyExample(where=parts.where, text=parts.text("text"), second=second, label=_label(parts))


def _label(parts: Parts) -> Any:
    """A label as the row has it: a text, a number, a boolean, or a tuple of texts or whole numbers."""
    place = f"its column {quote(parts.column('label'))}"
    value = parts.value("label")
    if isinstance(value, str) and value.lstrip().startswith("["):
        with suppress(UserError):  # a name may begin like a list, too
            value = from_json(value, parts.where, place)
    if isinstance(value, str):
        return as_text(value, parts.where, place).strip()
    if isinstance(value, list):
        for each in cast("list[object]", value):
            if not isinstance(each, str | int) or isinstance(each, bool) or each == "":
                raise fault(parts.where, f"has {kind_of(each)} in the list of {place}", "labels are names or numbers")
        return tuple(cast("list[str | int]", value))
    if not isinstance(value, bool | int | float):
        raise fault(parts.where, f"has no label in {place}", f"that is {kind_of(value)}")
    return value


def _tag(parts: Parts) -> TagExample:
    words, tags = parts.items("tokens"), parts.items("tags")
    tokens, own = f"its column {quote(parts.column('tokens'))}", f"its column {quote(parts.column('tags'))}"
    if len(words) != len(tags):
        raise fault(
            parts.where,
            f"has {len(words)} words in {tokens} and {len(tags)} tags in {own}",
            "there must be one for each word",
        )
    for word in words:
        as_text(word, parts.where, f"the list of {tokens}", empty=True)
    for tag in tags:
        if not isinstance(tag, str | int) or isinstance(tag, bool) or tag == "":
            raise fault(parts.where, f"has {kind_of(tag)} in the list of {own}", "tags are names or whole numbers")
    return TagExample(where=parts.where, words=tuple(words), tags=tuple(tags))


def _embed(parts: Parts) -> EmbedExample:
    texts = [parts.text("anchor"), parts.text("positive")]
    columns = [column for part, column in parts.required.items() if part.startswith("negative")]
    if not columns and parts.has("negative"):
        columns.append(parts.column("negative"))
    numbered = [
        name for name in parts.row.values if name.startswith("negative_") and parts.row.values[name] is not None
    ]
    for column in dict.fromkeys([*columns, *numbered]):
        place = f"its column {quote(column)}"
        value = parts.find(column)
        several = as_list(value, parts.where, place) if isinstance(value, list) else [value]
        texts += [as_text(each, parts.where, place) for each in several]
    return EmbedExample(where=parts.where, texts=tuple(texts))


def _similarity(parts: Parts) -> EmbedExample:
    """A pair with a score, or a pair or a text with a label; which of them it is, all labels tell."""
    texts = tuple(parts.text(part) for part in ("text", "second") if part in parts.required)
    if "score" in parts.required:
        return EmbedExample(where=parts.where, texts=texts, score=parts.number("score"))
    label = _label(parts)
    if isinstance(label, tuple):
        raise fault(parts.where, f"has a list in its column {quote(parts.column('label'))}", "there must be one label")
    return EmbedExample(where=parts.where, texts=texts, label=label)


def _rewrite(parts: Parts) -> Seq2SeqExample:
    return Seq2SeqExample(where=parts.where, source=parts.text("source"), target=parts.text("target"))


def _translation(parts: Parts) -> Seq2SeqExample:
    place = f"its column {quote(parts.column('translation'))}"
    found = as_object(from_json(parts.value("translation"), parts.where, place), parts.where, place)
    if len(found) != 2:
        raise fault(
            parts.where,
            f"has {len(found)} texts in {place}",
            "with others than a source and its target, name those of the source and the target",
        )
    source, target = (as_text(each, parts.where, f"{quote(name)} of {place}") for name, each in found.items())
    return Seq2SeqExample(where=parts.where, source=source, target=target)


BUILDERS: Mapping[str, Callable[[Parts], Example]] = {
    "text": _text,
    "chat": _chat,
    "alpaca": _alpaca,
    "completion": _completion,
    "conversation": _conversation,
    "segments": _segments,
    "preference": preference,
    "classify": _classify,
    "tag": _tag,
    "embed": _embed,
    "similarity": _similarity,
    "rewrite": _rewrite,
    "translation": _translation,
}
"""How an example is made, by the kind of a shape."""
