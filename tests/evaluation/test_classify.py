"""What classifiers say of texts, against the pipeline of `transformers`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import anyformer as af
from anyformer.errors import UserError
from anyformer.evaluation import Classification, classify
from anyformer.model import Transformer
from anyformer.tokenizer import Tokenizer
from tests.evaluation.models import WORDS, decoder, encoder

TEXTS = [" ".join((WORDS * 2).split()[begin:end]) for begin, end in ((0, 3), (2, 20), (0, 60), (5, 6), (1, 9))]
NAMES = ("news", "sports", "weather", "other")


def _pipeline(model: Transformer, tokenizer: Tokenizer, given: Any, **options: Any) -> list[dict[str, float]]:
    """The scores of the pipeline, by label."""
    from transformers import pipeline

    with tempfile.TemporaryDirectory() as folder:
        af.save(model, folder, tokenizer=tokenizer)
        pipe: Any = pipeline("text-classification", folder, device="cpu")
        found = pipe(given, top_k=None, truncation=True, max_length=32, return_token_type_ids=True, **options)
    return [{each["label"]: each["score"] for each in row} for row in found]


@settings(max_examples=6)
@given(
    seed=st.integers(0, 100),
    labels=st.integers(2, 4),
    kind=st.sampled_from([None, "single_label_classification", "multi_label_classification"]),
    named=st.booleans(),
    pairs=st.booleans(),
)
@pytest.mark.filterwarnings("ignore")
def test_labels_and_probabilities_are_those_of_transformers(
    seed: int, labels: int, kind: str | None, named: bool, pairs: bool
) -> None:
    head = {"kind": "classification", "labels": labels, "pooler": "tanh", "problem_type": kind}
    model, tokenizer = encoder(head | ({"label_names": NAMES[:labels]} if named else {}), seed)
    second = list(reversed(TEXTS)) if pairs else None
    given: Any = [{"text": a, "text_pair": b} for a, b in zip(TEXTS, second, strict=True)] if second else TEXTS
    several = kind == "multi_label_classification"
    for own, scores in zip(classify(model, tokenizer, TEXTS, second), _pipeline(model, tokenizer, given), strict=True):
        assert own.scores == pytest.approx(scores, abs=1e-5)
        assert list(own.scores.values()) == sorted(own.scores.values(), reverse=True)
        best = max(scores, key=lambda name: scores[name])
        likely = {name for name, score in scores.items() if score > 0.5}
        assert set(own.labels) == (likely if several else {best})
        assert own.label == (best if likely or not several else None)
        assert own.value is None


@pytest.mark.filterwarnings("ignore")
def test_decoders_classify_as_in_transformers() -> None:
    model, tokenizer = decoder(max_length=32)
    torch.manual_seed(0)
    head = {"kind": "classification", "labels": 3, "pooling": "last", "label_bias": False}
    model = af.build(model.config.replace(head=head, special_tokens={"pad": tokenizer.eos}))
    for own, scores in zip(classify(model, tokenizer, TEXTS), _pipeline(model, tokenizer, TEXTS), strict=True):
        assert own.scores == pytest.approx(scores, abs=1e-5)


@pytest.mark.parametrize("kind", [None, "regression"])
@pytest.mark.filterwarnings("ignore")
def test_numbers_are_those_of_transformers(kind: str | None) -> None:
    model, tokenizer = encoder({"kind": "classification", "labels": 1, "pooler": "tanh", "problem_type": kind})
    wanted = _pipeline(model, tokenizer, TEXTS, function_to_apply="none")
    for own, scores in zip(classify(model, tokenizer, TEXTS), wanted, strict=True):
        assert own.value == pytest.approx(scores["LABEL_0"], abs=1e-5)
        assert (own.labels, own.label) == ((), None)


def test_several_numbers_have_no_single_value() -> None:
    head = {"kind": "classification", "labels": 2, "pooler": "tanh", "problem_type": "regression"}
    (own,) = classify(*encoder({**head, "label_names": ("width", "height")}), "the cat")
    assert (own.value, own.label, list(own.scores)) == (None, None, ["width", "height"])


def test_a_label_is_as_likely_as_not() -> None:
    """None of several labels is taken where each has a probability of one half."""
    head = {"kind": "classification", "labels": 2, "pooler": "tanh", "problem_type": "multi_label_classification"}
    model, tokenizer = encoder(head)
    for parameter in model.parameters():
        parameter.data.zero_()
    assert classify(model, tokenizer, "a") == [Classification(labels=(), scores={"LABEL_0": 0.5, "LABEL_1": 0.5})]


def test_what_is_cut_off_is_counted() -> None:
    model, tokenizer = encoder({"kind": "classification", "labels": 2, "pooler": "tanh"})
    long = "the cat sat " * 20
    (one, other) = classify(model, tokenizer, ["the cat", long])
    assert (one.cut, other.cut) == (0, len(tokenizer.encode(long)) - 32)
    assert classify(model, tokenizer, ["the cat"], [long])[0].cut > 0


def test_one_second_text_is_that_of_all() -> None:
    model, tokenizer = encoder({"kind": "classification", "labels": 2, "pooler": "tanh"})
    assert classify(model, tokenizer, TEXTS[:2], "a dog") == classify(model, tokenizer, TEXTS[:2], ["a dog"] * 2)
    assert classify(model, tokenizer, TEXTS[0], "a dog") != classify(model, tokenizer, TEXTS[0])
    assert classify(model, tokenizer, []) == []


def test_wrong_input() -> None:
    model, tokenizer = encoder({"kind": "classification", "labels": 2, "pooler": "tanh"})
    with pytest.raises(UserError, match="Text 2 of 2 is empty"):
        classify(model, tokenizer, ["a", " \n"])
    with pytest.raises(UserError, match="Second text 1 of 1 is empty"):
        classify(model, tokenizer, ["a"], [""])
    with pytest.raises(UserError, match="2 texts and 1 second texts"):
        classify(model, tokenizer, ["a", "b"], ["c"])
    with pytest.raises(UserError, match=r"no head that classifies texts \(its head is 'language_model'\)"):
        classify(*decoder(), "a")


def test_it_is_what_evaluation_says(tmp_path: Path) -> None:
    model, tokenizer = encoder({"kind": "classification", "labels": 2, "pooler": "tanh", "label_names": ("a", "b")})
    path = tmp_path / "dev.csv"
    labels = [found.label for found in classify(model, tokenizer, TEXTS)]
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in zip(TEXTS, labels, strict=True)))
    assert af.evaluate(model, tokenizer, str(path))["accuracy"] == 1.0
