"""Pieces of tagged sentences: together they are the sentence, and each entity is one of them."""

from hypothesis import given
from hypothesis import strategies as st

from anyformer.evaluation.metrics.tagging import Piece, entities, span_pieces

TAGS = st.sampled_from(["O", "O", "B-person", "I-person", "B-place", "I-place", "S-place", "E-person"])


@given(st.lists(st.tuples(st.text("abc.", min_size=1, max_size=5), TAGS), max_size=9), st.booleans())
def test_pieces_are_the_sentence_and_its_entities(tagged: list[tuple[str, str]], grouped: bool) -> None:
    words, tags = [word for word, _ in tagged], [tag for _, tag in tagged]
    pieces = span_pieces(words, tags, grouped=grouped)
    assert "".join(piece.text for piece in pieces) == " ".join(words)
    found = [piece for piece in pieces if piece.kind]
    if grouped:
        assert found == [Piece(" ".join(words[each.start : each.end]), each.kind) for each in entities(tags)]
    else:
        assert found == [Piece(*pair) for pair in tagged]


def test_an_example() -> None:
    words, tags = ["I", "saw", "Ann", "Lee", "in", "Rome", "."], ["O", "O", "B-person", "I-person", "O", "B-place", "O"]
    assert span_pieces(words, tags, grouped=True) == [
        ("I saw ", ""),
        ("Ann Lee", "person"),
        (" in ", ""),
        ("Rome", "place"),
        (" .", ""),
    ]
