"""Examples for fine-tuning and evaluation: what the rows of a data set say, whatever their columns are called."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

from typing_extensions import override

from anyformer.data.formats import Location
from anyformer.errors import UserError
from anyformer.tokenizer.core import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A row of a data set, as a task reads it."""

    location: Location

    @property
    def content(self) -> object:
        """All that it says, without its location."""
        values = (getattr(self, each.name) for each in fields(self) if each.name != "location")
        return [value.content if isinstance(value, Example) else value for value in values]

    @property
    def question(self) -> object:
        """The question without the answer: examples with equal questions are on one side of a split."""
        return self.content

    @contextmanager
    def locating_errors(self) -> Generator[None]:
        """Name the location in each UserError that is raised within."""
        try:
            yield
        except UserError as error:
            raise UserError(f"{self.location}: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class TextExample(Example):
    """Plain text, every token of which is a target."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatExample(Example):
    """A conversation.

    Attributes:
        messages: All of them, the system message first if there is one.
        loss_mask: For each message whether its tokens are targets; only messages of the assistant are.
        tools: Descriptions of functions that the template shows to the model.
    """

    messages: Sequence[Message]
    loss_mask: Sequence[bool]
    tools: Sequence[Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionExample(Example):
    """A text in segments, each with whether its tokens are targets; the end of text comes after the last one.

    A prompt and its completion are two: ``((prompt, False), (completion, True))``.
    """

    segments: Sequence[tuple[str, bool]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceExample(Example):
    """Two answers to the same prompt, the better one first; both are conversations, or both are texts."""

    chosen: ChatExample | CompletionExample
    rejected: ChatExample | CompletionExample


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifyExample(Example):
    """A text, or a pair of texts, and what is to be said about it.

    Attributes:
        label: A name, several names, or a number to be predicted (regression); None: unknown.
    """

    text: str
    second: str | None = None
    label: str | tuple[str, ...] | float | None = None

    @property
    @override
    def question(self) -> object:
        return self.text, self.second


@dataclass(frozen=True, slots=True, kw_only=True)
class TagExample(Example):
    """Words with a tag each, such as B-person, I-person and O."""

    words: Sequence[str]
    tags: Sequence[str]

    @property
    @override
    def question(self) -> object:
        return tuple(self.words)


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedExample(Example):
    """Texts whose vectors are compared.

    Attributes:
        texts: A pair; an anchor, a text like it and texts unlike it; or one text with a label.
        score: How similar a pair is, from -1 to 1.
        label: The class of a text, or of a pair.
    """

    texts: Sequence[str]
    score: float | None = None
    label: str | None = None

    @property
    @override
    def question(self) -> object:
        return tuple(self.texts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seq2SeqExample(Example):
    """A source, and the target to write for it."""

    source: str
    target: str

    @property
    @override
    def question(self) -> object:
        return self.source
