"""`transformers.AutoTokenizer`, the oracle for ids and for decoded text, and texts to compare on."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, processors

from anyformer.tokenizer import Tokenizer
from anyformer.tokenizer.training import SPECIAL

CORPUS = [
    "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n",
    "def tokenize(text, *, special=True):\n    return [ord(c) for c in text]  # naïve, isn't it?\n",
    "Der schnelle braune Fuchs springt über den faulen Hund. Größe: 12345 m².\n" * 3,
    "日本語のテキスト and emoji 🙂🙃 mixed; don't, we've, I'm, they're ... O'Neill's\n" * 2,
] * 4
SPECS = ("char", "bpe:400", "wordpiece:300", "unigram:300")
KINDS = [(spec, special) for spec in SPECS for special in SPECIAL]
SAMPLES = [
    "",
    "Speak, speak.",
    " leading and  double  spaces ",
    "Before we proceed any further, hear me speak.\n\nAll:\n\tSpeak!",
    "don't we've 12345 über 日本語 🙂",
    "a [MASK] b <mask> c </s> d <|endoftext|> e <pad>",
]
few = settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
known = st.text(st.sampled_from(sorted({c for text in CORPUS for c in text})), max_size=60)
anything = st.text(max_size=60)


def automatic(directory: Path) -> Any:
    from transformers import AutoTokenizer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return AutoTokenizer.from_pretrained(directory)


def assert_equal(ours: Tokenizer, theirs: Any, text: str) -> None:
    ids = ours.encode(text)
    assert ids == theirs(text)["input_ids"]
    assert ours.encode(text, special=False) == theirs(text, add_special_tokens=False)["input_ids"]
    assert ours.encode_batch([text, text]) == [ids, ids]
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.decode(ids, skip_special=False) == theirs.decode(ids, skip_special_tokens=False)


def assert_same_roles(ours: Tokenizer, theirs: Any) -> None:
    for role in ("bos", "eos", "pad", "mask", "unk", "cls", "sep"):
        assert getattr(ours, role) == getattr(theirs, f"{role}_token_id"), role
    assert ours.mask_token == theirs.mask_token
    assert ours.vocab_size == len(theirs)


def assert_same(ours: Tokenizer, directory: Path, samples: list[str] = SAMPLES) -> None:
    theirs = automatic(directory)
    assert_same_roles(ours, theirs)
    for text in samples:
        assert_equal(ours, theirs, text)


def sentencepiece_model(directory: Path, name: str, corpus: list[str], **options: Any) -> list[str]:
    sentencepiece = pytest.importorskip("sentencepiece")
    lines = [line for text in corpus for line in text.splitlines() if line]
    (directory / "lines.txt").write_text("\n".join(lines), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(directory / "lines.txt"),
        model_prefix=str(directory / name),
        vocab_size=90,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    processor = sentencepiece.SentencePieceProcessor(model_file=str(directory / f"{name}.model"))
    return [processor.id_to_piece(i) for i in range(len(processor))]


def llama_like(directory: Path, config: dict[str, Any]) -> None:
    trained = json.loads(Tokenizer.train(CORPUS, "bpe:380").backend.to_str())["model"]
    words = [w for w in sorted(trained["vocab"], key=trained["vocab"].get) if w != "<|endoftext|>"]
    vocabulary = {word: id_ for id_, word in enumerate(["<unk>", "<s>", "</s>", *words])}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[tuple(m) for m in trained["merges"]]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    backend.enable_truncation(16)
    backend.enable_padding(length=16)
    backend.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
