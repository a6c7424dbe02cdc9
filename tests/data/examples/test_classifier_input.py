"""Texts, pairs and words as token ids, against `transformers`."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyformer.data.examples.classifier_input import encode_texts, encode_words
from anyformer.errors import UserError
from anyformer.tokenizer import Tokenizer

SENTENCE = "the cat sat on the mat, and the dogs' owners ran after it (because it was a dog)."
WORDS = st.lists(st.sampled_from([*SENTENCE.split(), "Größe", "日本", "\u200b", "…", "unbelievably"]), max_size=14)


@pytest.fixture(scope="module", params=["wordpiece:120", "bpe:300"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    from transformers import AutoTokenizer

    directory: Path = tmp_path_factory.mktemp("tokenizer")
    Tokenizer.train([SENTENCE * 9 + " …"], request.param, special="masked").save(directory)
    return Tokenizer.load(directory), AutoTokenizer.from_pretrained(directory)


@given(
    st.lists(st.tuples(WORDS.map(" ".join), st.none() | WORDS.filter(bool).map(" ".join)), min_size=1, max_size=3),
    st.none() | st.integers(5, 30),
)
def test_texts_are_encoded_as_by_transformers(
    pair: tuple[Tokenizer, Any], texts: list[tuple[str, str | None]], longest: int | None
) -> None:
    ours, theirs = pair
    for (text, second), found in zip(texts, encode_texts(ours, texts, longest), strict=True):
        parts = (text,) if second is None else (text, second)
        whole = theirs(*parts, return_token_type_ids=True)
        wanted = theirs(*parts, return_token_type_ids=True, truncation=longest is not None, max_length=longest)
        assert list(found.tokens) == wanted["input_ids"]
        assert list(found.segments) == wanted["token_type_ids"]
        assert found.cut == len(whole["input_ids"]) - len(wanted["input_ids"])


@given(WORDS.filter(bool), st.none() | st.integers(3, 30))
def test_words_have_the_first_tokens_that_transformers_gives_them(
    pair: tuple[Tokenizer, Any], words: list[str], longest: int | None
) -> None:
    ours, theirs = pair
    found = encode_words(ours, words, longest)
    assert len(found.first) == len(words)
    if "BPE" in type(ours.backend.model).__name__:
        # Words behind others begin with their space, as in a text.
        wanted: Any = theirs(" ".join(words), truncation=longest is not None, max_length=longest)
        assert list(found.tokens) == wanted["input_ids"]
        return
    wanted = theirs(words, is_split_into_words=True, truncation=longest is not None, max_length=longest)
    assert list(found.tokens) == wanted["input_ids"]
    word_ids = wanted.word_ids()
    assert list(found.first) == [word_ids.index(word) if word in word_ids else None for word in range(len(words))]


def test_every_word_of_a_byte_level_text_has_a_token(pair: tuple[Tokenizer, Any]) -> None:
    ours, _ = pair
    words = ["the", "Größe", "日本", "dog", "(because"]
    found = encode_words(ours, words)
    places = [place for place in found.first if place is not None]
    assert places == sorted(set(places))
    assert len(places) == len(words)
    assert encode_words(ours, ["", "the"]).first[0] is None


def test_special_tokens_alone_are_no_text(pair: tuple[Tokenizer, Any]) -> None:
    with pytest.raises(UserError, match="no room"):
        encode_texts(pair[0], [("the cat", "the dog")], 4)
