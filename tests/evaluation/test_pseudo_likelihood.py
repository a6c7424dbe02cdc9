"""Pseudo-log-likelihoods, against Hugging Face's models run on one masked text at a time."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import anyformer as af
from anyformer.errors import UserError
from anyformer.evaluation import scorer
from anyformer.evaluation.scorer import MaskedText, pseudo_log_likelihoods
from tests.evaluation.models import encoder
from tests.parity import hf_models
from tests.parity.conversion import ours_of

MASK, LEAST_ID = 5, 6


@st.composite
def masked_texts(draw: st.DrawFn, vocab_size: int) -> list[MaskedText]:
    """Words of one to three tokens, some texts begin alike."""
    token = st.integers(LEAST_ID, vocab_size - 1)
    begin = draw(st.lists(st.lists(token, min_size=1, max_size=3), max_size=2))
    texts = list[MaskedText]()
    for _ in range(draw(st.integers(1, 5))):
        words = [*begin, *draw(st.lists(st.lists(token, min_size=1, max_size=3), min_size=1, max_size=4))]
        ids = [id_ for word in words for id_ in word]
        numbers = [number for number, word in enumerate(words) for _ in word]
        scored = draw(st.lists(st.integers(0, len(ids) - 1), min_size=1, unique=True))
        texts.append(MaskedText(ids, numbers, scored))
    return texts


@pytest.mark.parametrize("architecture", ["BertForMaskedLM", "RobertaForMaskedLM", "DistilBertForMaskedLM"])
@settings(max_examples=16)
@given(data=st.data())
def test_they_are_those_of_transformers(architecture: str, data: st.DataObject) -> None:
    drawn = data.draw(hf_models.models(architecture))
    texts = data.draw(masked_texts(drawn.vocab_size))
    theirs: Any = drawn.build().eval()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scorer, "_READ_TOKENS", data.draw(st.sampled_from([1, 30, 4096])))
        found = pseudo_log_likelihoods(ours_of(theirs), texts, MASK)
    for text, scores in zip(texts, found, strict=True):
        assert len(scores) == len(text.scored)
        for place, score in zip(text.scored, scores, strict=True):
            ids = torch.tensor([text.ids])
            end = max(other for other, word in enumerate(text.words) if word == text.words[place])
            ids[0, place : end + 1] = MASK
            with torch.no_grad():
                expected = theirs(ids).logits[0, place].log_softmax(-1)[text.ids[place]]
            assert score == pytest.approx(float(expected), rel=1e-5, abs=1e-5)


def test_what_texts_have_in_common_is_computed_once() -> None:
    model, tokenizer = encoder({"kind": "language_model"})
    assert tokenizer.mask is not None
    assert model.encoder is not None
    read = list[int]()
    model.encoder.register_forward_pre_hook(lambda _, inputs: read.append(len(inputs[0])))
    texts = [MaskedText((7, 8, last, 9), (0, 1, 2, 3), (2,)) for last in (10, 11, 12, 10)]
    found = pseudo_log_likelihoods(model, texts, tokenizer.mask)
    assert read == [1]
    assert found[0] == found[3] != found[1]


def test_only_fillers_of_masks_have_them() -> None:
    for preset in ("gpt2", "t5-small"):
        changes = {"d_model": 16, "attention": {"heads": 2, "head_dim": 8}, "vocab_size": 40}
        with pytest.raises(UserError, match="masked-language-model head"):
            pseudo_log_likelihoods(af.build(af.preset(preset, **changes)), [MaskedText((1,), (0,), (0,))], 2)


def test_bad_input_is_a_sentence() -> None:
    model, tokenizer = encoder({"kind": "language_model"}, max_length=6)
    assert tokenizer.mask is not None
    with pytest.raises(UserError, match="Text 2 has 7 tokens, and the model can read 6"):
        pseudo_log_likelihoods(model, [MaskedText((7,), (0,), (0,)), MaskedText((7,) * 7, (0,) * 7, (0,))], 4)
    with pytest.raises(UserError, match="outside the model's vocabulary"):
        pseudo_log_likelihoods(model, [MaskedText((7, 4000), (0, 1), (1,))], tokenizer.mask)
    torch.nn.init.constant_(model.token_embedding.weight, math.nan)
    with pytest.raises(UserError, match="NaN"):
        pseudo_log_likelihoods(model, [MaskedText((7,), (0,), (0,))], tokenizer.mask)
