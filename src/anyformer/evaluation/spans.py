"""A tagged sentence as pieces of text, each with what it is: how a page colors its entities."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from anyformer.evaluation.metrics.tagging import entities


class Piece(NamedTuple):
    """A piece of a sentence."""

    text: str
    kind: str
    """Kind of the entity, or the tag of a single word; empty if it has none."""


class TaggedSpans(NamedTuple):
    """A sentence as it is tagged right, and as a model tagged it; the pieces of each are the whole sentence."""

    right: Sequence[Piece]
    said: Sequence[Piece]


def kind_spans(tags: Sequence[str], *, grouped: bool) -> list[tuple[str, int, int]]:
    """Kind, first word, and the word behind the last of each entity; of tags of another scheme, of each word.

    Args:
        tags: One for each word.
        grouped: Whether they make up entities, see `is_entity_scheme`.
    """
    if grouped:
        return [(each.kind, each.start, each.end) for each in entities(tags)]
    return [(tag, place, place + 1) for place, tag in enumerate(tags)]


def span_pieces(words: Sequence[str], tags: Sequence[str], *, grouped: bool) -> list[Piece]:
    """The pieces of a sentence whose words have a space between them.

    Args:
        words, tags: Of the sentence.
        grouped: As of `kind_spans`.
    """
    return list(_pieces(words, kind_spans(tags, grouped=grouped)))


def _pieces(words: Sequence[str], spans: Sequence[tuple[str, int, int]]) -> Iterator[Piece]:
    behind = 0
    for kind, start, end in (*spans, ("", len(words), len(words))):
        if plain := " ".join(words[behind:start]):
            yield Piece(f"{' ' * (behind > 0)}{plain}{' ' * (start < len(words))}", "")
        elif 0 < behind < len(words):
            yield Piece(" ", "")
        if end > start:
            yield Piece(" ".join(words[start:end]), kind)
        behind = end
