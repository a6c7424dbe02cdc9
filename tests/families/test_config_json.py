"""A config.json of a stranger describes a model or is refused in a sentence, whatever its fields hold."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import examples

import anyformer as af
from anyformer.blocks.position import frequencies
from anyformer.checkpoint import generation_settings
from anyformer.errors import UserError
from anyformer.families import FAMILIES, PRESETS, from_huggingface, rates_of_dropout, to_huggingface
from anyformer.families.base import write_activation
from anyformer.model import skeleton

VALUES: list[Any] = [None, True, 0, -1, 3, 10**12, 10**30, 10**400, 1.5, 1e308, 1e-308, float("nan"), float("inf")]
VALUES += ["", "x", "9" * 5000, [], [1], [None], [[1]], {}, {"a": 1}]
ROPE = ["factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow"]
ROPE += ["attention_factor", "mscale", "mscale_all_dim", "truncate", "rope_theta", "rope_type"]


@pytest.mark.parametrize("model_type", FAMILIES)
def test_fields_of_any_json_type(model_type: str) -> None:
    named = FAMILIES[model_type]
    family, raw = to_huggingface(next(iter((named.text_model or named).presets.values())))
    around = {"model_type": model_type, "architectures": [*named.architectures][:1]}
    for number, field in enumerate(raw):
        for value in VALUES[number % 3 :: 3] if examples.IN_GATE else VALUES:
            changed = {**raw, field: value}
            with contextlib.suppress(UserError):
                config = from_huggingface({**around, "text_config": changed} if named.text_model else changed)
                assert config.model_type == family.model_type
                switches = (config.attention.bias, config.feed_forward.bias, config.embedding.tied)
                assert all(isinstance(switch, bool) for switch in switches), (field, value)


def test_an_activation_of_t5_beside_its_projection() -> None:
    """transformers follows `dense_act_fn` where the two say different things."""
    _, raw = to_huggingface(PRESETS["t5-v1.1-small"])
    for activation in ("relu", "silu", "gelu_new"):
        config = from_huggingface({**raw, "feed_forward_proj": "gated-gelu", "dense_act_fn": activation})
        assert config.feed_forward.gated
        assert write_activation(config.feed_forward.activation) == activation


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("albert-base-v2", {"inner_group_num": 2}, "inner_group_num = 1"),
        ("albert-base-v2", {"num_hidden_groups": 5}, "num_hidden_groups = 5 is no number of blocks that 12 layers"),
        ("albert-base-v2", {"num_hidden_groups": None}, "needs a number as num_hidden_groups"),
        ("albert-base-v2", {"embedding_size": None}, "needs a number as embedding_size"),
        ("mpnet-base", {"relative_attention_num_buckets": 64}, "relative_attention_num_buckets = 32"),
        ("deberta-v3-base", {"conv_kernel_size": 3}, "conv_kernel_size = 3 is not supported .* has to be 0"),
        ("deberta-v3-base", {"position_biased_input": None}, "position_biased_input = None is not .* be False"),
        ("deberta-v3-base", {"pos_att_type": "c2p"}, "pos_att_type = c2p is not supported"),
        ("deberta-v3-base", {"share_att_key": False}, "share_att_key = False is not supported"),
        ("deberta-v3-base", {"norm_rel_ebd": "none"}, "norm_rel_ebd = none is not supported"),
        ("deberta-v3-base", {"embedding_size": 128}, "embedding_size = 128 is not supported .* has to be 768"),
        ("deberta-v3-base", {"position_buckets": -1}, "supported with position_buckets"),
        ("deberta-v3-base", {"legacy": False}, "remove legacy = false"),
        ("modernbert-base", {"attention_dropout": 0.1}, "attention_dropout = 0"),
        ("electra-small", {"is_decoder": True}, "is_decoder = True is not supported"),
    ],
)
def test_encoders_that_no_model_here_can_follow(name: str, changes: dict[str, Any], says: str) -> None:
    _, raw = to_huggingface(af.preset(name))
    with pytest.raises(UserError, match=says):
        from_huggingface({**raw, **changes})


@pytest.mark.parametrize("kind", ["linear", "dynamic", "llama3", "yarn"])
def test_rotary_fields_of_any_json_type(kind: str) -> None:
    _, raw = to_huggingface(af.preset("smollm2-135m"))
    usual = {"rope_type": kind, "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "mscale": 1.0}
    for field in ROPE:
        for value in VALUES:
            with contextlib.suppress(UserError):
                config = from_huggingface({**raw, "rope_parameters": None, "rope_scaling": {**usual, field: value}})
                assert (config.context_length or 0) < 10**12
                radians, factor = frequencies(config.position, 64, config.max_length, torch.tensor([[10_000]]))
                assert (torch.isfinite(radians) & (radians >= 0)).all()
                assert factor > 0


@pytest.mark.parametrize("size", ["vocab_size", "d_model", "max_length", "feed_forward.width"])
def test_sizes_take_no_memory_before_they_are_refused(size: str) -> None:
    for value in (10**9, 10**12, 10**17, 2**63 - 1):
        with contextlib.suppress(UserError):
            skeleton(af.preset("gpt2-nano", **{size: value}))
    with pytest.raises(UserError, match="must lie in"):
        af.preset("gpt2-nano", decoder_layers=10**7)


@pytest.mark.parametrize("field", generation_settings.FIELDS)
def test_generation_settings_of_any_json_type(tmp_path: Path, field: str) -> None:
    for value in [*VALUES, [1] * 10**6, [[1, 2], 3], [[[1], "x"]]]:
        (tmp_path / generation_settings.FILE).write_text(json.dumps({field: value}))
        with contextlib.suppress(UserError):
            assert field in generation_settings.read(tmp_path, {})


@pytest.mark.parametrize("name", PRESETS)
def test_rates_of_dropout_are_those_that_the_familys_files_hold(name: str) -> None:
    config = af.preset(name)
    family, held = to_huggingface(config)[0], FAMILIES[config.model_type].json_names
    for rate in (0.0, 0.25):
        # The residual stream's is set where a file can't say it, too: it was asked for by its name.
        names = [each for each in rates_of_dropout(config, rate) if not rate or not held or each in held]
        changed = config.replace(**dict.fromkeys(names, rate))
        assert to_huggingface(changed)[0] is family, names
    assert names or "dropout" not in " ".join(held)
