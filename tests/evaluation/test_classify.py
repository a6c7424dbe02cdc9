"""What classifiers and taggers say of texts, against the pipelines of `transformers`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import anyformer as af
from anyformer.blocks.head import Classifier
from anyformer.errors import UserError
from anyformer.evaluation import Classification, classify, tag
from anyformer.evaluation.classify import word_spans
from anyformer.evaluation.logits import word_logits
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


TAGS = ("O", "B-animal", "I-animal", "B-place", "I-place")
SENTENCES = [" ".join(WORDS.split()[begin:end]) for begin, end in ((0, 8), (2, 17), (5, 6), (1, 9))]


def _tagger(seed: int, names: tuple[str, ...] = TAGS) -> tuple[Transformer, Tokenizer]:
    """BERT, which finds each tag somewhere."""
    head = {"kind": "token_classification", "labels": len(names), "label_names": names}
    model, tokenizer = encoder(head, seed)
    found = [own for row in word_logits(model, tokenizer, [text.split() for text in SENTENCES]) for own in row]
    assert isinstance(model.head, Classifier)
    with torch.no_grad():
        model.head.labels.bias -= torch.stack([own for own in found if own is not None]).mean(dim=0)
    return model, tokenizer


@settings(max_examples=6)
@given(seed=st.integers(0, 100))
@pytest.mark.filterwarnings("ignore")
def test_entities_are_those_of_transformers(seed: int) -> None:
    from transformers import pipeline

    model, tokenizer = _tagger(seed)
    with tempfile.TemporaryDirectory() as folder:
        af.save(model, folder, tokenizer=tokenizer)
        pipe: Any = pipeline("token-classification", folder, aggregation_strategy="first", device="cpu")
        wanted = pipe(SENTENCES)
        every = pipe(SENTENCES, ignore_labels=[])
    for text, own, theirs, groups in zip(SENTENCES, tag(model, tokenizer, SENTENCES), wanted, every, strict=True):
        assert len(own.entities) == len(theirs)
        for entity, other in zip(own.entities, theirs, strict=True):
            assert (entity.label, entity.start, entity.end) == (other["entity_group"], other["start"], other["end"])
            assert entity.text == text[entity.start : entity.end]
            assert entity.probability == pytest.approx(other["score"], abs=1e-5)
        outside = [word for word in own.words if word.tag == "O"]
        assert sum(len(group["word"].split()) for group in groups if group["entity_group"] == "O") == len(outside)


def test_a_single_label_holds_or_not() -> None:
    """ELECTRA's discriminator: the sigmoid of its logit is the probability of the label."""
    label = {"labels": 1, "label_names": ("replaced",), "problem_type": "multi_label_classification"}
    model, tokenizer = encoder({"kind": "token_classification", **label, "transform": "gelu"})
    tokens = tokenizer.encode(SENTENCES[0])
    logits = model(torch.tensor([tokens])).logits
    assert logits is not None
    chances = logits[0, :, 0].sigmoid().tolist()
    (found,) = tag(model, tokenizer, SENTENCES[0])
    assert {word.tag for word in found.words} == {"O", "replaced"}
    for word in found.words:
        chance = word.probability if word.tag == "replaced" else 1 - word.probability
        assert word.probability >= 0.5
        assert min(abs(chance - each) for each in chances) < 1e-5
    assert found.entities == ()


def test_entities_are_there_to_be_compared() -> None:
    found = [entity for seed in range(3) for each in tag(*_tagger(seed), SENTENCES) for entity in each.entities]
    assert {entity.label for entity in found} == {"animal", "place"}
    assert any(" " in entity.text for entity in found)


def test_words_keep_their_place_in_the_text() -> None:
    """Tags are those of the words with spaces between them, as they were trained."""
    model, tokenizer = _tagger(0)
    text = 'the  "cat" sat on\nthe mat.'
    words = ["the", '"', "cat", '"', "sat", "on", "the", "mat", "."]
    (raw,), (split,) = tag(model, tokenizer, text), tag(model, tokenizer, [words])
    assert [word.text for word in raw.words] == [text[word.start : word.end] for word in raw.words] == words
    assert [(word.tag, word.probability) for word in raw.words] == [(w.tag, w.probability) for w in split.words]
    joined = " ".join(words)
    assert [joined[word.start : word.end] for word in split.words] == words
    assert [entity.text for entity in split.entities] == [joined[e.start : e.end] for e in split.entities]


def test_words_beyond_the_context_have_no_tag() -> None:
    model, tokenizer = _tagger(0)
    (found,) = tag(model, tokenizer, "the cat sat " * 20)
    assert len(found.words) == 60
    assert found.untagged == sum(word.tag is None for word in found.words) > 20
    assert found.words[-1].probability == 0.0
    assert all(entity.end <= found.words[-found.untagged].start for entity in found.entities)


def test_tags_that_are_no_entities() -> None:
    model, tokenizer = _tagger(0, ("NOUN", "VERB", ""))
    (found,) = tag(model, tokenizer, "the cat sat")
    assert found.entities == ()
    assert {word.tag for word in found.words} <= {"NOUN", "VERB", ""}
    assert tag(*_tagger(0, ("O", "", "X")), "the cat sat")[0].entities == ()


def test_wrong_input_of_taggers() -> None:
    model, tokenizer = _tagger(0)
    for empty in ("", [""], [[]], [["", " "]]):
        with pytest.raises(UserError, match="Text 1 of 1 is empty"):
            tag(model, tokenizer, empty)
    with pytest.raises(UserError, match=r"so use `anyformer\.classify`"):
        tag(*encoder({"kind": "classification", "labels": 2, "pooler": "tanh"}), "a")
    assert tag(model, tokenizer, []) == []


HINDI = "\u0939\u093f\u0928\u094d\u0926\u0940"
"""Ends with a combining mark, which is no punctuation."""


def _words(text: str) -> list[str]:
    return [text[start:end] for start, end in word_spans(text)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Anna lives in Rome.", "Anna lives in Rome ."),
        ('He said: "Fine!!" (twice)...', 'He said : " Fine !! " ( twice ) ...'),
        ("Germany's co-op, the O'Neils\u2019s", "Germany 's co-op , the O'Neils \u2019s"),
        ("Germany 's U.S. envoy, J. Smith, e.g. in the U.S.", "Germany 's U.S. envoy , J. Smith , e.g. in the U.S."),
        ('"U.S." 3.5% of $1,000.', '" U.S. " 3.5 % of $1,000 .'),
        ("@anna #rome @ # don't", "@anna #rome @ # don't"),
        ("'tis 'quoted' ''s", "' tis ' quoted ' ' 's"),
        (f"{HINDI}\u0964 \u4f60\u597d\u3002", f"{HINDI} \u0964 \u4f60\u597d \u3002"),
        ("...", "..."),
        (" \n", ""),
    ],
)
def test_punctuation_is_split_off(text: str, words: str) -> None:
    assert _words(text) == words.split()


@given(st.text(alphabet="aU's\u2019.@#\"(- \t\u00e9"))
def test_words_are_the_text_without_space(text: str) -> None:
    spans = word_spans(text)
    assert "".join(_words(text)) == "".join(text.split())
    assert all(start < end for start, end in spans)
    assert [span for word in spans for span in word] == sorted(span for word in spans for span in word)


@given(st.lists(st.sampled_from(["Anna", "U.S.", "'s", "co-op", "...", "@anna", ",", "3.5"])))
def test_words_that_are_split_already_stay_as_they_are(words: list[str]) -> None:
    assert _words(" ".join(words)) == words
