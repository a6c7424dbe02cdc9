"""SentencePiece models, as T5 and Marian save them, against `transformers`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from anyformer.errors import UserError
from anyformer.tokenizer import Tokenizer
from tests.examples import examples
from tests.tokenizer.hugging_face import (
    CORPUS,
    SAMPLES,
    anything,
    assert_equal,
    assert_same_roles,
    automatic,
    sentencepiece_model,
)


@pytest.mark.parametrize("config", [None, {"extra_ids": 5}])
def test_sentencepiece_of_t5(tmp_path: Path, config: dict[str, Any] | None):
    pytest.importorskip("google.protobuf")
    sentencepiece_model(tmp_path, "spiece", CORPUS, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours = Tokenizer.load(tmp_path)
    samples = [*SAMPLES, "a <extra_id_0> b <extra_id_4>", "ﬁne ①"]
    theirs = automatic(tmp_path)
    assert_same_roles(ours, theirs)
    for text in samples:
        assert_equal(ours, theirs, text)
    assert ours.encode("a", second="b") == theirs("a", "b")["input_ids"]


@pytest.mark.parametrize("config", [{}, {"do_lower_case": True}, {"split_by_punct": True}])
def test_sentencepiece_of_deberta(tmp_path: Path, config: dict[str, Any]):
    pytest.importorskip("google.protobuf")
    ids, pieces = {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3}, {"pad_piece": "[PAD]", "bos_piece": "[CLS]"}
    sentencepiece_model(tmp_path, "spm", CORPUS, **ids, **pieces, eos_piece="[SEP]", unk_piece="[UNK]")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "deberta-v2"}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"vocab_type": "spm", **config}))
    ours, theirs = Tokenizer.load(tmp_path), automatic(tmp_path)
    assert [ours.pad, ours.cls, ours.sep, ours.unk, ours.mask] == [0, 1, 2, 3, theirs.mask_token_id]
    assert ours.vocab_size == len(theirs)
    for text in SAMPLES:
        assert_equal(ours, theirs, text)
    assert ours.encode("a", second="b") == theirs("a", "b")["input_ids"]
    # The characters are those of the model's own table, which transformers 5 leaves aside.
    assert ours.encode("ﬁne ①") == ours.encode("fine 1")
    out = tmp_path / "saved"
    ours.save(out)
    assert Tokenizer.load(out).encode(SAMPLES[1]) == ours.encode(SAMPLES[1])


def test_sentencepiece_of_m2m_100(tmp_path: Path):
    from transformers.models.m2m_100.tokenization_m2m_100 import FAIRSEQ_LANGUAGE_CODES

    pieces = sentencepiece_model(tmp_path, "sentencepiece.bpe", CORPUS[:3], model_type="bpe")
    vocabulary = ["<s>", "<pad>", "</s>", "<unk>", *reversed(pieces[3:])]
    (tmp_path / "vocab.json").write_text(json.dumps({piece: id_ for id_, piece in enumerate(vocabulary)}))
    languages = [f"__{code}__" for code in FAIRSEQ_LANGUAGE_CODES["m2m100"]]
    config = {"tokenizer_class": "M2M100Tokenizer", "src_lang": "de", "additional_special_tokens": languages}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "m2m_100"}))
    ours, theirs = Tokenizer.load(tmp_path), automatic(tmp_path)
    assert [ours.pad, ours.eos, ours.unk, ours.id("__en__")] == [1, 2, 3, theirs.get_lang_id("en")]
    for text in (*SAMPLES[:5], "ﬁne ①", *CORPUS[:3]):
        ids = ours.encode(text)
        assert ids == theirs(text)["input_ids"]
        assert ours.encode(text, special=False) == theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.decode(ids).strip() == theirs.decode(ids, skip_special_tokens=True)
    ours.save(tmp_path / "saved")
    assert Tokenizer.load(tmp_path / "saved").encode(CORPUS[0]) == ours.encode(CORPUS[0])
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "src_lang": "xx"}))
    with pytest.raises(UserError, match="'__xx__' is not among the additional_special_tokens"):
        Tokenizer.load(tmp_path)


def test_sentencepiece_pair_of_marian(tmp_path: Path):
    source = sentencepiece_model(tmp_path, "source", CORPUS[:2])
    target = sentencepiece_model(tmp_path, "target", CORPUS[2:3])
    for name in ("source", "target"):
        (tmp_path / f"{name}.model").rename(tmp_path / f"{name}.spm")
    pieces = [p for p in dict.fromkeys(source + target) if p not in ("<s>", "</s>", "<unk>", source[7])]
    vocabulary = ["</s>", "<unk>", *pieces, ">>de<<", "<pad>"]
    (tmp_path / "vocab.json").write_text(json.dumps({piece: id_ for id_, piece in enumerate(vocabulary)}))
    config = {"tokenizer_class": "MarianTokenizer", "source_lang": "en", "target_lang": "de"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "marian"}))
    ours = Tokenizer.load(tmp_path)
    theirs = automatic(tmp_path)
    assert_same_roles(ours, theirs)
    samples = [*SAMPLES[:5], ">>de<< hear me speak", "a <s> b", "".join(source)]
    for text in samples:
        assert_equal(ours, theirs, text)

    @examples(50)
    @example("", [0, 2, 2, 0])
    @given(
        text=anything.map(lambda text: text.replace(">>", "")),
        ids=st.lists(st.integers(0, len(vocabulary) - 1)),
    )
    def check(text: str, ids: list[int]) -> None:
        assert ours.encode(text) == theirs(text)["input_ids"]
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
        assert ours.decode(ids, skip_special=False) == theirs.decode(ids)

    check()
    wrong: Any = ["a", None]
    with pytest.raises(UserError, match="`encode` takes one text, not a list"):
        ours.encode(wrong)
    with pytest.raises(UserError, match="Text 2 of 2 is no text"):
        ours.encode_batch(wrong)
    out = tmp_path / "saved"
    ours.save(out)
    (out / "config.json").write_text(json.dumps({"model_type": "marian"}))
    assert_equal(Tokenizer.load(out), automatic(out), samples[1])


@pytest.mark.parametrize("content", [b"\xff" * 10**6, b"\x0a" + b"\xff" * 8 + b"\x7f" + b"a", b"\x0a\x02\x0a\x7f"])
def test_a_model_that_lies_about_its_lengths_is_refused(tmp_path: Path, content: bytes):
    (tmp_path / "spiece.model").write_bytes(content)
    with pytest.raises(UserError, match="not a whole SentencePiece model"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("extra", [-1, 10**9, "9" * 100, 1.5, None, []])
def test_a_number_of_sentinels_that_takes_all_memory_is_refused(tmp_path: Path, extra: object):
    pieces = b"".join(
        _field(1, _field(1, text) + b"\x18" + bytes([kind])) for text, kind in ((b"<unk>", 2), (b"</s>", 3))
    )
    (tmp_path / "spiece.model").write_bytes(pieces)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"extra_ids": 2}))
    assert Tokenizer.load(tmp_path).vocab_size == 4
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"extra_ids": extra}))
    with pytest.raises(UserError, match="extra_ids should be a number from 0 to 10,000"):
        Tokenizer.load(tmp_path)


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2, len(content)]) + content
