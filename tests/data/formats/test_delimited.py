from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyformer.data.formats.delimited import sentences
from anyformer.data.input_files import opened
from anyformer.errors import UserError

word = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=6).filter(lambda w: w[0] not in "#-")
tag = st.sampled_from(["O", "B-person", "I-person"])


def read(content: str | bytes, limit: int = 1000) -> list[tuple[int, list[str], list[str]]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.conll")
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        with opened(path) as file:
            return list(sentences(file, path, limit))


@settings(max_examples=60)
@given(
    rows=st.lists(st.lists(st.tuples(word, tag), min_size=1, max_size=4), max_size=4),
    separator=st.sampled_from(["\t", " ", " NN I-NP "]),
    blank=st.sampled_from(["", "\t", "-DOCSTART-\tO", "\n"]),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_sentences_are_given_back(rows: list[list[tuple[str, str]]], separator: str, blank: str, end: str):
    lines = [line for row in rows for line in (*(f"{w}{separator}{t}" for w, t in row), *blank.split("\n"))]
    found = read("\ufeff" + end.join(lines) + end)
    assert [list(zip(words, tags, strict=True)) for _, words, tags in found] == rows
    for number, words, _ in found:
        assert lines[number - 1].startswith(words[0])


def test_a_hash_may_begin_a_comment_or_a_word():
    assert read("# id = 1\n#tag\tO\n# O O\nb\tO\n\n#\tO\n") == [(2, ["#tag", "b"], ["O", "O"]), (6, ["#"], ["O"])]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\tO\nb\n", r"a\.conll, line 2, has a word without a tag"),
        ("a\tO\nb\t\n", r"a\.conll, line 2, has a word without a tag"),
        ("a\tO\n\tO\n", r"a\.conll, line 2, has a tag without a word"),
        ("a\tO\nb c\tNN\tO\n", r"a\.conll, line 2, has 3 columns, and the lines before have 2"),
        (b"a\tO\n\xff\tO\n", r"a\.conll, line 2, is not UTF-8 text: byte 4"),
        ("a\tO\n" * 300, r"a\.conll, line 1, has more than 1,000 bytes"),
        ("x" * 2000, r"a\.conll, line 1, has more than 1,000 bytes"),
    ],
)
def test_faults_are_named(content: str | bytes, message: str):
    with pytest.raises(UserError, match=message):
        read(content)
