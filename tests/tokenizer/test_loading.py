"""Tokenizer files that are missing, damaged or can't be written."""

from __future__ import annotations

from pathlib import Path

import pytest

from anyformer.errors import UserError
from anyformer.tokenizer import Tokenizer, has_tokenizer
from tests.tokenizer.hugging_face import CORPUS


def test_no_tokenizer_is_none(tmp_path: Path):
    assert not has_tokenizer(tmp_path)
    assert Tokenizer.find(tmp_path) is None
    (tmp_path / "vocab.json").write_text("{}")
    assert Tokenizer.find(tmp_path) is None
    with pytest.raises(UserError, match="no tokenizer in"):
        Tokenizer.load(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        Tokenizer.load(tmp_path / "missing")
    Tokenizer.train(CORPUS, "char").save(tmp_path)
    assert has_tokenizer(tmp_path)
    assert Tokenizer.find(tmp_path) is not None
    assert Tokenizer.load(tmp_path / "tokenizer.json").vocab_size > 10


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b'{"model": ', "not valid JSON.*line 1"),
        ("tokenizer.json", b"{}", "can read"),
        ("tokenizer.json", b"[]", "JSON object"),
        ("tokenizer.json", b"\xff\xfe", "byte 0 is not UTF-8"),
        ("tokenizer_config.json", b"nonsense", "tokenizer_config.json is not valid JSON"),
        ("special_tokens_map.json", b"{", "special_tokens_map.json is not valid JSON"),
        pytest.param("tokenizer_config.json", b'{"a": ' + b"[" * 100_000, "can't be read as JSON", id="deep"),
        pytest.param("tokenizer_config.json", b'{"a": ' + b"9" * 5000 + b"}", "can't be read as JSON", id="long"),
        ("tokenizer_config.json", b'{"eos_token": {}}', "misshapen"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"x": {"content": "a"}}}', "misshapen"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": [1]}', "misshapen"),
        ("tokenizer_config.json", b'{"tokenizer_class": {}}', "misshapen"),
        ("chat_template.jinja", b"\xff{{ messages }}", "misshapen"),
        ("vocab.txt", b"hello\n", "BERT vocabulary"),
        ("spiece.model", b"not a model", "SentencePiece"),
        ("tokenizer.model", b"", "save_pretrained"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes, message: str):
    if name in ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
        Tokenizer.train(CORPUS, "char").save(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        Tokenizer.find(tmp_path)


def test_saving_where_it_cannot(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't be written"):
        Tokenizer.train(CORPUS, "char").save(tmp_path / "file")
