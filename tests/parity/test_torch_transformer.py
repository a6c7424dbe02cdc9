"""`torch.nn.Transformer`, which most tutorials train: its weights in our blocks give its outputs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import anyformer as af
from anyformer.blocks.stack import Stack
from anyformer.config import AttentionConfig, FeedForwardConfig, ModelConfig, NormConfig, PositionConfig
from anyformer.model import Transformer


def _attention(theirs: nn.MultiheadAttention) -> dict[str, Tensor]:
    moved: dict[str, Tensor] = {"output.weight": theirs.out_proj.weight, "output.bias": theirs.out_proj.bias}
    weights, biases = theirs.in_proj_weight.chunk(3), theirs.in_proj_bias.chunk(3)
    for name, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
        moved |= {f"{name}.weight": weight, f"{name}.bias": bias}
    return moved


def _move(ours: Stack, theirs: nn.TransformerEncoder | nn.TransformerDecoder) -> None:
    """Copy the weights of all layers, and of the norm after them."""
    ours.final_norm.load_state_dict(theirs.norm.state_dict())
    for block, layer in zip(ours.blocks, theirs.layers, strict=True):
        cross = isinstance(layer, nn.TransformerDecoderLayer)
        block.attention.load_state_dict(_attention(layer.self_attn))
        block.attention_norm.load_state_dict(layer.norm1.state_dict())
        if cross:
            block.cross_attention.load_state_dict(_attention(layer.multihead_attn))
            block.cross_attention_norm.load_state_dict(layer.norm2.state_dict())
        block.feed_forward.up.load_state_dict(layer.linear1.state_dict())
        block.feed_forward.down.load_state_dict(layer.linear2.state_dict())
        block.feed_forward_norm.load_state_dict((layer.norm3 if cross else layer.norm2).state_dict())


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True", "ignore:The PyTorch API of nested tensors")
@settings(max_examples=20)
@given(
    heads=st.integers(1, 4),
    width=st.integers(2, 9),
    layers=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    feed_forward=st.integers(4, 40),
    activation=st.sampled_from(["relu", "gelu"]),
    norm_first=st.booleans(),
    seed=st.integers(0, 99),
)
def test_outputs_are_equal(
    heads: int,
    width: int,
    layers: tuple[int, int],
    feed_forward: int,
    activation: str,
    norm_first: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    d_model = heads * width
    theirs = nn.Transformer(
        d_model, heads, *layers, feed_forward, activation=activation, norm_first=norm_first, batch_first=True
    ).eval()
    config = ModelConfig(
        vocab_size=30,
        d_model=d_model,
        encoder_layers=layers[0],
        decoder_layers=layers[1],
        attention=AttentionConfig(heads=heads),
        feed_forward=FeedForwardConfig(width=feed_forward, activation=activation),
        position=PositionConfig(kind="none"),
        norm=NormConfig(placement="pre" if norm_first else "post", final=True),
    )
    ours = af.build(config).eval()
    assert ours.encoder is not None
    assert ours.decoder is not None
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    _move(ours.encoder, theirs.encoder)
    _move(ours.decoder, theirs.decoder)
    source, tokens = torch.randint(30, (2, 7)), torch.randint(30, (2, 5))
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[1, 4:] = False
    with torch.no_grad():
        expected = theirs(
            ours.token_embedding(source),
            ours.token_embedding(tokens),
            tgt_mask=nn.Transformer.generate_square_subsequent_mask(5),
            src_key_padding_mask=~mask,
            memory_key_padding_mask=~mask,
            tgt_is_causal=True,
        )
        found = ours(tokens, source=source, source_mask=mask).hidden
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
        _assert_cached_equals(ours, tokens, source, mask)


def _assert_cached_equals(model: Transformer, tokens: Tensor, source: Tensor, mask: Tensor) -> None:
    """The decoding step, compiled where it can be, has the norm as well."""
    from anyformer.generation.cached_decoder import DecoderStep

    expected = model(tokens, source=source, source_mask=mask).logits
    cache, step = model.make_cache(2, 8), DecoderStep(model)
    model(tokens[:, :2], source=source, source_mask=mask, cache=cache)
    for position in range(2, tokens.shape[1]):
        logits = step(tokens[:, position : position + 1], cache)
        bound = 1e-4 * float(expected.abs().max())
        torch.testing.assert_close(logits[:, -1], expected[:, position], rtol=1e-4, atol=bound)


def test_a_final_norm_after_post_norm_blocks_is_saved_in_our_own_format(tmp_path) -> None:  # type: ignore[no-untyped-def]
    config = af.preset("transformer-tiny", vocab_size=40)
    model = af.build(config.replace(norm={"placement": "post", "final": True}))
    assert af.save(model, tmp_path) == "anyformer"
    loaded, _ = af.load(tmp_path)
    assert loaded.config.norm.final is True
    assert type(loaded.decoder.final_norm) is type(model.decoder.final_norm)
