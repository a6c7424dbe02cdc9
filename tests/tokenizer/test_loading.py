"""Tokenizer files that are missing, damaged or can't be written."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from anyformer.errors import UserError
from anyformer.tokenizer import Tokenizer, has_tokenizer
from anyformer.tokenizer.library import translated
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
        ("tokenizer.json", b'{"model": ', "is not JSON.*line 1"),
        ("tokenizer.json", b"{}", "can read"),
        ("tokenizer.json", b"[]", "JSON object"),
        ("tokenizer.json", b"\xff\xfe", "is not JSON: byte 0 is not UTF-8"),
        ("tokenizer_config.json", b"nonsense", "tokenizer_config.json is not JSON"),
        ("special_tokens_map.json", b"{", "special_tokens_map.json is not JSON"),
        pytest.param("tokenizer_config.json", b'{"a": ' + b"[" * 100_000, "nested more than 100 levels", id="deep"),
        pytest.param("tokenizer_config.json", b'{"a": ' + b"9" * 5000 + b"}", "is not JSON: Exceeds", id="long"),
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


def test_many_added_tokens_take_no_longer_each(tmp_path: Path):
    """Each call that adds tokens makes the automaton that finds them anew."""
    Tokenizer.train(CORPUS, "bpe:400").save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())

    def seconds(count: int) -> float:
        tokens = {str(400 + i): {"content": f"<token {i}>", "special": i % 2 == 0} for i in range(count)}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "added_tokens_decoder": tokens}))
        start = time.process_time()
        tokenizer = Tokenizer.load(tmp_path)
        taken = time.process_time() - start
        assert tokenizer.encode("<token 7>") == [407]
        assert (406 in tokenizer.special_ids, 407 in tokenizer.special_ids) == (True, False)
        return taken

    assert min(seconds(20_000) for _ in range(3)) < 60 * min(seconds(2_000) for _ in range(3))


@pytest.mark.parametrize("part", ["pre_tokenizer", "normalizer"])
def test_a_regular_expression_that_takes_too_many_steps_is_a_sentence(tmp_path: Path, part: str):
    Tokenizer.train(CORPUS, "bpe:400").save(tmp_path)
    pipeline = json.loads((tmp_path / "tokenizer.json").read_text())
    pattern = {"pattern": {"Regex": "(a|aa)+$"}}
    parts = {
        "pre_tokenizer": {"type": "Split", **pattern, "behavior": "Isolated", "invert": False},
        "normalizer": {"type": "Replace", **pattern, "content": ""},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps({**pipeline, part: parts[part]}))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.decode(tokenizer.encode("ab"))
    for encode in (tokenizer.encode, tokenizer.encode_parts, lambda text: tokenizer.encode_batch([text])):
        with pytest.raises(UserError, match=r"can't be encoded with this tokenizer: .*retry-limit-in-match"):
            encode("a" * 60 + "b")


@pytest.mark.parametrize("ids", [[-1], [10**12], [1.5], ["a"], [None], [[1]]])
def test_what_is_not_an_id_is_a_sentence(ids: list[Any]):
    tokenizer = Tokenizer.train(CORPUS, "bpe:400")
    with pytest.raises(UserError, match="can't be decoded"):
        tokenizer.decode(ids)
    assert [tokenizer.token(id_) for id_ in (-1, 10**12)] == [None, None]


def test_an_interruption_is_not_taken_for_a_mistake():
    for interruption in (KeyboardInterrupt, SystemExit, GeneratorExit):
        with pytest.raises(interruption), translated("x"):
            raise interruption
