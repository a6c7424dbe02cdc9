"""Attention against its equation, and the properties that masks, groups, windows and rotations must have."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anyformer.blocks.attention import MultiHeadAttention
from anyformer.blocks.mask import Mask, attention_mask
from anyformer.blocks.position import PositionSize, RotaryPosition
from anyformer.config import AttentionConfig, PositionConfig, RotaryScaling

sizes = st.tuples(st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4]), st.integers(1, 9), st.integers(1, 3))


def _by_hand(attention: MultiHeadAttention, x: Tensor, source: Tensor, visible: Tensor) -> Tensor:
    """Equation 1 of the 2017 paper, head by head and query by query."""
    group = attention.heads // attention.kv_heads
    rows = []
    for text, context in zip(x, source, strict=True):
        heads = []
        for head in range(attention.heads):
            mine = slice(head * attention.head_dim, (head + 1) * attention.head_dim)
            shared = slice(head // group * attention.head_dim, (head // group + 1) * attention.head_dim)
            query = attention.query(text)[:, mine]
            key, value = attention.key(context)[:, shared], attention.value(context)[:, shared]
            scores = torch.stack([(key * q).sum(1) * attention.scale for q in query])
            heads.append(scores.masked_fill(~visible, -torch.inf).softmax(1) @ value)
        rows.append(attention.output(torch.cat(heads, dim=1)))
    return torch.stack(rows)


@given(sizes, st.booleans(), st.integers(1, 12), st.integers(0, 2**32))
@settings(max_examples=25)
def test_equals_the_equation(drawn: tuple[int, int, int, int], causal: bool, window: int, seed: int) -> None:
    kv_heads, group, time, batch = drawn
    torch.manual_seed(seed)
    attention = MultiHeadAttention(AttentionConfig(heads=kv_heads * group, kv_heads=kv_heads, head_dim=4), d_model=12)
    x = torch.randn(batch, time, 12)
    where = torch.arange(time)[None]
    mask = attention_mask(where, where, causal=causal, window=window)
    distance = where.T - where
    visible = (distance.abs() < window) & ((distance >= 0) | (not causal))
    torch.testing.assert_close(attention(x, mask=mask), _by_hand(attention, x, x, visible), atol=1e-5, rtol=1e-5)


@given(sizes, st.integers(1, 7), st.integers(0, 2**32))
@settings(max_examples=15)
def test_cross_attention_equals_the_equation(drawn: tuple[int, int, int, int], length: int, seed: int) -> None:
    kv_heads, group, time, batch = drawn
    torch.manual_seed(seed)
    attention = MultiHeadAttention(AttentionConfig(heads=kv_heads * group, kv_heads=kv_heads, head_dim=4), d_model=12)
    x, source = torch.randn(batch, time, 12), torch.randn(batch, length, 12)
    expected = _by_hand(attention, x, source, torch.ones(time, length, dtype=torch.bool))
    torch.testing.assert_close(attention(x, source), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(attention(x, attention.keys_values(source)), expected, atol=1e-5, rtol=1e-5)


@given(st.integers(1, 9), st.sampled_from(["none", "causal", "padded"]), st.integers(0, 2**32))
@settings(max_examples=15)
def test_weights_are_what_attention_mixes_by(time: int, kind: str, seed: int) -> None:
    torch.manual_seed(seed)
    attention = MultiHeadAttention(AttentionConfig(heads=2, output_bias=False), d_model=8)
    x = torch.randn(2, time, 8)
    where = torch.arange(time)[None]
    real = torch.ones(2, time, dtype=torch.bool)
    real[0, : time // 2] = False
    mask = {
        "none": Mask(),
        "causal": Mask(causal=True),
        "padded": attention_mask(where, where, causal=True, padding_mask=real),
    }[kind]
    weights = attention.weights(x, mask=mask)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, time))
    mixed = weights @ attention.keys_values(x).values
    torch.testing.assert_close(attention(x, mask=mask), attention.output(mixed.transpose(1, 2).flatten(2)))


@given(st.sampled_from([None, "linear", "llama3", "yarn"]), st.integers(0, 500), st.integers(0, 2**32))
@settings(max_examples=20)
def test_rotary_scores_depend_on_distance_alone(kind: str | None, shift: int, seed: int) -> None:
    torch.manual_seed(seed)
    scaling = None if kind is None else RotaryScaling(kind=kind, factor=4.0, original_length=64)
    position = RotaryPosition(
        PositionConfig(kind="rotary", scaling=scaling), PositionSize(16, 2, 8, max_length=256, causal=True)
    )
    query, key = torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 8)

    def scores(start: int) -> Tensor:
        turn = position.rotation(torch.arange(start, start + 5)[None], torch.tensor([[start + 5]]))
        turned_query, turned_key = turn.rotate(query, key)
        return turned_query @ turned_key.transpose(2, 3)

    torch.testing.assert_close(scores(0), scores(shift), atol=2e-3, rtol=1e-3)


def test_one_query_needs_no_mask_and_padding_never_blinds() -> None:
    where = torch.arange(6)[None]
    assert attention_mask(where[:, -1:], where, causal=True) == Mask()
    assert attention_mask(where, where, causal=True) == Mask(causal=True)
    nothing = torch.zeros(1, 6, dtype=torch.bool)
    scores = attention_mask(where, where, causal=True, padding_mask=nothing).scores
    assert scores is not None
    assert scores[0, 0].equal(torch.eye(6, dtype=torch.bool))


def test_a_single_key_is_looked_at_whatever_asks() -> None:
    torch.manual_seed(0)
    block = MultiHeadAttention(AttentionConfig(heads=2, scale=1.0), 18).train()
    mixed = block(3 * torch.randn(1, 21, 18), 3 * torch.randn(1, 1, 18))
    (mixed * torch.randn(1, 21, 18)).sum().backward()
    for asked in (block.query, block.key):
        assert asked.weight.grad is not None
        assert not asked.weight.grad.any()
