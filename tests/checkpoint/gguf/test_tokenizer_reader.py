"""Tokenizers out of GGUF metadata: the ids of the library that made the vocabulary, for each of the four kinds."""

import io
import json
import random
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import sentencepiece
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2
from tokenizers import models, normalizers, pre_tokenizers, trainers

from anyformer.checkpoint.gguf import tokenizer_reader
from anyformer.checkpoint.gguf.tokenizer_reader import PRETOKENIZERS
from anyformer.checkpoint.gguf.tokenizer_writer import tokenizer_metadata
from anyformer.errors import UserError
from anyformer.families import preset
from anyformer.tokenizer import Tokenizer
from anyformer.tokenizer.sentencepiece import check_charsmap

WORDS = (
    *("the", "cat", "sat", "on", "the", "mat", "and", "the", "dog", "ran", "after", "it", "in", "1984", ",", "naïve"),
    *("façade", "größer", "zürich", "12", "345", "don't", "we'll"),
)
TEXTS = [" ".join((*WORDS[i:], *WORDS[:i])) + ("." if i % 2 else "!\n  x = [1, 2]") for i in range(len(WORDS))] * 3
OTHERS = ("unknown", "ünï", "日本", "🙂", "  ", "\n", "\t", "I'LL", "2024", "½", "a_b")
texts = st.lists(st.sampled_from(WORDS + OTHERS), max_size=8).map(" ".join) | st.text(max_size=12)


def metadata(model: str, tokens: list[str], **fields: Any) -> dict[str, Any]:
    return {"tokenizer.ggml.model": model, "tokenizer.ggml.tokens": tokens} | {
        f"tokenizer.ggml.{key}": value for key, value in fields.items()
    }


def read(fields: dict[str, Any]) -> Tokenizer:
    tokenizer = tokenizer_reader.read(fields)
    assert tokenizer is not None
    return tokenizer


@cache
def byte_level(cut: int) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    """A BPE trained with this cut, from GGUF and as it was."""
    theirs = tokenizers.Tokenizer(models.BPE(ignore_merges=PRETOKENIZERS[cut].ignores_merges))
    theirs.pre_tokenizer = PRETOKENIZERS[cut].build()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=350, initial_alphabet=alphabet, special_tokens=["<|end|>"], show_progress=False
    )
    theirs.train_from_iterator(TEXTS, trainer)
    model = json.loads(theirs.to_str())["model"]
    tokens = sorted(model["vocab"], key=lambda token: model["vocab"][token])
    merges = [" ".join(merge) for merge in model["merges"]]
    types = [3, *[1] * (len(tokens) - 1)]
    fields = metadata(
        "gpt2",
        tokens,
        pre=PRETOKENIZERS[cut].name,
        merges=merges,
        token_type=types,
        bos_token_id=0,
        eos_token_id=0,
        add_bos_token=False,
    )
    return read(fields), theirs


@pytest.mark.parametrize("cut", range(len(PRETOKENIZERS)), ids=[cut.name for cut in PRETOKENIZERS])
@settings(max_examples=30)
@given(text=texts)
def test_byte_level(cut: int, text: str) -> None:
    ours, theirs = byte_level(cut)
    ids = theirs.encode(text).ids
    if not PRETOKENIZERS[cut].composes:
        assert ours.encode(text) == ids
    assert ours.decode(ids, skip_special=False) == text
    assert ours.encode(f"{text}<|end|>")[-1] == 0


def trained(kind: str) -> sentencepiece.SentencePieceProcessor:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_writer=model,
        vocab_size=340 if kind == "bpe" else 120,
        model_type=kind,
        byte_fallback=kind == "bpe",
        normalization_rule_name="identity" if kind == "bpe" else "nmt_nfkc",
        remove_extra_whitespaces=kind == "unigram",
        minloglevel=2,
        hard_vocab_limit=False,
        split_digits=True,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def charsmap(trained: sentencepiece.SentencePieceProcessor) -> bytes:
    model = sentencepiece_model_pb2.ModelProto.FromString(trained.serialized_model_proto())
    return model.normalizer_spec.precompiled_charsmap


@cache
def sentence_pieces(kind: str) -> tuple[Tokenizer, sentencepiece.SentencePieceProcessor]:
    theirs = trained(kind)
    size = theirs.get_piece_size()
    types = [
        2 if theirs.is_unknown(i) else 3 if theirs.is_control(i) else 6 if theirs.is_byte(i) else 1 for i in range(size)
    ]
    fields = metadata(
        "llama" if kind == "bpe" else "t5",
        [theirs.id_to_piece(i) for i in range(size)],
        scores=[theirs.get_score(i) for i in range(size)],
        token_type=types,
        **({} if kind == "bpe" else {"precompiled_charsmap": np.frombuffer(charsmap(theirs), np.uint8)}),
        bos_token_id=theirs.bos_id(),
        eos_token_id=theirs.eos_id(),
        unknown_token_id=theirs.unk_id(),
    )
    return read(fields), theirs


plain = texts.filter(lambda text: not any(mark in text for mark in ("<s>", "</s>", "<unk>", "▁", "\0")))


@cache
def with_defined_runs() -> tuple[Tokenizer, Tokenizer]:
    """A vocabulary where users defined runs of line ends, as good as a token of two pairs; and the same read again."""
    special, pieces, runs = ["<unk>", "<s>", "</s>"], [*"▁abc\n", "ab", "bc", "▁a", "abc"], ["\n\n", "\n\n\n"]
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces, *runs]
    fields = metadata(
        "llama",
        tokens,
        scores=[*[0.0] * 259, *[-9.0] * 5, -1.0, -2.0, -3.0, -4.0, *[-4.0] * len(runs)],
        token_type=[2, 3, 3, *[6] * 256, *[1] * len(pieces), *[4] * len(runs)],
        bos_token_id=1,
        eos_token_id=2,
        unknown_token_id=0,
        add_space_prefix=False,
    )
    first = read(fields)
    return first, read(tokenizer_metadata(first, preset("llama-nano", vocab_size=len(tokens)), []))


@given(text=st.text("abc \n", max_size=12))
@example("abc\n\n\n\nbc")
def test_runs_that_users_defined_are_written_as_they_were_read(text: str) -> None:
    first, again = with_defined_runs()
    assert first.encode(text) == again.encode(text)
    assert first.decode(first.encode(text)) == text


@settings(max_examples=100)
@given(text=plain)
@example("the cat  sat")
@example(" 日本 🙂")
def test_sentencepiece_bpe(text: str) -> None:
    ours, theirs = sentence_pieces("bpe")
    ids = theirs.encode(text)
    assert ours.encode(text) == [1, *ids]
    assert ours.decode([1, *ids]) == theirs.decode(ids)


@settings(max_examples=100)
@given(words=st.lists(st.sampled_from((*WORDS, "ﬁt", "１２")), max_size=9))
def test_unigram(words: list[str]) -> None:
    ours, theirs = sentence_pieces("unigram")
    text = " ".join(words)
    assert ours.encode(text) == [*theirs.encode(text), theirs.eos_id()]
    assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text))


def test_spoilt_tables_of_characters() -> None:
    """Either the table is refused, or it leads nowhere that the library can't follow."""
    good, refused = charsmap(sentence_pieces("unigram")[1]), 0
    for seed in range(200):
        generator = random.Random(seed)
        spoilt = bytearray(good if seed % 2 else good[: generator.randrange(len(good))])
        for _ in range(50 * (seed % 2)):
            spoilt[generator.randrange(len(spoilt))] = generator.randrange(256)
        try:
            check_charsmap(bytes(spoilt))
            normalizer = normalizers.Precompiled(bytes(spoilt))
        except UserError:
            refused += 1
        except Exception:  # the library's own, which loading turns into a sentence
            continue
        else:
            normalizer.normalize_str("".join(map(chr, range(1, 2000))))
    assert refused > 100


@cache
def word_piece(lowercase: bool) -> tuple[Tokenizer, Tokenizer]:
    theirs = Tokenizer.train([text.title() for text in TEXTS], "wordpiece:250", special="masked", lowercase=lowercase)
    vocabulary = theirs.backend.get_vocab(with_added_tokens=True)
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
    specials = theirs.special_ids
    # llama.cpp marks the beginnings of words, BERT the rest of them.
    spelt = [t if i in specials else t[2:] if t.startswith("##") else f"▁{t}" for i, t in enumerate(tokens)]
    fields = metadata(
        "bert",
        spelt,
        token_type=[3 if i in specials else 1 for i in range(len(tokens))],
        bos_token_id=theirs.cls,
        seperator_token_id=theirs.sep,
        padding_token_id=theirs.pad,
        mask_token_id=theirs.mask,
        unknown_token_id=theirs.unk,
    )
    return read(fields), theirs


@pytest.mark.parametrize("lowercase", [True, False])
@settings(max_examples=60)
@given(text=texts)
def test_word_piece(lowercase: bool, text: str) -> None:
    ours, theirs = word_piece(lowercase)
    assert ours.encode(text) == theirs.encode(text)
    assert ours.encode(text, second="the cat") == theirs.encode(text, second="the cat")
    assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text))
    assert (ours.mask, ours.pad, ours.cls, ours.sep) == (theirs.mask, theirs.pad, theirs.cls, theirs.sep)


def test_a_file_may_have_none() -> None:
    assert tokenizer_reader.read({}) is None
    assert tokenizer_reader.read({"tokenizer.ggml.model": "none"}) is None


DAMAGED: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "an unknown kind": (lambda: metadata("rwkv", ["a"]), "tokenizer model 'rwkv' is not supported"),
    "an unknown cut": (lambda: metadata("gpt2", ["a"], pre="kimi-k2", merges=[]), "pre-tokenizer 'kimi-k2'"),
    "no tokens": (lambda: {"tokenizer.ggml.model": "gpt2"}, "tokens should be a list of texts"),
    "no merges": (lambda: metadata("gpt2", ["a"], pre="gpt-2"), "merges should be a list of texts"),
    "strange merges": (lambda: metadata("gpt2", ["a", "b"], pre="gpt-2", merges=["a c"]), "does not fit together"),
    "a token twice": (lambda: metadata("gpt2", ["a", "a"], pre="gpt-2", merges=[]), "the token 'a' twice"),
    "too few scores": (lambda: metadata("llama", ["a", "b"], scores=[1.0]), "a number for each of the 2 tokens"),
    "no scores": (lambda: metadata("llama", ["a", "b"]), "scores is missing"),
    "types of text": (lambda: metadata("llama", ["a", "b"], token_type=["x", "y"]), "a list of numbers"),
    "an endless token": (lambda: metadata("llama", ["a" * 2000], scores=[1.0]), "more than 1024 characters"),
    "no [UNK]": (lambda: metadata("bert", ["▁a"]), "no token for the role 'unk'"),
    "nothing unknown": (lambda: metadata("t5", ["a"], scores=[1.0]), "no unknown token"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_metadata(case: str) -> None:
    make, message = DAMAGED[case]
    with pytest.raises(UserError, match=message):
        tokenizer_reader.read(make())
