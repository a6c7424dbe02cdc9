"""Norms, feed-forwards, positions, embeddings and initialization, each against its formula."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import anyformer as af
from anyformer.blocks.feed_forward import ACTIVATIONS, FeedForward
from anyformer.blocks.norm import NORMS, LayerNorm, RMSNorm
from anyformer.blocks.position import (
    POSITIONS,
    DisentangledPosition,
    PositionSize,
    RelativePosition,
    SinusoidalPosition,
)
from anyformer.config import FeedForwardConfig, PositionConfig
from anyformer.schema import ConfigError

SIZE = PositionSize(width=12, heads=3, head_dim=4, max_length=64, causal=False)


@given(st.integers(1, 33), st.integers(0, 2**32), st.floats(1e-12, 1e-2))
@settings(max_examples=20)
def test_norms(width: int, seed: int, eps: float) -> None:
    torch.manual_seed(seed)
    x = torch.randn(3, width)
    layer, rms = LayerNorm(width, eps), RMSNorm(width, eps)
    for norm in (layer, rms):
        nn.init.normal_(norm.weight)
    nn.init.normal_(layer.bias)
    centred = x - x.mean(1, keepdim=True)
    expected = centred / (centred.square().mean(1, keepdim=True) + eps).sqrt() * layer.weight + layer.bias
    torch.testing.assert_close(layer(x), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(rms(x), x / (x.square().mean(1, keepdim=True) + eps).sqrt() * rms.weight)


@given(st.sampled_from(sorted(ACTIVATIONS)), st.booleans(), st.booleans(), st.integers(0, 2**32))
@settings(max_examples=20)
def test_feed_forward(name: str, gated: bool, bias: bool, seed: int) -> None:
    torch.manual_seed(seed)
    block = FeedForward(FeedForwardConfig(width=7, activation=name, gated=gated, bias=bias), d_model=5)
    x = torch.randn(2, 3, 5)
    inner = ACTIVATIONS[name](block.gate(x)) * block.up(x) if block.gate else ACTIVATIONS[name](block.up(x))
    torch.testing.assert_close(block(x), block.down(inner))
    assert (block.up.bias is not None) == bias


def test_gelu_is_exact_and_its_approximation_is_not() -> None:
    x = torch.linspace(-4, 4, 101)
    exact = x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    tanh = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    torch.testing.assert_close(ACTIVATIONS["gelu"](x), exact)
    torch.testing.assert_close(ACTIVATIONS["gelu_tanh"](x), tanh)
    assert (exact - tanh).abs().max() > 1e-4


@pytest.mark.parametrize("layout", ["interleaved", "halves"])
def test_sinusoids_are_the_papers(layout: str) -> None:
    position = SinusoidalPosition(PositionConfig(kind="sinusoidal", layout=layout), SIZE)
    table = position.embed(torch.arange(50)[None])[0]
    for place in (0, 1, 7, 49):
        for pair in range(6):
            angle = place / 10000 ** (2 * pair / 12)
            sine, cosine = (2 * pair, 2 * pair + 1) if layout == "interleaved" else (pair, pair + 6)
            assert table[place, sine].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[place, cosine].item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_sinusoids_are_fairseqs() -> None:
    config = PositionConfig(kind="sinusoidal", layout="fairseq", offset=2, skip_padding=True)
    vectors = SinusoidalPosition(config, SIZE).embed(torch.tensor([[0, -1, 1]]))[0]
    for row, place in ((0, 2), (2, 3)):
        for pair in range(6):
            angle = place / 10000 ** (pair / 5)
            assert vectors[row, pair].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert vectors[row, pair + 6].item() == pytest.approx(math.cos(angle), abs=1e-6)
    assert not vectors[1].any()


@given(st.sampled_from([4, 8, 32]), st.integers(20, 200), st.booleans())
@settings(max_examples=20)
def test_relative_buckets(buckets: int, max_distance: int, causal: bool) -> None:
    size = SIZE._replace(causal=causal)
    position = RelativePosition(PositionConfig(kind="relative", buckets=buckets, max_distance=max_distance), size)
    far = 3 * max_distance
    bucket = position.bucket(torch.arange(-far, far + 1)[None])[0].tolist()
    past, future = bucket[far::-1], bucket[far:]
    assert past == sorted(past)
    assert min(bucket) == 0
    assert max(past) == (buckets if causal else buckets // 2) - 1
    assert past[max_distance:] == [past[-1]] * (far + 1 - max_distance)
    if causal:
        assert set(future) == {0}
    else:
        assert [b - buckets // 2 for b in future[1:]] == past[1:]
    exact = (buckets if causal else buckets // 2) // 2
    assert past[:exact] == list(range(exact))


@given(st.sampled_from([4, 8, 256]), st.integers(1, 300))
@settings(max_examples=20)
def test_disentangled_buckets(half: int, farther: int) -> None:
    config = PositionConfig(kind="disentangled", buckets=2 * half, max_distance=half + farther)
    far = 2 * config.max_distance
    bucket = DisentangledPosition(config, SIZE).bucket(torch.arange(-far, far + 1)[None])[0].tolist()
    assert bucket == sorted(bucket)
    near = half // 2
    assert bucket[far - near : far + near] == list(range(half - near, half + near))
    assert {*bucket[: far - config.max_distance]} == {0}
    assert {*bucket[far + config.max_distance :]} == {2 * half - 1}


def test_unknown_kinds_are_refused_with_a_hint() -> None:
    near = {"norm.kind": "rms", "position.kind": "rotary"}
    near |= dict.fromkeys(("feed_forward.activation", "head.transform", "head.pooler"), "gelu")
    for field, name in near.items():
        other: dict[str, str] = {"head.kind": "none"} if field == "head.pooler" else {}
        with pytest.raises(ConfigError, match=rf"^{field}: .* \(did you mean '{name}'\?\)"):
            af.build(af.preset("bert-tiny", **other, **{field: name + "x"}))


def test_a_kind_of_ones_own_is_one_class_and_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoNorm(nn.Module):
        def __init__(self, width: int, eps: float) -> None:
            super().__init__()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    monkeypatch.setitem(NORMS, "nothing", NoNorm)
    monkeypatch.setitem(ACTIVATIONS, "cube", lambda x: x**3)
    monkeypatch.setitem(POSITIONS, "other", SinusoidalPosition)
    changes = {"norm.kind": "nothing", "feed_forward.activation": "cube", "position.kind": "other"}
    model = af.build(af.preset("gpt2-nano", vocab_size=9, **changes))
    logits = model(torch.tensor([[1, 2, 3]])).logits
    assert logits is not None
    assert logits.shape == (1, 3, 9)


def _std(weight: torch.Tensor) -> float:
    return weight.detach().std().item()


def test_gpt2_initialization() -> None:
    torch.manual_seed(0)
    model = af.build(af.preset("gpt2", decoder_layers=4, d_model=256, vocab_size=999, attention={"heads": 4}))
    block = model.decoder.blocks[0]
    assert _std(model.token_embedding.table.weight) == pytest.approx(0.02, rel=0.02)
    assert _std(block.attention.query.weight) == pytest.approx(0.02, rel=0.02)
    assert _std(block.attention.output.weight) == pytest.approx(0.02 / math.sqrt(8), rel=0.02)
    assert _std(block.feed_forward.down.weight) == pytest.approx(0.02 / math.sqrt(8), rel=0.02)
    assert block.feed_forward.up.bias.count_nonzero() == 0


def test_bert_initialization_is_truncated() -> None:
    torch.manual_seed(0)
    model = af.build(af.preset("bert-mini", vocab_size=999))
    assert model.token_embedding.table.weight.abs().max() <= 0.04
    assert _std(model.encoder.blocks[0].attention.query.weight) == pytest.approx(0.02 * 0.88, rel=0.03)
    assert model.token_embedding.table.weight[0].count_nonzero() == 0


def test_t5_initialization() -> None:
    torch.manual_seed(0)
    model = af.build(af.preset("t5-v1.1-small", vocab_size=999, encoder_layers=1, decoder_layers=1))
    block = model.decoder.blocks[0]
    assert _std(model.token_embedding.table.weight) == pytest.approx(1, rel=0.02)
    assert _std(model.head.projection.weight) == pytest.approx(1, rel=0.02)
    assert _std(block.attention.query.weight) == pytest.approx((512 * 64) ** -0.5, rel=0.02)
    assert _std(block.cross_attention.key.weight) == pytest.approx(512**-0.5, rel=0.02)
    assert _std(block.attention.output.weight) == pytest.approx((6 * 64) ** -0.5, rel=0.02)
    assert _std(block.feed_forward.down.weight) == pytest.approx(1024**-0.5, rel=0.02)
    assert _std(model.decoder.position.table.weight) == pytest.approx(512**-0.5, rel=0.1)
    small = af.build(af.preset("t5-nano"))
    assert _std(small.token_embedding.table.weight) == pytest.approx(0.09, rel=0.02)
    assert _std(small.head.projection.weight) == pytest.approx(0.09, rel=0.02)


def test_the_papers_initialization_is_glorots() -> None:
    torch.manual_seed(0)
    model = af.build(af.preset("transformer-base", vocab_size=999, encoder_layers=1, decoder_layers=1))
    bound = math.sqrt(6 / (512 + 2048))
    weight = model.encoder.blocks[0].feed_forward.up.weight
    assert bound * 0.99 < weight.abs().max() <= bound
    assert _std(model.token_embedding.table.weight[1:]) == pytest.approx(512**-0.5, rel=0.02)
