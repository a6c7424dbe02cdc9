"""The config: what it accepts, what it refuses and how it says so, and what separates two of them."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import anyformer as af
from anyformer.config import AttentionConfig, FeedForwardConfig, ModelConfig, OtherLayers, RotaryScaling, diff
from anyformer.families import ALIASES, PRESETS
from anyformer.schema import ConfigError

ENCODER: dict[str, Any] = {"encoder_layers": 1, "decoder_layers": 0}


def tiny(**changes: Any) -> ModelConfig:
    base = ModelConfig(
        vocab_size=11,
        d_model=8,
        decoder_layers=1,
        attention=AttentionConfig(heads=2),
        feed_forward=FeedForwardConfig(width=16),
    )
    return base.replace(**changes)


@pytest.mark.parametrize("name", [*PRESETS, *ALIASES])
def test_every_preset_survives_the_way_through_plain_dicts(name: str) -> None:
    config = af.preset(name)
    assert ModelConfig.from_dict(config.to_dict()) == config


@given(layers=st.integers(1, 9), heads=st.sampled_from([1, 2, 4]), eps=st.floats(1e-9, 1e-2), gated=st.booleans())
def test_replace_reaches_nested_fields(layers: int, heads: int, eps: float, gated: bool) -> None:
    config = af.preset("gpt2", decoder_layers=layers, attention={"heads": heads}, **{"norm.eps": eps})
    config = config.replace(feed_forward={"gated": gated})
    assert (config.decoder_layers, config.attention.heads, config.norm.eps) == (layers, heads, eps)
    assert config.feed_forward.gated == gated
    assert config.attention.dropout == af.preset("gpt2").attention.dropout


@pytest.mark.parametrize(
    ("changes", "field", "hint"),
    [
        ({"decoder_layer": 2}, "decoder_layer", "decoder_layers"),
        ({"attention.head": 2}, "attention.head", "heads"),
        ({"position": {"knd": "rotary"}}, "position.knd", "kind"),
        ({"d_model": "wide"}, "d_model", "a whole number"),
        ({"attention": 4}, "attention", "attention.heads"),
        ({"norm.placement": "middle"}, "norm.placement", "pre"),
        ({"embedding.tied": 1}, "embedding.tied", "true or false"),
    ],
)
def test_a_wrong_field_is_named_with_a_hint(changes: dict[str, Any], field: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=rf"(?s)^{field}: .*{hint}"):
        tiny(**changes)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"vocab_size": 0}, "vocab_size"),
        ({"decoder_layers": 0}, "encoder_layers, decoder_layers"),
        ({"attention.heads": 3}, "attention.heads"),
        ({"attention.kv_heads": 3}, "attention.kv_heads"),
        ({"attention.window": 0}, "attention.window"),
        ({"attention.dropout": 1.0}, "attention.dropout"),
        ({"feed_forward.width": 0}, "feed_forward.width"),
        ({"position.kind": "rotary", "attention.head_dim": 3}, "attention.head_dim"),
        ({"position": {"scaling": {"kind": "linear", "factor": 2.0}}}, "position.scaling"),
        (
            {"position": {"kind": "rotary", "scaling": {"kind": "yarn", "factor": 2.0}}},
            "position.scaling.original_length",
        ),
        ({"position": {"kind": "rotary", "scaling": {"kind": "linear", "factor": -1.0}}}, "position.scaling.factor"),
        ({"position.skip_padding": True}, "position.skip_padding"),
        ({"position": {"kind": "sinusoidal", "skip_padding": True}}, "position.skip_padding"),
        ({"d_model": 3, "attention.heads": 1, "position": {"kind": "sinusoidal", "layout": "fairseq"}}, "d_model"),
        ({"d_model": 2, "position": {"kind": "sinusoidal", "layout": "fairseq"}}, "d_model"),
        ({"position.buckets": 5}, "position.buckets"),
        ({"position": {"kind": "none", "relative_bias": True}}, "position.relative_bias"),
        ({"position.relative_bias": True}, "position.relative_bias"),
        ({"distinct_layers": 1}, "distinct_layers"),
        ({**ENCODER, "distinct_layers": 1, "attention.scale_by_layer": True}, "distinct_layers"),
        ({"embedding.width": 4}, "embedding.width"),
        ({**ENCODER, "embedding.width": 4}, "embedding.width"),
        ({**ENCODER, "head": {"kind": "token_classification", "problem_type": "regression"}}, "head.problem_type"),
        (
            {**ENCODER, "head": {"kind": "token_classification", "problem_type": "multi_label_classification"}},
            "head.problem_type",
        ),
        ({"source_vocab_size": 5}, "source_vocab_size"),
        ({"embedding.padding": 11}, "embedding.padding"),
        ({"head.pooler": "tanh"}, "head.kind"),
        ({"head.kind": "classification"}, "head.kind"),
        ({"head": {"kind": "token_classification", "labels": 2, "label_names": ["a"]}}, "head.label_names"),
        ({"head": {"kind": "token_classification", "label_names": ["a", "a"]}}, "head.label_names"),
        ({"head": {"kind": "token_classification", "problem_type": "regression"}}, "head.problem_type"),
        ({"head": {"kind": "classification", "pooling": "last", "problem_type": "ranking"}}, "head.problem_type"),
        ({"head.pooling": "middle"}, "head.pooling"),
        ({"norm.eps": 0.0}, "norm.eps"),
        ({"norm.first": False}, "norm.first"),
        ({"norm.first": False, "embedding.norm": True}, "norm.first"),
        ({**ENCODER, "norm.first": False}, "norm.first"),
    ],
)
def test_what_is_no_transformer_is_refused(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{field}: "):
        tiny(**changes)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("d_model", 8.0),
        ("decoder_layers", True),
        ("max_length", 10**30),
        ("vocab_size", 11.5),
        ("attention.kv_heads", 1.0),
        ("feed_forward.width", True),
        ("feed_forward.activation", None),
        ("norm.eps", float("inf")),
        ("special_tokens.eos", (1, "x")),
        ("special_tokens.pad", True),
    ],
)
def test_a_number_of_the_wrong_kind_is_named(field: str, value: Any) -> None:
    part, _, name = field.rpartition(".")
    config = tiny()
    with pytest.raises(ConfigError, match=rf"^{field}: wants .*, not "):
        replace(config, **({part: replace(getattr(config, part), **{name: value})} if part else {name: value}))


def test_missing_fields_are_named() -> None:
    with pytest.raises(ConfigError, match="d_model: is missing"):
        ModelConfig.from_dict({"vocab_size": 3, "attention": {"heads": 1}, "feed_forward": {"width": 1}})


def test_diff_lists_only_what_differs() -> None:
    a, b = af.preset("gpt2"), af.preset("llama-3.2-1b")
    differences = af.diff(a, b)
    assert differences["norm.kind"] == ("layer", "rms")
    assert differences["position.kind"] == ("learned", "rotary")
    assert isinstance(differences["position.scaling"][1], RotaryScaling)
    assert "model_type" not in differences
    assert diff(a, a) == {}
    assert {name: (y, x) for name, (x, y) in differences.items()} == diff(b, a)


@given(st.sampled_from(sorted(PRESETS)), st.sampled_from(sorted(PRESETS)))
def test_diff_is_enough_to_turn_one_into_the_other(left: str, right: str) -> None:
    a, b = PRESETS[left], PRESETS[right]
    changes = {name: new for name, (_, new) in diff(a, b).items()}
    # A stack appears or goes together with what only it has, so all is changed at once.
    assert diff(a.replace(**changes), b) == {}


def test_unknown_presets_get_a_hint() -> None:
    with pytest.raises(af.UserError, match="did you mean 'gpt2'"):
        af.preset("gtp2")


@pytest.mark.parametrize("code", ["import anyformer.families", "import anyformer; anyformer.preset('gpt2')"])
def test_configs_need_no_torch(code: str) -> None:
    script = f"import sys; {code}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize("layers", [-1, 10**12])
def test_layers_can_be_counted(layers: int) -> None:
    with pytest.raises(ConfigError, match="decoder_layers"):
        af.preset("gpt2", decoder_layers=layers)


@pytest.mark.parametrize("part", ["factor", "low_frequency", "high_frequency", "beta_fast", "beta_slow"])
@pytest.mark.parametrize("value", [1e308, 1e-308, 0.0, -1.0, float("nan"), float("inf")])
def test_a_scaling_that_overflows_is_refused(part: str, value: float) -> None:
    given: dict[str, Any] = {"kind": "yarn", "factor": 2.0, "original_length": 8, part: value}
    with pytest.raises(
        ConfigError, match=f"scaling.{part}: (is a positive number, from 1e-6 to 1e6|wants a finite number)"
    ):
        RotaryScaling(**given)
    with pytest.raises(ConfigError, match=r"scaling\.original_length: must be positive"):
        RotaryScaling(kind="yarn", factor=2.0, original_length=0)


@pytest.mark.parametrize("theta", [1e308, 1.0, -1.0])
def test_a_base_of_wavelengths_that_overflows_is_refused(theta: float) -> None:
    with pytest.raises(ConfigError, match=r"position\.theta: lies above 1, up to 1e12"):
        tiny(position={"kind": "rotary", "theta": theta})


def test_a_million_ends_of_text_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"at most 1000 tokens, not \(1, 1"):
        tiny(special_tokens={"eos": (1,) * 10**6})


@pytest.mark.parametrize(
    ("start", "window", "windows"),
    [(0, None, [None] * 3), (0, 4, [4] * 3), (1, 4, [None, 4, 4]), (3, 4, [None] * 3), (10**18, 4, [None] * 3)],
)
@pytest.mark.parametrize("norm", [False, True])
def test_configs_of_version_0_2_are_read(start: int, window: int | None, windows: list[int | None], norm: bool) -> None:
    values = tiny(decoder_layers=3).to_dict()
    del values["other_layers"]
    values["attention"] |= {"window": window, "window_from": start, "qk_norm": norm}
    config = ModelConfig.from_dict(values)
    assert [config.attention.window if other is None else other.window for other in config.others(3)] == windows
    assert config.attention.qk_norm == ("head" if norm else "none")
    own = ModelConfig.from_dict(
        {**values, "encoder_layers": 1, "attention": {"heads": 2}}
        | {"decoder_attention": {"heads": 2, "window_from": 0, "qk_norm": norm}}
    )
    assert own.decoder_attention is not None
    assert own.decoder_attention.qk_norm == config.attention.qk_norm


@given(others=st.lists(st.booleans(), min_size=1, max_size=12))
def test_a_pattern_of_layers_is_the_list_that_it_was_made_of(others: list[bool]) -> None:
    made = OtherLayers.from_list(others, window=3)
    assert [made is not None and layer in made for layer in range(len(others))] == others


def test_a_pattern_of_very_many_layers_takes_no_time() -> None:
    others = [True] * 9_999 + [False]
    assert OtherLayers.from_list(others) == OtherLayers(then="o" * 9_999 + ".")
