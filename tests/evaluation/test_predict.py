"""Classifiers and taggers, against `transformers` one text at a time."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import anyformer as af
from anyformer.data.examples import ClassifyExample, TagExample, Where
from anyformer.errors import UserError
from anyformer.evaluation import predict
from tests.evaluation.models import WORDS, decoder, encoder

HERE = Where(Path("x.csv"), 1)
TEXTS = [" ".join((WORDS * 2).split()[begin:end]) for begin, end in ((0, 3), (2, 20), (0, 60), (5, 6), (1, 9))]


def _classes(*labels: Any, pairs: bool = False) -> list[ClassifyExample]:
    return [
        ClassifyExample(where=HERE, text=text, second=TEXTS[-number] if pairs else None, label=label)
        for number, (text, label) in enumerate(zip(TEXTS, labels, strict=False))
    ]


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_logits_are_those_of_transformers(tmp_path: Path, pairs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model, tokenizer = encoder({"kind": "classification", "labels": 3, "pooler": "tanh"})
    af.save(model, tmp_path, tokenizer=tokenizer)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    encode: Any = AutoTokenizer.from_pretrained(tmp_path)
    examples = _classes("a", "b", "c", "a", "b", pairs=pairs)
    monkeypatch.setattr(predict, "_BATCH_TOKENS", 40)
    counts: list[int] = []
    found = predict.classify(model, tokenizer, examples, progress=counts.append)
    assert sum(counts) == 5
    assert len(counts) > 1
    for example, logits in zip(examples, found, strict=True):
        texts = [example.text] if example.second is None else [example.text, example.second]
        inputs = encode(*texts, truncation=True, max_length=32, return_tensors="pt", return_token_type_ids=True)
        with torch.no_grad():
            assert logits == pytest.approx(theirs(**inputs).logits[0].numpy(), rel=1e-4, abs=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_tags_are_those_of_transformers(tmp_path: Path) -> None:
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    model, tokenizer = encoder({"kind": "token_classification", "labels": 3})
    af.save(model, tmp_path, tokenizer=tokenizer)
    theirs = AutoModelForTokenClassification.from_pretrained(tmp_path).eval()
    encode: Any = AutoTokenizer.from_pretrained(tmp_path)
    examples = [TagExample(where=HERE, words=text.split(), tags=["O"] * len(text.split())) for text in TEXTS]
    found = predict.tag(model, tokenizer, examples)
    for example, logits in zip(examples, found, strict=True):
        inputs = encode(
            list(example.words), is_split_into_words=True, truncation=True, max_length=32, return_tensors="pt"
        )
        with torch.no_grad():
            wanted = theirs(**inputs).logits[0]
        word_ids = inputs.word_ids()
        assert len(logits) == len(example.words)
        for word, own in enumerate(logits):
            if word not in word_ids:
                assert own is None
            else:
                assert own is not None
                assert np.allclose(own, wanted[word_ids.index(word)], rtol=1e-4, atol=1e-4)
    assert any(own is None for own in found[2])


def test_other_heads_are_refused() -> None:
    model, tokenizer = decoder()
    with pytest.raises(UserError, match="no head that classifies texts"):
        predict.classify(model, tokenizer, _classes("a"))
    with pytest.raises(UserError, match="no head that labels tokens"):
        predict.tag(model, tokenizer, [])
    model, _ = encoder({"kind": "classification", "labels": 3, "pooler": "tanh"})
    with pytest.raises(UserError, match="without a tokenizer"):
        predict.classify(model, None, _classes("a"))


def test_batches_hold_their_tokens() -> None:
    lengths = [3, 9, 1, 5, 5, 7]
    batches = list(predict.batches_by_length(lengths, 12))
    assert sorted(index for batch in batches for index in batch) == [0, 1, 2, 3, 4, 5]
    assert [[lengths[index] for index in batch] for batch in batches] == [[9], [7], [5, 5], [3, 1]]
