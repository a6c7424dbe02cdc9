"""What taggers say of texts, against the pipeline of `transformers`."""

from __future__ import annotations

import tempfile
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import anyformer as af
from anyformer.blocks.head import Classifier
from anyformer.errors import UserError
from anyformer.evaluation import tag
from anyformer.evaluation.logits import word_logits
from anyformer.evaluation.tag import word_spans
from anyformer.model import Transformer
from anyformer.tokenizer import Tokenizer
from tests.evaluation.models import WORDS, encoder

NAMES = ("O", "B-animal", "I-animal", "B-place", "I-place")
TEXTS = [" ".join(WORDS.split()[begin:end]) for begin, end in ((0, 8), (2, 17), (5, 6), (1, 9))]


def _tagger(seed: int, names: tuple[str, ...] = NAMES) -> tuple[Transformer, Tokenizer]:
    """BERT, which finds each tag somewhere."""
    head = {"kind": "token_classification", "labels": len(names), "label_names": names}
    model, tokenizer = encoder(head, seed)
    found = [own for row in word_logits(model, tokenizer, [text.split() for text in TEXTS]) for own in row]
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
        wanted = pipe(TEXTS)
        every = pipe(TEXTS, ignore_labels=[])
    for text, own, theirs, groups in zip(TEXTS, tag(model, tokenizer, TEXTS), wanted, every, strict=True):
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
    tokens = tokenizer.encode(TEXTS[0])
    logits = model(torch.tensor([tokens])).logits
    assert logits is not None
    chances = logits[0, :, 0].sigmoid().tolist()
    (found,) = tag(model, tokenizer, TEXTS[0])
    assert {word.tag for word in found.words} == {"O", "replaced"}
    for word in found.words:
        chance = word.probability if word.tag == "replaced" else 1 - word.probability
        assert word.probability >= 0.5
        assert min(abs(chance - each) for each in chances) < 1e-5
    assert found.entities == ()


def test_entities_are_there_to_be_compared() -> None:
    found = [entity for seed in range(3) for each in tag(*_tagger(seed), TEXTS) for entity in each.entities]
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


def test_wrong_input() -> None:
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
