"""Every processor, and their order, against the processors that Hugging Face makes of the same settings."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LogitsProcessorList,
)

from anyformer.errors import UserError
from anyformer.generation import generate_ids
from anyformer.generation.config import generation_settings
from anyformer.generation.logits_processors import History, model_processors
from anyformer.generation.prompt import Prompt
from anyformer.model import Origin
from tests.generation.models import WRITERS, build, recompute

VOCAB, EOS = 11, [1, 4]
TINY = {
    "d_model": 8,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 1,
    "decoder_attention_heads": 1,
}

token = st.integers(0, VOCAB - 1)
tokens = st.lists(token, min_size=1, max_size=4)
SETTINGS: dict[str, st.SearchStrategy[Any]] = {
    "sequence_bias": st.lists(
        st.tuples(st.lists(token, min_size=1, max_size=3), st.floats(-3, 3)).map(list), min_size=1, max_size=4
    ),
    "encoder_repetition_penalty": st.floats(0.5, 2.0),
    "repetition_penalty": st.floats(0.5, 2.0),
    "no_repeat_ngram_size": st.integers(1, 3),
    "encoder_no_repeat_ngram_size": st.integers(1, 3),
    "bad_words_ids": st.lists(st.lists(token, min_size=1, max_size=3), min_size=1, max_size=4).filter(
        lambda words: any(word not in [[end] for end in EOS] for word in words)
    ),
    "min_length": st.integers(0, 12),
    "min_new_tokens": st.integers(0, 6),
    "forced_bos_token_id": token,
    "forced_eos_token_id": st.one_of(token, tokens),
    "suppress_tokens": tokens,
    "begin_suppress_tokens": tokens,
}


@pytest.fixture(scope="module")
def theirs() -> dict[bool, Any]:
    torch.manual_seed(0)
    return {
        False: GPT2LMHeadModel(
            GPT2Config(vocab_size=VOCAB, n_embd=8, n_layer=1, n_head=1, bos_token_id=2, eos_token_id=1)
        ),
        True: BartForConditionalGeneration(
            BartConfig(vocab_size=VOCAB, encoder_ffn_dim=8, decoder_ffn_dim=8, max_position_embeddings=32, **TINY)
        ),
    }


def processors(model: Any, chosen: dict[str, Any], prompt: int, given_ids: Tensor, new: int) -> LogitsProcessorList:
    generation = GenerationConfig(
        **chosen, eos_token_id=EOS, pad_token_id=0, decoder_start_token_id=2, max_new_tokens=new
    )
    model._prepare_special_tokens(generation, device="cpu")
    model._prepare_generated_length(generation, True, generation.min_length is None, "input_ids", prompt, given_ids)
    return model._get_logits_processor(generation, prompt, given_ids, device="cpu", model_kwargs={})


@settings(max_examples=150, derandomize=True, database=None)
@given(data=st.data())
def test_processors_are_theirs(theirs: dict[bool, Any], data: st.DataObject) -> None:
    both = data.draw(st.booleans())
    names = data.draw(st.sets(st.sampled_from(sorted(SETTINGS)), min_size=1, max_size=4))
    chosen = {name: data.draw(SETTINGS[name], label=name) for name in sorted(names)}
    # Hugging Face refuses what leaves no token at all.
    forced = (
        np.ravel(chosen.get("forced_bos_token_id", [])).tolist()
        + np.ravel(chosen.get("forced_eos_token_id", [])).tolist()
    )
    assume(not set(forced) & set(chosen.get("suppress_tokens", [])))
    texts = data.draw(st.integers(1, 2))

    def ids(length: int) -> Tensor:
        row = st.lists(st.integers(0, 4), min_size=length, max_size=length)
        return torch.tensor(data.draw(st.lists(row, min_size=texts, max_size=texts)))

    prompt, most = 1 if both else data.draw(st.integers(1, 5)), data.draw(st.integers(1, 8))
    new = data.draw(st.integers(0, most - 1))
    history = ids(prompt + new)
    read = ids(data.draw(st.integers(1, 6))) if both else history[:, :prompt]
    row = st.lists(st.floats(-5, 5, width=32), min_size=VOCAB, max_size=VOCAB)
    scores = torch.tensor(data.draw(st.lists(row, min_size=texts, max_size=texts)), dtype=torch.float32)

    expected = processors(theirs[both], chosen, prompt, read, most)(history, scores.clone())

    def apply(ids: Tensor, padding: int, given_ids: Tensor, mask: Tensor | None) -> Tensor:
        made = scores
        for processor in model_processors(chosen, Prompt(ids=given_ids, mask=mask, max_new_tokens=most), EOS, VOCAB):
            made = processor(made, History(ids=ids, padding=torch.full((texts,), padding), new=new))
        return made

    torch.testing.assert_close(apply(history, 0, read, None), expected, rtol=1e-6, atol=1e-6)
    # Padding of any content changes nothing.
    pad = ids(2)
    real = torch.cat((torch.zeros_like(pad, dtype=torch.bool), torch.ones_like(read, dtype=torch.bool)), dim=1)
    padded = apply(torch.cat((pad, history), dim=1), 2, torch.cat((pad, read), dim=1), real)
    torch.testing.assert_close(padded, expected, rtol=1e-6, atol=1e-6)


def test_each_setting_is_seen() -> None:
    """Every setting but those of beam search makes a processor, in their order."""
    values = {
        "sequence_bias": [[[3], 1.0]],
        "encoder_repetition_penalty": 2.0,
        "repetition_penalty": 2.0,
        "no_repeat_ngram_size": 2,
        "encoder_no_repeat_ngram_size": 2,
        "bad_words_ids": [[3]],
        "min_length": 2,
        "forced_bos_token_id": 3,
        "forced_eos_token_id": 3,
        "suppress_tokens": [3],
        "begin_suppress_tokens": [3],
    }
    prompt = Prompt(ids=torch.ones(1, 2, dtype=torch.long), max_new_tokens=2)
    for name, value in values.items():
        assert len(list(model_processors({name: value}, prompt, EOS, VOCAB))) == 1, name
    others = {"num_beams": 4, "length_penalty": 2.0, "do_sample": True, "repetition_penalty": 1.0}
    assert not list(model_processors(others, prompt, EOS, VOCAB))
    assert not list(model_processors({"bad_words_ids": [[1], [4]]}, prompt, EOS, VOCAB))


@pytest.mark.parametrize(
    ("chosen", "named"),
    [
        ({"bad_words_ids": [[3, 99]]}, "bad_words_ids names token 99"),
        ({"forced_eos_token_id": [99]}, "forced_eos_token_id names token 99"),
        ({"forced_bos_token_id": -1}, "forced_bos_token_id names token -1"),
        ({"repetition_penalty": 0}, "repetition_penalty is a positive number"),
    ],
)
def test_impossible_settings(chosen: dict[str, Any], named: str) -> None:
    prompt = Prompt(ids=torch.ones(1, 2, dtype=torch.long), max_new_tokens=2)
    with pytest.raises(UserError, match=named):
        list(model_processors(chosen, prompt, EOS, VOCAB))


def test_settings_come_from_the_config_where_there_is_no_other_file() -> None:
    model = build(WRITERS["learned both"])
    model.origin = Origin(config={"forced_bos_token_id": 7, "forced_eos_token_id": 5, "num_beams": 4})
    said = generate_ids(model, torch.tensor([[3, 4, 5], [6, 7, 8]]), max_new_tokens=6)
    assert said[:, 0].tolist() == [7, 7]
    assert said[:, -1].tolist() == [5, 5]
    model.origin = Origin(config=model.origin.config, generation={"forced_bos_token_id": 8})
    assert generation_settings(model) == {"forced_bos_token_id": 8}
    assert generate_ids(model, torch.tensor([[3, 4, 5]]), max_new_tokens=6)[0, 0] == 8


def test_processors_steer_the_loop() -> None:
    model = build(WRITERS["rotary"])
    free = recompute(model, [3, 4, 5], 8)
    model.origin = Origin(generation={"suppress_tokens": sorted(set(free)), "num_beams": 5})
    assert not set(generate_ids(model, torch.tensor([[3, 4, 5]]), max_new_tokens=8)[0].tolist()) & set(free)
    model.origin = Origin(generation={"no_repeat_ngram_size": 1})
    said = generate_ids(model, torch.tensor([[3, 4, 5]]), max_new_tokens=12)[0].tolist()
    assert len({3, 4, 5, *said}) == 15


def test_the_end_is_held_back() -> None:
    model = build(WRITERS["rotary"])
    first = recompute(model, [3, 4, 5], 1)[0]
    ids = torch.tensor([[3, 4, 5]])
    model.origin = Origin(generation={"eos_token_id": first})
    assert generate_ids(model, ids, max_new_tokens=6)[0].tolist() == [first]
    model.origin = Origin(generation={"eos_token_id": first, "min_new_tokens": 3})
    assert first not in generate_ids(model, ids, max_new_tokens=6)[0, :3]
    model.origin = Origin(generation={"eos_token_id": first, "min_length": 5})
    assert first not in generate_ids(model, ids, max_new_tokens=6)[0, :2]
