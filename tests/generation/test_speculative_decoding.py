"""Guessing ahead changes how many steps a text takes, and nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anyformer.blocks.kv_cache import KeyValueCache
from anyformer.errors import UserError
from anyformer.generation import GenerationConfig, cached_decoder, generate_ids
from anyformer.generation.cached_decoder import DecoderStep
from anyformer.generation.sampling import Sampler
from anyformer.generation.speculative_decoding import Draft, prompt_lookup, verify
from anyformer.model import Transformer
from tests.generation.models import DECODERS, VOCAB, WRITERS, build, config, rows

NEW = 14
SMALL = config(d_model=8, decoder_layers=1, max_length=20)


def write(model: Transformer, texts: list[list[int]], draft: Draft | None, penalty: float = 1.0) -> Tensor:
    longest = max(map(len, texts))
    ids = torch.tensor([text + [0] * (longest - len(text)) for text in texts])
    mask = torch.tensor([[True] * len(text) + [False] * (longest - len(text)) for text in texts])
    config = GenerationConfig(max_new_tokens=NEW, repetition_penalty=penalty, stop_at_eos=False)
    return generate_ids(model, ids, mask, config, draft=draft)


@pytest.mark.parametrize("name", WRITERS)
@settings(max_examples=5)
@given(texts=rows(texts=2), penalty=st.sampled_from([1.0, 1.3]))
def test_prompt_lookup_changes_no_greedy_text(name: str, texts: list[list[int]], penalty: float) -> None:
    model = build(WRITERS[name])
    assert torch.equal(write(model, texts, "prompt", penalty), write(model, texts, None, penalty))


@pytest.mark.parametrize("name", DECODERS)
@settings(max_examples=4)
@given(texts=rows(texts=2), seed=st.integers(0, 99), same=st.booleans())
def test_a_draft_model_changes_no_greedy_text(name: str, texts: list[list[int]], seed: int, same: bool) -> None:
    """Not one that knows better or worse, nor one whose context (20) ends before the text does."""
    model = build(WRITERS[name])
    draft = model if same else build(SMALL, seed)
    assert torch.equal(write(model, texts, draft), write(model, texts, None))


def test_the_end_of_a_text_is_the_same() -> None:
    ids = torch.tensor([[5, 6, 7, 5, 6]])
    plain = generate_ids(build(WRITERS["rotary"]), ids, max_new_tokens=NEW, stop_at_eos=False)
    # What is written in the middle ends the text.
    model = build(WRITERS["rotary"], settings={"eos_token_id": int(plain[0, 4])})
    expected = generate_ids(model, ids, max_new_tokens=NEW)
    assert expected.shape[1] <= 5
    for draft in ("prompt", model):
        assert torch.equal(generate_ids(model, ids, max_new_tokens=NEW, draft=draft), expected)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each step reads."""
    seen = list[int]()

    def counting(model: Transformer) -> Callable[..., Tensor]:
        step = DecoderStep(model)

        def count(tokens: Tensor, cache: KeyValueCache, **wishes: Any) -> Tensor:
            seen.append(tokens.shape[1])
            return step(tokens, cache, **wishes)

        return count

    monkeypatch.setattr(cached_decoder, "DecoderStep", counting)
    return seen


def test_a_text_that_repeats_itself_takes_fewer_steps(steps: list[int]) -> None:
    model = build(WRITERS["no position"])
    said = write(model, [[5, 6, 7]], None)[0].tolist()
    steps.clear()
    again = write(model, [[5, 6, 7, *said]], "prompt")
    assert again.shape == (1, NEW)
    assert steps[0] == 3 + len(said)  # the prompt
    assert len(steps) < NEW or len(set(said)) == len(said)
    assert max(steps[1:]) > 1


def test_lookup_finds_the_latest_place_of_the_longest_match() -> None:
    assert prompt_lookup([1, 2, 3, 9, 2, 3, 8, 1, 2, 3], 2).tokens == [9, 2]
    assert prompt_lookup([2, 3, 9, 4, 3, 8, 7, 3], 2).tokens == [8, 7]
    assert prompt_lookup([1, 2, 3], 4).tokens == []
    assert prompt_lookup([2, 5], 4, source=[4, 5, 6, 7]).tokens == [6, 7, 2, 5]


@settings(max_examples=12)
@given(st.lists(st.floats(-3, 3), min_size=2, max_size=6), st.data())
def test_what_is_accepted_has_the_models_distribution(scores: list[float], data: st.DataObject) -> None:
    logits = torch.tensor(scores)
    certain = data.draw(st.booleans())
    guessed = torch.tensor(data.draw(st.lists(st.floats(-3, 3), min_size=len(scores), max_size=len(scores)))).softmax(0)
    generator, count, draws = torch.Generator().manual_seed(0), Counter[int](), 3000
    sampler = Sampler(GenerationConfig(temperature=1.0), generator)
    for _ in range(draws):
        guess = len(scores) - 1 if certain else int(torch.multinomial(guessed, 1, generator=generator))
        count[int(verify(sampler, logits[None], guess, None if certain else guessed))] += 1
    found = torch.tensor([count[token] / draws for token in range(len(scores))])
    # Four standard deviations of a share.
    assert bool(((found - logits.softmax(0)).abs() < 4 * (0.25 / draws) ** 0.5).all())


@pytest.mark.parametrize("name", ["prompt", "model"])
def test_drawn_texts_have_their_distribution(name: str) -> None:
    model = build(WRITERS["learned"])
    config = GenerationConfig(max_new_tokens=3, temperature=1.0, top_k=3, seed=3, stop_at_eos=False)
    ids, draws = torch.tensor([[5, 6, 7, 9, 5, 6]]), 400
    draft = "prompt" if name == "prompt" else build(SMALL)

    def shares(some: Draft | None) -> dict[Sequence[int], float]:
        drawn = generate_ids(model, ids, None, config, samples=draws, draft=some)
        return {text: count / draws for text, count in Counter(map(tuple, drawn.tolist())).items()}

    plain, guessed = shares(None), shares(draft)
    for text in plain.keys() | guessed.keys():
        # A difference of two shares, four and a half standard deviations.
        assert abs(plain.get(text, 0.0) - guessed.get(text, 0.0)) < 4.5 * (2 * 0.25 / draws) ** 0.5, text


def test_samples_are_drawn_apart_and_read_once() -> None:
    model, ids = build(WRITERS["rotary"]), torch.tensor([[5, 6, 7], [8, 9, 10]])
    drawn = generate_ids(model, ids, max_new_tokens=8, temperature=1.0, samples=3, seed=1, stop_at_eos=False)
    assert drawn.shape == (6, 8)
    assert len({tuple(row) for row in drawn.tolist()}) > 3
    greedy = generate_ids(model, ids, max_new_tokens=8, samples=2, stop_at_eos=False)
    alone = generate_ids(model, ids, max_new_tokens=8, stop_at_eos=False)
    assert torch.equal(greedy, alone.repeat_interleave(2, dim=0))


def test_mistakes_are_said() -> None:
    model, ids = build(WRITERS["rotary"]), torch.tensor([[5, 6, 7]])
    other = build(config(vocab_size=VOCAB + 1))
    both = build(WRITERS["learned both"])
    with pytest.raises(UserError, match="vocabulary of 24 tokens, and the model one of 23"):
        generate_ids(model, ids, draft=other)
    with pytest.raises(UserError, match='draft="prompt"'):
        generate_ids(both, ids, draft=model)
    with pytest.raises(UserError, match="without beams"):
        generate_ids(model, ids, draft="prompt", beams=2)
    with pytest.raises(UserError, match="without beams"):
        generate_ids(model, ids, samples=2, beams=2)
    with pytest.raises(UserError, match="at least 1, not 0"):
        generate_ids(model, ids, samples=0)
