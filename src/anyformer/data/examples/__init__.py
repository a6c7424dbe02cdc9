"""Examples for fine-tuning and evaluation: what the rows of a data set say, whatever their columns are called.

Some are held out for validation, and some are there twice.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
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


SHARE = 0.1
"""Share of the examples that is held out."""

Twice = tuple[Location, Location]
"""The locations of an example, and of one that says the same."""


def held_out(
    examples: Sequence[Example],
    share: float = SHARE,
    seed: int = 0,
    label: Callable[[Any], object] | None = None,
) -> tuple[list[Example], list[Example]]:
    """Split examples for training and validation, by a hash of their content.

    Examples that say the same, or ask the same of a classifier, a tagger or a translator, are on the same side. The
    split depends on nothing but the examples, the share (of the different ones; at least one is held out) and the seed.
    Given the label of an example, each label with two different examples or more is on both sides, for which more than
    the share may be held out.

    Raises UserError for a share that is not between 0 and 1, or where there are no two different examples.
    """
    if not 0 < share < 1:
        raise UserError(f"The share of examples that are held out must be between 0 and 1, not {share:g}.")
    salt = seed.to_bytes(8, "little", signed=True)
    keys = [hashlib.blake2b(_hash(each.question), digest_size=16, salt=salt).digest() for each in examples]
    ranked = sorted(set(keys))
    if len(ranked) < 2:
        raise UserError(
            "There are no two different examples, so that none can be held out: give examples for validation."
        )
    out = {*ranked[: min(max(round(share * len(ranked)), 1), len(ranked) - 1)]}
    if label is not None:
        classes = defaultdict[object, set[bytes]](set)
        for example, key in zip(examples, keys, strict=True):
            classes[label(example)].add(key)
        for own in classes.values():
            if len(own) > 1 and not own & out:
                out.add(min(own))
        for own in classes.values():
            if own <= out and len(out) > 1:
                out.remove(max(own))
    sides: tuple[list[Example], list[Example]] = [], []
    for example, key in zip(examples, keys, strict=True):
        sides[key in out].append(example)
    return sides


def duplicates(examples: Iterable[Example]) -> list[Twice]:
    """Examples that say the same as one before, label included, each with the first that does."""
    first = dict[bytes, Location]()
    pairs = [(first.setdefault(digest(each), each.location), each.location) for each in examples]
    return [(before, location) for before, location in pairs if before is not location]


def overlap(training: Iterable[Example], validation: Iterable[Example]) -> list[Twice]:
    """Examples for validation that ask the same as one for training, each with the first that does."""
    first = dict[bytes, Location]()
    for example in training:
        first.setdefault(_hash(example.question), example.location)
    keys = ((_hash(example.question), example.location) for example in validation)
    return [(first[key], location) for key, location in keys if key in first]


def digest(example: Example) -> bytes:
    """A hash of all that an example says."""
    return _hash(example.content)


def _hash(content: object) -> bytes:
    return hashlib.blake2b(repr(content).encode("utf-8", "surrogatepass"), digest_size=16).digest()
