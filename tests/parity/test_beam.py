"""Beam search equals Hugging Face's: the same texts in the same order, with the same scores."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import GenerationConfig

import anyformer as af
from anyformer.generation import beam_search_ids
from tests.parity import hf_models
from tests.parity.conversion import caches_rightly, ours_of
from tests.parity.float64 import Float64, build_wide
from tests.parity.model_spec import ModelSpec, ragged
from tests.parity.padding import draw_filler, draw_rows, pad

NEW = 16
ROUNDING = 1e-12
"""Of scores in float64."""
SEARCHES = st.sampled_from(
    [
        af.GenerationConfig(beams=beams, length_penalty=penalty, early_stopping=early)
        for beams, penalty, early in itertools.product((2, 3, 4, 5), (0.0, 1.0, 0.6, 2.0, -1.0), (True, False, "never"))
    ]
)


def _comparable(drawn: ModelSpec) -> bool:
    """Whether transformers' cache is right: it keeps stale keys of dynamic angles, and all keys for a window of 1."""
    return not drawn.is_dynamic and drawn.options.get("sliding_window") != 1


def _theirs(theirs: Any, row: Tensor, search: af.GenerationConfig, new: int) -> tuple[list[list[int]], Tensor]:
    """The new tokens of all beams, best first, their padding cut off, and their scores."""
    out = theirs.generate(
        row[None],
        attention_mask=torch.ones_like(row[None]),
        num_beams=search.beams,
        num_return_sequences=search.beams,
        length_penalty=search.length_penalty,
        early_stopping=search.early_stopping,
        max_new_tokens=new,
        do_sample=False,
        use_cache=caches_rightly(theirs),
        return_dict_in_generate=True,
        output_scores=True,
    )
    before = 1 if theirs.config.is_encoder_decoder else len(row)
    return _cut(out.sequences[:, before:], theirs.generation_config), out.sequences_scores


def _exact(drawn: ModelSpec, theirs: Any, *arguments: Any) -> tuple[list[list[int]], Tensor]:
    """The same in float64."""
    model: Any = build_wide(drawn)
    model.generation_config = theirs.generation_config
    with Float64():
        return _theirs(model, *arguments)


def _cut(ids: Tensor, config: GenerationConfig) -> list[list[int]]:
    """Texts up to their end: how much padding follows depends on the other texts."""
    ends = config.eos_token_id
    known = set() if ends is None else {ends} if isinstance(ends, int) else set(ends)
    texts = []
    for row in ids.tolist():
        end = next((place for place, token in enumerate(row) if token in known), len(row) - 1)
        texts.append(row[: end + 1])
    return texts


def _draw_settings(data: st.DataObject, drawn: ModelSpec) -> GenerationConfig:
    """Ends, of which a random model says one now and then, and rules that bend the scores."""
    token = st.integers(5, 18)
    config = GenerationConfig(
        pad_token_id=0,
        eos_token_id=data.draw(st.none() | token | st.lists(token, min_size=1, max_size=3, unique=True)),
        decoder_start_token_id=0 if drawn.kind == "seq2seq" else None,
    )
    rules = {
        "repetition_penalty": st.sampled_from((0.8, 1.5)),
        "no_repeat_ngram_size": st.integers(1, 3),
        "bad_words_ids": st.lists(st.lists(token, min_size=1, max_size=2), min_size=1, max_size=3),
        "suppress_tokens": st.lists(token, min_size=1, max_size=2),
        "min_new_tokens": st.integers(1, 6),
    }
    if drawn.kind == "seq2seq":
        rules |= {"forced_bos_token_id": token}
    if config.eos_token_id is not None:
        rules |= {"forced_eos_token_id": st.just(config.eos_token_id)}
    for name in data.draw(st.lists(st.sampled_from(sorted(rules)), max_size=2, unique=True)):
        setattr(config, name, data.draw(rules[name]))
    # transformers refuses to force tokens that are all suppressed.
    ends = config.forced_eos_token_id
    forced = [[config.forced_bos_token_id], ends if isinstance(ends, list) else [ends]]
    assume(not any(set(tokens) <= set(config.suppress_tokens or []) for tokens in forced))
    return config


def _assert_same_texts(
    found: list[list[int]],
    texts: list[list[int]],
    scores: Tensor,
    exact: Callable[[], tuple[list[list[int]], Tensor]],
    name: str,
) -> None:
    """Each text found is the one at its place in `texts`, or one that Hugging Face gives the same score.

    With a window of two tokens, two texts that say one word at different places are equally likely: their order is
    rounding. That they are is told by `exact`, which searches in float64.
    """
    for place, text in enumerate(found):
        if text not in itertools.compress(texts, (scores == scores[place]).tolist()):
            others, scores_of_others = exact()
            ties = ((scores_of_others - scores_of_others[place]).abs() <= ROUNDING).tolist()
            assert text in itertools.compress(others, ties), f"{name}, text {place}"
    assert len(set(map(tuple, found))) == len(set(map(tuple, texts[: len(found)]))), f"{name}: a text is there twice"


def assert_same_search(data: st.DataObject, architecture: str) -> None:
    """Ragged prompts in one batch, padded on either side, against Hugging Face row by row."""
    drawn = data.draw(hf_models.models(architecture).filter(_comparable))
    theirs: Any = drawn.build()
    theirs.generation_config = _draw_settings(data, drawn)
    ours = ours_of(theirs)
    search, new = data.draw(SEARCHES), data.draw(st.integers(theirs.generation_config.min_new_tokens or 1, NEW))
    n_best = data.draw(st.integers(1, search.beams))
    vocab, side = drawn.options["vocab_size"], data.draw(st.sampled_from(("left", "right")))
    rows = draw_rows(data, vocab, data.draw(st.integers(1, 3)), 12)
    ids, mask = pad(rows, side, draw_filler(data, drawn, vocab)), ragged(list(map(len, rows)), side)
    ends = theirs.generation_config.eos_token_id is not None
    found = beam_search_ids(ours, ids, mask, search, n_best=n_best, max_new_tokens=new, stop_at_eos=ends)
    assert found.ids.shape[:2] == found.scores.shape == (len(rows), n_best)
    for index, row in enumerate(rows):
        texts, scores = _theirs(theirs, row, search, new)
        # Where fewer texts are possible than were asked for, the rest is any of those that score -1e9.
        exist = min(n_best, int((scores > -1e8).sum()))
        mine = _cut(found.ids[index], theirs.generation_config)[:exist]
        exact = partial(_exact, drawn, theirs, row, search, new)
        _assert_same_texts(mine, texts, scores, exact, f"row {index}")
        torch.testing.assert_close(found.scores[index], scores[:n_best], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", hf_models.GENERATORS)
@settings(max_examples=5)
@given(data=st.data())
def test_beam_search_equals(architecture: str, data: st.DataObject) -> None:
    assert_same_search(data, architecture)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", hf_models.GENERATORS)
@settings(max_examples=120)
@given(data=st.data())
def test_beam_search_equals_over_many_configs(architecture: str, data: st.DataObject) -> None:
    assert_same_search(data, architecture)


@pytest.mark.parametrize("architecture", hf_models.ROTARY)
@settings(max_examples=2)
@given(data=st.data())
def test_dynamic_scaling(architecture: str, data: st.DataObject) -> None:
    """Angles that depend on the length: Hugging Face is right without its cache only, which keeps stale keys."""
    drawn = data.draw(hf_models.growing(architecture))
    theirs: Any = drawn.build()
    theirs.generation_config = GenerationConfig(pad_token_id=0, eos_token_id=7, use_cache=False)
    row = draw_rows(data, drawn.options["vocab_size"], 1, 12)[0]
    expected = theirs.generate(row[None], attention_mask=torch.ones_like(row[None]), num_beams=3, max_new_tokens=40)
    found = beam_search_ids(ours_of(theirs), row[None], max_new_tokens=40, beams=3)
    assert _cut(found.ids[0], theirs.generation_config) == _cut(expected[:, len(row) :], theirs.generation_config)


def test_the_settings_of_a_model_are_followed() -> None:
    """As `generate` of transformers, which is told nothing but the length."""
    options = {"vocab_size": 40, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "pad_token_id": 39}
    sizes = {"encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    ends = {"decoder_start_token_id": 39, "eos_token_id": 0, "forced_eos_token_id": 0}
    theirs: Any = ModelSpec("marian", "MarianMTModel", options | sizes | ends, seed=3).build()
    theirs.generation_config.update(num_beams=4, length_penalty=0.5, early_stopping=True)
    ours = ours_of(theirs)
    own = af.GenerationConfig.for_model(ours)
    assert own == af.GenerationConfig(beams=4, length_penalty=0.5, early_stopping=True)
    source = torch.tensor([[5, 6, 7, 8, 0]])
    expected = theirs.generate(source, attention_mask=torch.ones_like(source), max_new_tokens=12)
    assert af.generate_ids(ours, source, max_new_tokens=12).tolist() == expected[:, 1:].tolist()
    greedy = theirs.generate(source, attention_mask=torch.ones_like(source), max_new_tokens=12, num_beams=1)
    assert af.generate_ids(ours, source, max_new_tokens=12, beams=1).tolist() == greedy[:, 1:].tolist()
    assert expected.tolist() != greedy.tolist()
