"""Directories without tokenizer.json: vocab.json and merges.txt, vocab.txt, and the maps of special tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from anyformer.errors import UserError
from anyformer.tokenizer import Tokenizer
from tests.tokenizer.hugging_face import CORPUS, SAMPLES, assert_same, automatic

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
