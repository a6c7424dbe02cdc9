"""Layers and routers that a config.json describes wrongly: one sentence with the field, and no model."""

from typing import Any

import pytest

from anyformer.errors import UserError
from anyformer.families import FAMILIES, from_huggingface

LAYERED = ("qwen2", "qwen3", "gemma2", "gemma3_text", "olmo3", "smollm3", "modernbert", "gpt_oss")
PERIODS = {
    "gemma3_text": "sliding_window_pattern",
    "modernbert": "global_attn_every_n_layers",
    "smollm3": "no_rope_layer_interval",
}


def refused(name: str, **fields: Any) -> str:
    """What is said of the first published config of a type with other fields."""
    raw = next(iter(FAMILIES[name].published.values()))
    with pytest.raises(UserError) as caught:
        from_huggingface({"model_type": name, **raw, "num_hidden_layers": 3, **fields})
    return str(caught.value)


@pytest.mark.parametrize("name", LAYERED)
def test_layer_types(name: str) -> None:
    full = "full_attention"
    for types in ([full] * 5, [full] * 2, []):
        assert f"layer_types has {len(types)} entries for 3 layers" in refused(name, layer_types=types)
    for unknown in ("chunked_attention", 1, None):
        assert f"the layer type {unknown!r} is not supported" in refused(name, layer_types=[full, full, unknown])
    for other in ("full", 7, {"0": full}):
        assert "layer_types is a list with an entry for each layer" in refused(name, layer_types=other)


def test_layers_without_positions() -> None:
    for flags in ([1] * 4, [1, 0], []):
        assert f"no_rope_layers has {len(flags)} entries for 3 layers" in refused("smollm3", no_rope_layers=flags)
    assert "no_rope_layers is a list" in refused("smollm3", no_rope_layers="111")


@pytest.mark.parametrize("name", PERIODS)
@pytest.mark.parametrize("period", [0, -1, "two", 1.5])
def test_periods(name: str, period: object) -> None:
    assert f"{PERIODS[name]} is a number of layers, at least 1" in refused(name, **{PERIODS[name]: period})


@pytest.mark.parametrize(("name", "others"), [("deepseek_v2", ["sigmoid"]), ("deepseek_v3", ["softmax"])])
def test_routers(name: str, others: list[str]) -> None:
    for scores in (*others, "tanh", None, []):
        assert "scoring_func = " in refused(name, scoring_func=scores)
    for method in ("noaux_tc" if name == "deepseek_v2" else "greedy", "magic", 3):
        assert "topk_method = " in refused(name, topk_method=method)
    assert "moe_layer_freq = 2 is not supported" in refused(name, moe_layer_freq=2)


# Of gpt-oss no activation is read: its gate is its own.
@pytest.mark.parametrize(
    "name", [name for name, each in FAMILIES.items() if each.published and each.fields and name != "gpt_oss"]
)
def test_activations(name: str) -> None:
    fields = FAMILIES[name].fields.items()
    field = next((theirs for theirs, (ours, _) in fields if ours.endswith(".activation")), "feed_forward_proj")
    assert "'snake' is not supported" in refused(name, **{field: "snake"})
