"""Encoders in compiled code: torch's forward pass with the operands of its products rounded to 8 bits."""

from collections.abc import Callable
from typing import Any, Literal
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import anyformer as af
from anyformer.blocks.linear import Linear, dense
from anyformer.config import (
    AttentionConfig,
    EmbeddingConfig,
    FeedForwardConfig,
    ModelConfig,
    NormConfig,
    PositionConfig,
    SpecialTokens,
)
from anyformer.families import PRESETS
from anyformer.generation import compiled_layers
from anyformer.generation.compiled_encoder import (
    _BLOCK_ROWS,  # pyright: ignore[reportPrivateUsage]
    LIBRARY,
    CompiledEncoder,
    _blocks,  # pyright: ignore[reportPrivateUsage]
)
from anyformer.generation.compiled_layers import UnsupportedModelError
from anyformer.model import Transformer
from tests.generation.models import PAD, VOCAB, build, config


@pytest.fixture(scope="module", autouse=True)
def _supported() -> None:
    """Compiled when it is needed, not while tests are collected."""
    library = LIBRARY.get()
    if library is None or not library.supported():
        pytest.skip("a processor without products of integers and bfloat16")


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    head_dim, group = draw(st.sampled_from([32, 64])), draw(st.sampled_from([1, 2]))
    kv_heads = draw(st.integers(1, 2))
    activation = draw(st.sampled_from(["relu", "relu_squared", "gelu", "gelu_tanh", "silu"]))
    gated, bias = draw(st.booleans()), draw(st.booleans())
    placement: Literal["pre", "post", "sandwich", "branch"] = draw(
        st.sampled_from(("pre", "post", "sandwich", "branch"))
    )
    kind = draw(st.sampled_from(["none", "sinusoidal", "learned"]))
    return config(
        d_model=draw(st.sampled_from([32, 64, 96])),
        encoder_layers=draw(st.sampled_from([1, 2])),
        decoder_layers=0,
        distinct_layers=draw(st.sampled_from([None, 1])),
        max_length=80,
        attention=AttentionConfig(heads=kv_heads * group, kv_heads=kv_heads, head_dim=head_dim, bias=bias),
        feed_forward=FeedForwardConfig(
            width=draw(st.sampled_from([32, 64, 160])), activation=activation, gated=gated, bias=bias
        ),
        norm=NormConfig(kind=draw(st.sampled_from(["layer", "rms"])), placement=placement),
        position=PositionConfig(kind=kind, relative_bias=kind == "learned" and draw(st.booleans())),
        embedding=EmbeddingConfig(tied=False, width=draw(st.sampled_from([None, 16])), norm=draw(st.booleans())),
        residual_scale=draw(st.sampled_from([1.0, 0.5])),
    )


def rounded(x: Tensor) -> Tensor:
    scale = x.abs().amax(dim=-1, keepdim=True) / 127
    return torch.where(scale > 0, (x / scale).round() * scale, 0)


def reference(model: Transformer, ids: Tensor, mask: Tensor, operand: Callable[[Tensor], Tensor]) -> Tensor:
    """The model's own forward pass, by products of changed operands."""

    def forward(linear: Linear, x: Tensor) -> Tensor:
        return F.linear(operand(x), operand(dense(linear.weight, torch.float32)), linear.bias)

    with patch.object(Linear, "forward", forward):
        return model.encode(ids, mask)[mask]


def check(model: Transformer, lengths: list[int], left: bool) -> None:
    """Compiled code differs from the model as rounded operands do, and a text's vectors depend on the text alone.

    Unless torch projects narrow embeddings, in a product whose rounding depends on the batch.
    """
    ids = torch.randint(3, VOCAB, (len(lengths), max(lengths)))
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    mask = mask.flip(1) if left else mask
    with torch.inference_mode():
        compiled = CompiledEncoder(model)
        out, exact = compiled(ids, mask)[mask], reference(model, ids, mask, lambda operand: operand)
        # Other numbers are rounded up and down, as the least difference before decides, but the error is as large.
        error = (reference(model, ids, mask, rounded) - exact).norm()
        assert (out - exact).norm() < 1.5 * error + 0.01 * exact.norm()
        for row, length in enumerate(lengths):
            alone = compiled(ids[row : row + 1, mask[row]], None)
            assert alone.shape[1] == length
            together = out[sum(lengths[:row]) : sum(lengths[: row + 1])]
            assert torch.equal(alone[0], together) or model.config.embedding.width is not None


@given(configs(), st.lists(st.integers(1, 70), min_size=1, max_size=5), st.booleans(), st.data())
def test_error_is_that_of_rounded_operands(
    made: ModelConfig, lengths: list[int], left: bool, data: st.DataObject
) -> None:
    check(af.quantize(build(made), data.draw(st.sampled_from(["int8", "int4"]))), lengths, left)


SMALLEST = {
    made.model_type: made
    for made in sorted(PRESETS.values(), key=lambda made: (made.d_model, made.encoder_layers), reverse=True)
    if made.is_encoder_only
}


@pytest.mark.parametrize("model_type", SMALLEST)
def test_every_family_is_computed_or_left_to_torch(model_type: str, caplog: pytest.LogCaptureFixture) -> None:
    """Its smallest published model, with two layers; one line says that torch is slower."""
    made = SMALLEST[model_type]
    padding = {"embedding.padding": PAD} if made.embedding.padding is not None else {}
    sizes: dict[str, Any] = {"vocab_size": VOCAB, "max_length": 80, "special_tokens": SpecialTokens(pad=PAD)}
    model = af.quantize(build(made.replace(encoder_layers=2, **sizes, **padding)), "int8")
    if model_type in ("deberta-v2", "modernbert"):
        compiled_layers._warn.cache_clear()  # pyright: ignore[reportPrivateUsage]
        for _ in range(2):
            with pytest.raises(UnsupportedModelError):
                CompiledEncoder(model)
        assert caplog.text.count("which doesn't know position.kind") == 1
    else:
        check(model, [3, 70, 40], left=False)


def test_others_are_left_to_torch() -> None:
    plain = {"d_model": 64, "encoder_layers": 1, "decoder_layers": 0, "feed_forward": FeedForwardConfig(width=32)}
    for changes in (
        {"attention": AttentionConfig(heads=4)},
        {"attention": AttentionConfig(heads=2, qk_norm="head")},
        {"attention": AttentionConfig(heads=2), "position": PositionConfig(kind="relative")},
        {"attention": AttentionConfig(heads=2), "position": PositionConfig(kind="rotary")},
        {"attention": AttentionConfig(heads=2, sinks=True)},
        {"attention": AttentionConfig(heads=2), "feed_forward": FeedForwardConfig(width=32, gated=True, limit=1.0)},
        {"attention": AttentionConfig(heads=2), "feed_forward": FeedForwardConfig(width=32, gated=True, up_offset=1.0)},
    ):
        with pytest.raises(UnsupportedModelError):
            CompiledEncoder(af.quantize(build(config(**(plain | changes))), "int8"))
    with pytest.raises(UnsupportedModelError, match="floating point"):
        CompiledEncoder(build(config(**plain, attention=AttentionConfig(heads=2))))
    hooked = af.quantize(build(config(**plain, attention=AttentionConfig(heads=2))), "int8")
    CompiledEncoder(hooked)

    def hook(*_: object) -> None: ...

    hooked.encoder.register_forward_hook(hook)  # pyright: ignore[reportOptionalMemberAccess]
    with pytest.raises(UnsupportedModelError, match="hooks"):
        CompiledEncoder(hooked)


@given(st.lists(st.integers(1, 600), min_size=1, max_size=80), st.integers(1, 8))
def test_blocks(lengths: list[int], threads: int) -> None:
    """Every text is in one block; of many tokens the last blocks are small, so that threads end together."""
    *firsts, end = _blocks(lengths, threads)
    assert end == len(lengths)
    assert firsts[0] == 0
    blocks = [lengths[first:last] for first, last in zip(firsts, [*firsts[1:], end], strict=True)]
    assert [length for block in blocks for length in block] == lengths
    assert all(sum(block) <= _BLOCK_ROWS or len(block) == 1 for block in blocks)
    several = [sum(block) for block in blocks if len(block) > 1]
    assert several[-1:] <= [max(96, sum(lengths) // threads)]
