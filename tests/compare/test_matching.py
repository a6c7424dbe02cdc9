from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import anyformer as af
from anyformer.analysis import step_flops, training_flops
from anyformer.compare.corpus import window_objective
from anyformer.compare.matching import depth, matched, parameters_outside_embeddings, read_models
from anyformer.compare.training import flops_per_token
from anyformer.config import ModelConfig
from anyformer.data.batch import IGNORED
from anyformer.errors import UserError
from anyformer.families import ALIASES
from anyformer.native.levels import SWITCH
from anyformer.training.prepare import fit_model
from tests.compare.texts import tokenizer

FAMILIES = sorted({*ALIASES, "gpt2"})


def _flops(config: ModelConfig) -> float:
    return flops_per_token(config, 30)


@pytest.mark.parametrize("measure", ["parameters", "flops"])
@given(names=st.lists(st.sampled_from(FAMILIES), min_size=2, max_size=6, unique=True))
@example(names=["falcon", "deepseek_v3"])  # whose narrowest is larger than a falcon of this depth
@settings(max_examples=10)
def test_families_are_matched(measure: str, names: list[str]) -> None:
    size = parameters_outside_embeddings if measure == "parameters" else _flops
    found = read_models(names, measure)
    configs = [fit_model(each.config.replace(max_length=32), tokenizer(), None) for each in found]
    sized = [replace(each, config=config) for each, config in zip(found, configs, strict=True)]
    made = matched(sized, size, measure)
    sizes = [size(each.config) for each in made]
    assert max(sizes) / min(sizes) < 1.01
    assert len({(each.config.d_model, depth(each.config, measure)) for each in made}) == 1
    for each, name in zip(made, names, strict=True):
        whole = af.preset(name)
        same = ("norm.kind", "norm.placement", "position.kind", "feed_forward.gated", "feed_forward.activation")
        assert not {*same} & {*af.diff(whole, each.config)}


def test_a_change_is_kept_and_a_sized_preset_sets_the_size() -> None:
    changed, like = read_models(["llama:norm.kind=layer,decoder_layers=3", "gpt2-nano"], "parameters")
    assert changed.config.norm.kind == "layer"
    assert changed.config.decoder_layers == 3
    assert changed.config.d_model == like.config.d_model
    assert like.notes == ()


def test_what_can_not_be_matched_is_refused() -> None:
    found = read_models(["gpt2-medium", "llama-nano"], "parameters")
    with pytest.raises(UserError, match=r"^llama-nano can't be matched with gpt2-medium"):
        matched(found, parameters_outside_embeddings, "parameters outside embeddings")


def test_layers_that_share_their_weights_become_wide() -> None:
    bert, albert = matched(
        read_models(["bert", "albert"], "parameters"), parameters_outside_embeddings, "parameters outside embeddings"
    )
    assert albert.config.distinct_layers == 1
    assert albert.config.feed_forward.width > 3 * bert.config.feed_forward.width


@given(name=st.sampled_from(FAMILIES), rows=st.integers(1, 3), window=st.integers(16, 40), data=st.data())
@settings(max_examples=12)
def test_flops_of_a_step_are_those_that_pytorch_counts(name: str, rows: int, window: int, data: st.DataObject) -> None:
    (found,) = read_models([name], "parameters")
    config = fit_model(found.config.replace(max_length=window + 2, d_model=64), tokenizer(), None)
    model = af.build(config)
    rng = torch.randint(5, config.vocab_size, (rows, window), generator=torch.Generator().manual_seed(0))
    batch = window_objective(config, tokenizer())(rng.numpy(), np.random.default_rng(data.draw(st.integers(0, 9))))
    tokens, targets = torch.from_numpy(batch.tokens), torch.from_numpy(batch.targets)
    source = None if batch.source is None else torch.from_numpy(batch.source)
    # Its counter knows the plain products of attention, not fused or compiled kernels.
    with pytest.MonkeyPatch.context() as patch, sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        patch.setenv(SWITCH, "0")
        hidden = model(tokens, source, return_logits=False).hidden
        kept = targets != IGNORED
        logits = model.head(hidden[kept], model.token_embedding.weight)
        torch.nn.functional.cross_entropy(logits, targets[kept]).backward()
    length = 0 if source is None else source.shape[1]
    ours = step_flops(config, rows, tokens.shape[1], length, batch.predicted)
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.02)


@given(name=st.sampled_from(["gpt2", "llama", "t5", "transformer"]), context=st.integers(4, 40))
@settings(max_examples=6)
def test_of_equal_lengths_it_is_what_every_run_counts(name: str, context: int) -> None:
    config = af.preset(name, d_model=32, attention={"heads": 2, "kv_heads": None, "head_dim": None}, vocab_size=40)
    flops = training_flops(config, context)
    source = context if config.is_encoder_decoder else 0
    assert step_flops(config, 3, context, source) == 3 * (flops.token * context + flops.source * source)


def test_a_token_costs_what_the_steps_say() -> None:
    (found,) = read_models(["gpt2"], "parameters")
    assert flops_per_token(found.config, 126) == step_flops(found.config, 4, 126) / (4 * 126)
    assert partial(flops_per_token, window=126)(found.config) == flops_per_token(found.config, 126)
