"""Examples for fine-tuning and evaluation: what the rows of a data set say, whatever their columns are called."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Task = Literal["text", "chat", "completion", "preference", "classify", "tag", "embed", "seq2seq"]
"""What a model learns from examples."""

TASKS: Mapping[Task, str] = {
    "text": "the next token of plain text",
    "chat": "the assistant's answers in conversations",
    "completion": "completions of prompts",
    "preference": "the better one of two answers (DPO)",
    "classify": "one label, several labels or a number for a text or a pair of texts",
    "tag": "a label for each word",
    "embed": "vectors that are near for texts of the same meaning",
    "seq2seq": "to rewrite a source, as in translation and summaries",
}

Message = Mapping[str, Any]
"""``{"role": "user", "content": "..."}``, as chat templates read it; may have tool_calls."""


@dataclass(frozen=True, slots=True)
class Where:
    """The place that an example was read from."""

    path: Path
    number: int
    """Of the line or row, from 1."""
    kind: Literal["line", "row"] = "line"

    def __str__(self) -> str:
        return f"{self.path}, {self.kind} {self.number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextExample:
    """Plain text, every token of which is learned."""

    where: Where
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatExample:
    """A conversation.

    Attributes:
        messages: All of them, the system message first if there is one.
        learned: For each message whether it is learned; only messages of the assistant are.
        tools: Descriptions of functions that the template shows to the model.
    """

    where: Where
    messages: Sequence[Message]
    learned: Sequence[bool]
    tools: Sequence[Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionExample:
    """A text in segments, each with whether it is learned; the end of text comes after the last one.

    A prompt and its completion are two: ``((prompt, False), (completion, True))``.
    """

    where: Where
    segments: Sequence[tuple[str, bool]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceExample:
    """Two answers to the same prompt, the better one first; both are conversations, or both are texts."""

    where: Where
    chosen: ChatExample | CompletionExample
    rejected: ChatExample | CompletionExample


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifyExample:
    """A text, or a pair of texts, and what is to be said about it.

    Attributes:
        label: A name, several names, or a number to be predicted (regression); None: unknown.
    """

    where: Where
    text: str
    second: str | None = None
    label: str | tuple[str, ...] | float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TagExample:
    """Words with a tag each, such as B-person, I-person and O."""

    where: Where
    words: Sequence[str]
    tags: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedExample:
    """Texts whose vectors are compared.

    Attributes:
        texts: A pair; an anchor, a text like it and texts unlike it; or one text with a label.
        score: How similar a pair is, from -1 to 1.
        label: The class of a text, or of a pair.
    """

    where: Where
    texts: Sequence[str]
    score: float | None = None
    label: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Seq2SeqExample:
    """A source, and the target to write for it."""

    where: Where
    source: str
    target: str


Example = (
    TextExample
    | ChatExample
    | CompletionExample
    | PreferenceExample
    | ClassifyExample
    | TagExample
    | EmbedExample
    | Seq2SeqExample
)
