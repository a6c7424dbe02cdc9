"""Texts as a program holds them: lists and columns of data frames, but no frames."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anyformer.errors import UserError
from anyformer.tokenizer import Tokenizer
from anyformer.tokenizer.texts import texts_of


def test_texts_in_every_form() -> None:
    pandas, datasets = pytest.importorskip("pandas"), pytest.importorskip("datasets")
    texts = ["a film", "a play"]
    column = datasets.Dataset.from_dict({"text": texts})["text"]
    for value in (texts, tuple(texts), iter(texts), np.array(texts), pandas.Series(texts), column):
        assert texts_of(value) == texts
    assert texts_of("a film") == ["a film"]
    assert texts_of([]) == []
    ids = torch.tensor([[1, 2], [3, 4]])
    assert [list(each) for each in texts_of(ids, lists=True)] == [[1, 2], [3, 4]]
    assert texts_of([[1, 2], "a"], lists=True) == [[1, 2], "a"]


@pytest.mark.parametrize("lists", [False, True])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"text": "a"}, r"A dict has columns, and texts are one of them: give that, such as data\['text'\]\."),
        (None, "Give a text or a list of texts, not a NoneType"),
        (float("nan"), "not a float"),
        (5, "not a int"),
        (b"a", "not a bytes"),
        (Path("a"), "not a .*Path"),
        (["a", "b", None], "^Text 3 of 3 is no text: it is of type NoneType.$"),
        (["a", float("nan")], "Text 2 of 2 is no text: it is of type float"),
        ([b"a"], "Text 1 of 1 is no text: it is of type bytes"),
        ([{"text": "a"}], r"Text 1 of 1 is no text: it is of type dict: .* such as row\['text'\]"),
        ([{}], "it is of type dict.$"),
        ([{"role": "user", "content": "hi"}], "a message: `anyformer.generation.Conversation` answers those"),
    ],
)
def test_what_is_no_text_is_one_sentence(value: Any, message: str, lists: bool) -> None:
    with pytest.raises(UserError, match=message):
        texts_of(value, lists=lists)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_frames_are_asked_for_a_column(library: str) -> None:
    frame = pytest.importorskip(library).DataFrame({"review": ["a", None], "stars": [1, 2]})
    with pytest.raises(UserError, match=r"A DataFrame has columns, .* such as data\['review'\]"):
        texts_of(frame)
    with pytest.raises(UserError, match="Text 2 of 2 is no text"):
        texts_of(frame["review"])
    assert texts_of(frame["review"][:1]) == ["a"]


def test_data_sets_are_asked_for_a_column() -> None:
    rows = {"review": ["a", "b"], "stars": [1, 2]}
    data = pytest.importorskip("datasets").Dataset.from_dict(rows)
    with pytest.raises(UserError, match=r"A Dataset has columns, .* such as data\['review'\]"):
        texts_of(data)


def test_encode_says_what_it_takes() -> None:
    tokenizer = Tokenizer.train(["a film, a play"], "bpe:300")
    for value, kind in ((["a", "b"], "list"), (None, "NoneType"), (5, "int")):
        given: Any = value
        with pytest.raises(UserError, match=f"`encode` takes one text, not a {kind}: `encode_batch` takes a list"):
            tokenizer.encode(given)
    wrong: Any = ["a", None]
    with pytest.raises(UserError, match="Text 2 of 2 is no text"):
        tokenizer.encode_batch(wrong)
