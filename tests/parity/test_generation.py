"""Greedy text equals Hugging Face's for 50 tokens: each text alone, and ragged prompts in one batch."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import GenerationConfig

import anyformer as af
from tests.parity import hf_models
from tests.parity.conversion import caches_rightly, ours_of
from tests.parity.model_spec import ModelSpec, ragged
from tests.parity.padding import draw_filler, draw_rows, pad

NEW = 50


def _comparable(drawn: ModelSpec) -> bool:
    """Whether transformers' cache is right: it keeps stale keys of dynamic angles, and all keys for a window of 1."""
    return not drawn.is_dynamic and drawn.options.get("sliding_window") != 1


def _endless(drawn: ModelSpec) -> Any:
    """A model that no setting stops or steers."""
    theirs: Any = drawn.build()
    start = 0 if drawn.kind == "seq2seq" else None
    theirs.generation_config = GenerationConfig(pad_token_id=0, decoder_start_token_id=start)
    return theirs


def _their_greedy(theirs: Any, row: Tensor, **settings: Any) -> Tensor:
    if not caches_rightly(theirs):
        settings["use_cache"] = False
    ids = theirs.generate(row[None], attention_mask=torch.ones_like(row[None]), do_sample=False, **settings)[0]
    return ids[1:] if theirs.config.is_encoder_decoder else ids[len(row) :]


def assert_same_text(data: st.DataObject, architecture: str) -> None:
    """Ragged prompts in one batch, padded on either side, against Hugging Face row by row."""
    drawn = data.draw(hf_models.models(architecture).filter(_comparable))
    theirs = _endless(drawn)
    ours = ours_of(theirs)
    vocab, side = drawn.options["vocab_size"], data.draw(st.sampled_from(("left", "right")))
    rows = draw_rows(data, vocab, data.draw(st.integers(1, 3)), 12)
    ids, mask = pad(rows, side, draw_filler(data, drawn, vocab)), ragged(list(map(len, rows)), side)
    new = af.generate_ids(ours, ids, mask=mask, max_new_tokens=NEW, stop_at_eos=False)
    assert new.shape == (len(rows), NEW)
    for index, row in enumerate(rows):
        assert new[index].tolist() == _their_greedy(theirs, row, max_new_tokens=NEW).tolist(), f"row {index}"
    alone = af.generate_ids(ours, rows[0][None], max_new_tokens=NEW, stop_at_eos=False)
    assert alone[0].tolist() == new[0].tolist()


@pytest.mark.parametrize("architecture", hf_models.GENERATORS)
@settings(max_examples=4)
@given(data=st.data())
def test_greedy_equals(architecture: str, data: st.DataObject) -> None:
    assert_same_text(data, architecture)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", hf_models.GENERATORS)
@settings(max_examples=60)
@given(data=st.data())
def test_greedy_equals_over_many_configs(architecture: str, data: st.DataObject) -> None:
    assert_same_text(data, architecture)


@pytest.mark.parametrize("architecture", hf_models.GENERATORS)
@settings(max_examples=4)
@given(data=st.data())
def test_greedy_stops_where_theirs_stops(architecture: str, data: st.DataObject) -> None:
    """With the settings that the model comes with: end-of-text, forced and banned tokens."""
    drawn = data.draw(hf_models.models(architecture).filter(_comparable))
    theirs: Any = drawn.build()
    row = draw_rows(data, drawn.options["vocab_size"], 1, 8)[0]
    # The token that this text gets to say early becomes its end, so that there is something to stop at.
    said = _their_greedy(_endless(drawn), row, max_new_tokens=8)
    theirs.generation_config.eos_token_id = [int(said[data.draw(st.integers(0, 7))]), 5]
    if theirs.generation_config.decoder_start_token_id is None and drawn.kind == "seq2seq":
        theirs.generation_config.decoder_start_token_id = 0
    ours = ours_of(theirs)
    expected = _their_greedy(theirs, row, max_new_tokens=20).tolist()
    assert af.generate_ids(ours, row[None], max_new_tokens=20)[0].tolist() == expected


@pytest.mark.parametrize("architecture", hf_models.ROTARY)
@settings(max_examples=4)
@given(data=st.data())
def test_dynamic_scaling(architecture: str, data: st.DataObject) -> None:
    """Angles that depend on the length: Hugging Face is right without its cache only, which keeps stale keys."""
    drawn = data.draw(hf_models.growing(architecture))
    theirs = _endless(drawn)
    ours = ours_of(theirs)
    row = draw_rows(data, drawn.options["vocab_size"], 1, 12)[0]
    expected = _their_greedy(theirs, row, max_new_tokens=NEW, use_cache=False).tolist()
    assert af.generate_ids(ours, row[None], max_new_tokens=NEW, stop_at_eos=False)[0].tolist() == expected
