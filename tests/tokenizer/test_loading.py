"""Tokenizer files that are missing, damaged or can't be written."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import transformers

from anyformer.errors import UserError
from anyformer.tokenizer import Tokenizer, has_tokenizer
from anyformer.tokenizer.library import translated
from tests.tokenizer.hugging_face import CORPUS, SAMPLES, assert_same, automatic


@pytest.mark.parametrize("name", ["NllbTokenizer", "MBart50Tokenizer", "MBartTokenizer"])
def test_the_source_has_a_language(name: str, tmp_path: Path):
    """Which one is said in tokenizer_config.json, whatever language tokenizer.json was written for."""
    kind = getattr(transformers, name)
    if name == "NllbTokenizer":
        pieces = {token: id_ for id_, token in enumerate(("<s>", "<pad>", "</s>", "<unk>", "▁", "a", "▁a"))}
        theirs = kind(vocab=pieces, merges=[("▁", "a")])
    else:
        theirs = kind(vocab=[(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>", "▁", "a", "▁a")])
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    changes = [{"src_lang": None}, {"src_lang": "de_DE"}, {"src_lang": "fr_XX"}]
    if name == "NllbTokenizer":
        changes = [{"src_lang": None}, {"src_lang": "deu_Latn"}, {"src_lang": "fra_Latn", "legacy_behaviour": True}]
    for changed in changes:
        path.write_text(json.dumps(config | changed))
        expected = kind.from_pretrained(tmp_path)
        ours = Tokenizer.load(tmp_path)
        assert ours.encode("a aa") == expected("a aa")["input_ids"]
        assert ours.encode("a", second="aa") == expected("a", "aa")["input_ids"]
    path.write_text(json.dumps(config | {"src_lang": "klingon"}))
    with pytest.raises(UserError, match=r"the language 'klingon' \(src_lang\) is not in the vocabulary"):
        Tokenizer.load(tmp_path)


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


GPT2 = ["<|endoftext|>"]
ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def save_legacy_bpe(directory: Path, specials: list[str]) -> None:
    trained = Tokenizer.train(CORPUS, "bpe:380").backend
    model = json.loads(trained.to_str())["model"]
    words = [w for w in sorted(model["vocab"], key=model["vocab"].get) if w != "<|endoftext|>"]
    vocabulary = {word: id_ for id_, word in enumerate([*specials, *words])}
    (directory / "vocab.json").write_text(json.dumps(vocabulary))
    merges = "".join(f"{' '.join(pair)}\n" for pair in model["merges"])
    (directory / "merges.txt").write_text("#version: 0.2\n" + merges)


@pytest.mark.parametrize(
    ("model_type", "specials", "config"),
    [
        ("gpt2", GPT2, None),
        ("gpt2", GPT2, {"add_prefix_space": True}),
        (
            "gpt2",
            GPT2,
            {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "pad_token": "<|endoftext|>"},
        ),
        ("roberta", ROBERTA, None),
        ("bart", ROBERTA, {"tokenizer_class": "BartTokenizer", "add_prefix_space": True}),
        (
            "qwen2",
            GPT2,
            {"tokenizer_class": "Qwen2Tokenizer", "pad_token": "<|endoftext|>", "bos_token": None},
        ),
    ],
)
def test_legacy_byte_bpe(tmp_path: Path, model_type: str, specials: list[str], config: dict[str, Any] | None):
    save_legacy_bpe(tmp_path, specials)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours = Tokenizer.load(tmp_path)
    assert_same(ours, tmp_path)
    out = tmp_path / "saved"
    ours.save(out)
    (out / "config.json").write_text(json.dumps({"model_type": model_type}))
    assert (out / "tokenizer.json").exists()
    assert_same(ours, out)
    assert_same(Tokenizer.load(out), out)


@pytest.mark.parametrize("config", [None, {"do_lower_case": False}, {"strip_accents": False}])
def test_legacy_wordpiece(tmp_path: Path, config: dict[str, Any] | None):
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "speak",
        "Speak",
        "über",
        "uber",
        "##ing",
        ",",
        ".",
        "a",
        "b",
    ]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours = Tokenizer.load(tmp_path)
    samples = ["Speak, speaking. ÜBER a b", *SAMPLES]
    assert_same(ours, tmp_path, samples)
    assert ours.encode("a", second="b") == automatic(tmp_path)("a", "b")["input_ids"]
    ours.save(tmp_path)
    assert_same(Tokenizer.load(tmp_path), tmp_path, samples)


def test_an_explicit_lower_casing_wins_over_tokenizer_json(tmp_path: Path):
    Tokenizer.train(CORPUS, "wordpiece:300", special="masked").save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True})
    )
    assert_same(Tokenizer.load(tmp_path), tmp_path)


def test_the_special_tokens_map_and_added_tokens_of_old_directories(tmp_path: Path):
    save_legacy_bpe(tmp_path, GPT2)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    (tmp_path / "special_tokens_map.json").write_text(
        json.dumps({"pad_token": "<|pad|>", "eos_token": {"content": "<|end|>", "lstrip": False, "rstrip": True}})
    )
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|new|>": 381, "<|end|>": 380}))
    ours = Tokenizer.load(tmp_path)
    samples = [*SAMPLES, "a <|new|> b <|end|>  c <|pad|>"]
    assert_same(ours, tmp_path, samples)
    ours.save(tmp_path / "saved")
    (tmp_path / "saved" / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    assert_same(Tokenizer.load(tmp_path / "saved"), tmp_path / "saved", samples)


def test_an_unknown_legacy_class_is_refused(tmp_path: Path):
    save_legacy_bpe(tmp_path, GPT2)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CTRLTokenizer"}))
    with pytest.raises(UserError, match="CTRLTokenizer"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "a" * 3000}))
    with pytest.raises(UserError, match=r"and a{197}\.\.\. can't"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "merges.txt").write_text("a b c d\n")
    with pytest.raises(UserError, match="can't be read"):
        Tokenizer.load(tmp_path)
