"""Classifiers and taggers, against `transformers` one text at a time."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import anyformer as af
from anyformer.errors import UserError
from anyformer.evaluation import logits
from anyformer.evaluation.logits import text_logits, word_logits
from tests.evaluation.models import WORDS, decoder, encoder

TEXTS = [" ".join((WORDS * 2).split()[begin:end]) for begin, end in ((0, 3), (2, 20), (0, 60), (5, 6), (1, 9))]


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_logits_are_those_of_transformers(tmp_path: Path, pairs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model, tokenizer = encoder({"kind": "classification", "labels": 3, "pooler": "tanh"})
    af.save(model, tmp_path, tokenizer=tokenizer)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    encode: Any = AutoTokenizer.from_pretrained(tmp_path)
    texts = [(text, TEXTS[-number] if pairs else None) for number, text in enumerate(TEXTS)]
    monkeypatch.setattr(logits, "_BATCH_TOKENS", 40)
    counts: list[int] = []
    found, cut = text_logits(model, tokenizer, texts, progress=counts.append)
    assert sum(counts) == 5
    assert len(counts) > 1
    for (text, second), own, left_out in zip(texts, found, cut, strict=True):
        given = [text] if second is None else [text, second]
        assert left_out == max(0, len(encode(*given).input_ids) - 32)
        inputs = encode(*given, truncation=True, max_length=32, return_tensors="pt", return_token_type_ids=True)
        with torch.no_grad():
            assert own == pytest.approx(theirs(**inputs).logits[0].numpy(), rel=1e-4, abs=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_tags_are_those_of_transformers(tmp_path: Path) -> None:
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    model, tokenizer = encoder({"kind": "token_classification", "labels": 3})
    af.save(model, tmp_path, tokenizer=tokenizer)
    theirs = AutoModelForTokenClassification.from_pretrained(tmp_path).eval()
    encode: Any = AutoTokenizer.from_pretrained(tmp_path)
    sentences = [text.split() for text in TEXTS]
    found = word_logits(model, tokenizer, sentences)
    for words, of_words in zip(sentences, found, strict=True):
        inputs = encode(words, is_split_into_words=True, truncation=True, max_length=32, return_tensors="pt")
        with torch.no_grad():
            wanted = theirs(**inputs).logits[0]
        word_ids = inputs.word_ids()
        assert len(of_words) == len(words)
        for word, own in enumerate(of_words):
            if word not in word_ids:
                assert own is None
            else:
                assert own is not None
                assert np.allclose(own, wanted[word_ids.index(word)], rtol=1e-4, atol=1e-4)
    assert any(own is None for own in found[2])


def test_other_heads_are_refused() -> None:
    model, tokenizer = decoder()
    with pytest.raises(UserError, match="no head that classifies texts"):
        text_logits(model, tokenizer, [("a", None)])
    with pytest.raises(UserError, match="no head that labels tokens"):
        word_logits(model, tokenizer, [])
    model, _ = encoder({"kind": "classification", "labels": 3, "pooler": "tanh"})
    with pytest.raises(UserError, match="without a tokenizer"):
        text_logits(model, None, [("a", None)])
    with pytest.raises(UserError, match=r"its head is 'classification', so use `anyformer\.classify`"):
        word_logits(model, tokenizer, [])


def test_a_text_without_a_token_is_refused() -> None:
    model, tokenizer = decoder()
    head = {"kind": "classification", "labels": 2, "pooling": "last", "label_bias": False}
    model = af.build(model.config.replace(head=head))
    assert tokenizer.encode("") == []
    with pytest.raises(UserError, match=r"Text 2 of 2 has no token"):
        text_logits(model, tokenizer, [("a", None), ("", None)])


def test_batches_hold_their_tokens() -> None:
    lengths = [3, 9, 1, 5, 5, 7]
    batches = list(logits.batches_by_length(lengths, 12))
    assert sorted(index for batch in batches for index in batch) == [0, 1, 2, 3, 4, 5]
    assert [[lengths[index] for index in batch] for batch in batches] == [[9], [7], [5, 5], [3, 1]]
