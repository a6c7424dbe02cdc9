"""The page that draws examples: everything on it is text, and says which tokens are learned."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from typing_extensions import override

from anyformer.data.examples import ClassifyExample
from anyformer.data.examples.chat import encode_chat_rows
from anyformer.data.examples.encoded import EncodedRow
from anyformer.data.formats import Location
from anyformer.errors import UserError
from anyformer.finetuning.check import Check
from anyformer.finetuning.preview import pieces, write_preview
from anyformer.tasks import TASKS
from anyformer.tasks.task import Encoded, EncodedText
from anyformer.tokenizer import Tokenizer
from tests.data.examples import templates
from tests.data.examples.templates import KINDS, tokenizer_of
from tests.data.examples.test_chat import answers, example_of
from tests.tokenizer.hugging_face import CORPUS

SMOLLM2 = tokenizer_of(templates.SMOLLM2, "<|im_end|>")
WHERE = Location(Path("<chats>.jsonl"), 7)
TEXT = ClassifyExample(location=WHERE, text="a")


class Page(HTMLParser):
    """The tokens of a page, as (classes, text), and all its tags and text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tokens: list[tuple[set[str], str]] = []
        self.tags: list[str] = []
        self.text = ""
        self._in_pre = self._in_style = False
        self.feed(path.read_text(encoding="utf-8"))

    @override
    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._in_pre = self._in_pre or tag == "pre"
        self._in_style = tag == "style"
        if tag == "i" and self._in_pre:
            self.tokens.append((set((dict(attrs).get("class") or "").split()), ""))

    @override
    def handle_endtag(self, tag: str) -> None:
        self._in_pre = self._in_pre and tag != "pre"
        self._in_style = False

    @override
    def handle_data(self, data: str) -> None:
        if not self._in_style:
            self.text += data
        if self._in_pre and self.tokens:
            self.tokens[-1] = (self.tokens[-1][0], self.tokens[-1][1] + data)


def test_a_conversation_is_drawn_token_by_token(tmp_path: Path):
    example = example_of("Is 1 < 2 & <b>so</b>?", "Yes,\n<script>alert(1)</script> 🙂")
    (row,) = encode_chat_rows(SMOLLM2, example)
    check = Check(TASKS["chat"], SMOLLM2)
    shown = [Encoded(example=replace(example, location=WHERE), texts=[EncodedText.of(row)])]
    check.add(*shown)
    page = Page(write_preview(tmp_path / "page.html", "<mine>", SMOLLM2, shown, {"training": check}))
    assert len(page.tokens) == len(row.tokens)
    text = "".join(text for _, text in page.tokens).replace("↵", "").replace("·", "")
    assert text == SMOLLM2.decode(row.tokens, skip_special=False)
    assert [("learned" in kinds) for kinds, _ in page.tokens] == list(row.loss_mask)
    assert [("special" in kinds) for kinds, _ in page.tokens] == [id_ in SMOLLM2.special_ids for id_ in row.tokens]
    assert not {"script", "b", "img", "link", "mine"} & set(page.tags) - {"b"}
    assert "<mine>" in page.text
    assert "<chats>.jsonl, line 7" in page.text
    assert f"{len(row.tokens)} tokens, {row.targets} learned" in page.text
    for name, value in check.facts():
        assert name in page.text
        assert value in page.text
    source = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in source
    assert "http" not in source.replace("http-equiv", "")


def test_pairs_labels_tags_and_cuts_are_drawn(tmp_path: Path):
    row = EncodedRow([1, 30, 31, 32], [False, True, True, True])
    rows = [
        Encoded(example=TEXT, texts=[EncodedText.of(row, 3, "chosen"), EncodedText.of(row, title="rejected")]),
        Encoded(example=TEXT, texts=[EncodedText(tokens=[30, 31])], label="a & b"),
        Encoded(
            example=TEXT,
            texts=[EncodedText(tokens=[30, 31, 32, 33, 34], tags=["B-person", None, "I-person", "O", "B-place"])],
        ),
    ]
    check = Check(TASKS["preference"], SMOLLM2, context=3)
    check.add(rows[0])
    page = Page(write_preview(tmp_path / "page.html", "x", SMOLLM2, rows, {"training": check, "validation": check}))
    assert [len(kinds & {"learned"}) for kinds, _ in page.tokens] == [0, 1, 1, 0, 1, 1, 1, *[0] * 7]
    # An entity is a span from the first token of its first word to the last of its last.
    assert ["entity" in kinds for kinds, _ in page.tokens[-5:]] == [True, True, True, False, True]
    for text in (
        "chosen",
        "rejected",
        "a & b",
        "Cut off: 1 more token, 1 of them to be learned. The end of the answer is lost.",
        "validation",
    ):
        assert text in page.text
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert re.findall(r'--key: var\(--c(\d)\)"(?: data-tag="(\w+)")?', text.partition("<pre>")[2]) == [
        ("0", ""),
        ("0", ""),
        ("0", "person"),
        ("1", "place"),
    ]
    assert "cut" in page.text


def test_long_texts_and_many_rows_are_not_drawn_to_the_end(tmp_path: Path):
    many = [Encoded(example=TEXT, texts=[EncodedText(tokens=[30] * 5)])] * 100
    page = Page(write_preview(tmp_path / "page.html", "x", SMOLLM2, many, {}))
    assert len(page.tokens) == 60 * 5
    long = [Encoded(example=TEXT, texts=[EncodedText(tokens=[30] * 2500)])]
    page = Page(write_preview(tmp_path / "page.html", "x", SMOLLM2, long, {}))
    assert len(page.tokens) == 2000
    assert "Not drawn: 500 more tokens" in page.text


def test_a_file_of_somebody_else_is_not_replaced(tmp_path: Path):
    (tmp_path / "page.html").write_text("mine")
    with pytest.raises(UserError, match="is there already, and no page of anyformer's"):
        write_preview(tmp_path / "page.html", "x", SMOLLM2, [], {})


@pytest.mark.parametrize("kind", KINDS)
@given(text=answers)
def test_the_pieces_of_a_text_are_the_text(kind: str, text: str):
    tokenizer = tokenizer_of(None, "</s>", kind)
    ids = tokenizer.encode(f"{text}</s>")
    assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids, skip_special=False)
    assert len(pieces(tokenizer, ids)) == len(ids)


def test_the_pieces_of_words_are_drawn_together():
    trained = Tokenizer.train(CORPUS, "wordpiece:300", special="masked")
    tokenizer = Tokenizer(trained.backend, {**trained.config, "clean_up_tokenization_spaces": True})
    assert tokenizer.cleans_up
    ids = tokenizer.encode("Speak, speak proceeding.")
    shown = pieces(tokenizer, ids)
    assert "".join(shown) == "[CLS] Speak , speak proceeding . [SEP]"
    assert len(shown) == len(ids)
