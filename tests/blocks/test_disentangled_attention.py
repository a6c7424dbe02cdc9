"""Disentangled attention against equation 4 of He et al. 2021, and against attention without positions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import anyformer as af
from anyformer.blocks.disentangled_attention import DisentangledAttention
from anyformer.blocks.mask import attention_mask
from anyformer.blocks.position import DisentangledPosition, PositionSize
from anyformer.config import AttentionConfig, PositionConfig
from anyformer.schema import ConfigError


@given(st.integers(1, 3), st.integers(1, 12), st.sampled_from([None, 3]), st.integers(0, 2**32))
@settings(max_examples=15)
def test_equals_the_equation(heads: int, time: int, window: int | None, seed: int) -> None:
    torch.manual_seed(seed)
    attention = DisentangledAttention(AttentionConfig(heads=heads, head_dim=4), d_model=12)
    config = PositionConfig(kind="disentangled", buckets=8, max_distance=9)
    position = DisentangledPosition(config, PositionSize(12, heads, 4, max_length=64, causal=False))
    x, where = torch.randn(2, time, 12), torch.arange(time)[None]
    mask = attention_mask(where, where, causal=False, window=window)._replace(
        relative=position.relative_vectors(where, where)
    )
    vectors = position.norm(position.table.weight)
    for text, weights in zip(x, attention.weights(x, mask=mask), strict=True):
        for head in range(heads):
            mine = slice(4 * head, 4 * head + 4)
            query, key = attention.query(text)[:, mine], attention.key(text)[:, mine]
            place_query, place_key = attention.query(vectors)[:, mine], attention.key(vectors)[:, mine]
            scores = torch.full((time, time), -torch.inf)
            for i in range(time):
                for j in range(time):
                    d = int(position.bucket(torch.tensor([[[i - j]]])))
                    if window is None or abs(i - j) < window:
                        met = query[i] @ key[j] + query[i] @ place_key[d] + place_query[d] @ key[j]
                        scores[i, j] = met / math.sqrt(3 * 4)
            torch.testing.assert_close(weights[head], scores.softmax(1), atol=1e-5, rtol=1e-5)
    mixed = attention.weights(x, mask=mask) @ attention.keys_values(x).values
    expected = attention.output(mixed.transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(x, mask=mask), expected, atol=1e-5, rtol=1e-5)


def test_a_mask_without_positions_is_refused() -> None:
    attention = DisentangledAttention(AttentionConfig(heads=2), d_model=8)
    with pytest.raises(ValueError, match="needs a mask with the vectors of relative positions"):
        attention(torch.randn(1, 3, 8))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"encoder_layers": 0, "decoder_layers": 2}, "position.kind"),
        ({"attention.kv_heads": 4}, "attention.kv_heads"),
        ({"attention.qk_norm": "head"}, "attention.qk_norm"),
        ({"attention.softcap": 3.0}, "attention.softcap"),
        ({"attention.sinks": True}, "attention.sinks"),
        ({"embedding.width": 64}, "embedding.width"),
        ({"position.max_distance": 200}, "position.max_distance"),
    ],
)
def test_what_no_published_model_has_is_refused(changes: dict[str, object], field: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{field}: "):
        af.preset("deberta-v3-small", **changes)
