"""Text token by token is the text of all tokens at once."""

from __future__ import annotations

from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models

from anyformer.tokenizer import StreamDecoder, Tokenizer
from tests.tokenizer.hugging_face import KINDS, few, known


@pytest.mark.parametrize(("spec", "special"), KINDS)
def test_a_stream_is_the_whole(trained: dict[tuple[str, str], tuple[Tokenizer, Any]], spec: str, special: str):
    tokenizer = trained[spec, special][0]

    @few
    @given(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=120))
    def random(ids: list[int]) -> None:
        stream = StreamDecoder(tokenizer)
        assert "".join(map(stream.push, ids)) + stream.flush() == tokenizer.decode(ids)

    @few
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
