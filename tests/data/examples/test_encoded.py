from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyformer.config import SpecialTokens
from anyformer.data.examples import CompletionExample
from anyformer.data.examples.encoded import (
    EncodedRow,
    Truncation,
    encode_completion,
    encode_texts,
    encode_words,
    truncate,
)
from anyformer.data.formats import Location
from anyformer.errors import UserError
from anyformer.tokenizer import Tokenizer
from anyformer.tokenizer.prompt import encode_decoder_prompt
from tests.data.examples.templates import KINDS, tokenizer_of
from tests.data.examples.test_chat import answers, texts


@given(st.lists(st.booleans(), max_size=20), st.one_of(st.none(), st.integers(0, 25)))
def test_what_is_cut_off_is_counted(learned: list[bool], context: int | None):
    row = EncodedRow(list(range(len(learned))), learned, 2)
    kept, cut = truncate(row, context)
    length = len(learned) if context is None else min(context, len(learned))
    assert list(kept.tokens) == list(range(length))
    assert list(kept.loss_mask) == learned[:length]
    assert kept.mismatches == 2
    assert cut.tokens == len(learned) - length
    assert cut.targets == row.targets - kept.targets
    assert cut.lost_end == (cut.targets > 0)
    assert cut.lost_all == (row.targets > 0 and kept.targets == 0)
    if cut.tokens == 0:
        assert (kept, cut) == (row, Truncation())


WHERE = Location(Path("pairs.jsonl"), 3)


def example_of(*segments: tuple[str, bool]) -> CompletionExample:
    return CompletionExample(location=WHERE, segments=segments)


@pytest.mark.parametrize("kind", KINDS)
@given(prompt=texts, completion=answers)
@settings(max_examples=150)
def test_a_completion_stands_behind_the_prompt_of_generation_and_ends(kind: str, prompt: str, completion: str):
    tokenizer = tokenizer_of(None, "</s>", kind)
    row = encode_completion(tokenizer, example_of((prompt, False), (completion, True)))
    ids = encode_decoder_prompt(tokenizer, prompt)
    assert list(row.tokens[: len(ids)]) == ids
    assert list(row.loss_mask) == [False] * len(ids) + [True] * (len(row.tokens) - len(ids))
    assert row.tokens[-1] == tokenizer.eos
    assert row.tokens.count(tokenizer.bos or 0) == 1
    whole = tokenizer.encode(prompt + completion)
    assert (list(row.tokens[:-1]) == whole) == (row.mismatches == 0)
    if kind == "byte_bpe":
        assert tokenizer.decode(row.tokens) == prompt + completion
    everything = encode_completion(tokenizer, example_of((prompt, False), (completion, True)), learn_all=True)
    assert list(everything.tokens) == list(row.tokens)
    assert list(everything.loss_mask) == [False] + [True] * (len(row.tokens) - 1)


@given(st.lists(st.tuples(texts, st.booleans()), min_size=1, max_size=5))
@settings(max_examples=150)
def test_segments_are_learned_as_they_say(segments: list[tuple[str, bool]]):
    tokenizer = tokenizer_of(None, "</s>")
    row = encode_completion(tokenizer, example_of(*segments))
    assert tokenizer.decode(row.tokens) == "".join(text for text, _ in segments)
    assert (row.tokens[-1], row.loss_mask[-1]) == (tokenizer.eos, True)
    learned = [token for token, flag in zip(row.tokens, row.loss_mask, strict=True) if flag]
    assert tokenizer.decode(learned) == "".join(text for text, flag in segments if flag)


def test_an_end_that_is_there_is_not_written_twice():
    tokenizer = tokenizer_of(None, "</s>")
    row = encode_completion(tokenizer, example_of(("a", False), ("b</s>", True)))
    assert list(row.tokens) == tokenizer.encode("ab</s>")


def test_an_empty_prompt_begins_as_in_generation():
    tokenizer = tokenizer_of(None, "</s>")
    row = encode_completion(tokenizer, example_of(("Speak", True)))
    assert list(row.tokens) == [*tokenizer.encode("Speak"), 2]
    bare = Tokenizer(tokenizer.backend, {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"})
    cast("Any", bare.backend).post_processor = None
    row = encode_completion(bare, example_of(("Speak", True)), special_tokens=SpecialTokens(bos=5))
    assert list(row.tokens) == [5, *tokenizer.encode("Speak", special=False), 2]
    with pytest.raises(UserError, match=r"^pairs.jsonl, line 3: the prompt is empty, and the model has no beginning"):
        encode_completion(bare, example_of(("", False), ("a", True)))
    bare.eos = None
    with pytest.raises(UserError, match=r"^pairs.jsonl, line 3: the tokenizer has no end-of-text token"):
        encode_completion(bare, example_of(("a", False), ("a", True)))
    with pytest.raises(
        UserError, match=r"^pairs.jsonl, line 3: the tokenizer has no end-of-text token.*declare eos_token"
    ):
        encode_completion(bare, example_of(("a", False), ("a", True)))
    characters = Tokenizer.train(["abc"], "char")
    with pytest.raises(UserError, match=r"no end-of-text token.*--tokenizer bpe:2048 has one\.$"):
        encode_completion(characters, example_of(("a", False), ("b", True)))


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
