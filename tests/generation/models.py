"""Tiny models of every shape, straight from configs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from anyformer.config import (
    AttentionConfig,
    EmbeddingConfig,
    ExpertsConfig,
    FeedForwardConfig,
    HeadConfig,
    ModelConfig,
    NormConfig,
    OtherLayers,
    PositionConfig,
    RotaryScaling,
    SpecialTokens,
)
from anyformer.model import Origin, Transformer

VOCAB = 23
EOS, PAD, BOS = 1, 0, 2


def config(**changes: Any) -> ModelConfig:
    plain: dict[str, Any] = {
        "vocab_size": VOCAB,
        "d_model": 16,
        "decoder_layers": 2,
        "max_length": 48,
        "attention": AttentionConfig(heads=4),
        "feed_forward": FeedForwardConfig(width=24),
        # A tied head makes a random model repeat itself.
        "embedding": EmbeddingConfig(tied=False),
        "special_tokens": SpecialTokens(pad=PAD, decoder_start=BOS),
    }
    return ModelConfig(**{**plain, **changes})


BOTH = {"encoder_layers": 1, "decoder_layers": 2}
ROTARY, RMS = PositionConfig(kind="rotary"), NormConfig(kind="rms", eps=1e-6)
GATED = FeedForwardConfig(width=24, activation="silu", gated=True, bias=False)

CAPPED = AttentionConfig(heads=4, kv_heads=2, head_dim=6, qk_norm="head", softcap=5.0)
UNCOMPILED = {
    "other feed-forward": config(
        position=ROTARY,
        norm=RMS,
        other_layers=OtherLayers(first="o", then=".", feed_forward=FeedForwardConfig(width=40)),
    ),
}
"""Decoders that the compiled step leaves to torch."""
WRITERS = {
    **UNCOMPILED,
    "parallel": config(
        position=PositionConfig(kind="rotary", rotary_fraction=0.5),
        norm=NormConfig(placement="parallel_shared"),
        residual_scale=0.3,
    ),
    "parallel, two norms": config(
        position=ROTARY, norm=NormConfig(kind="layer_no_bias", placement="parallel"), feed_forward=GATED
    ),
    "plain norms": config(
        position=ROTARY,
        norm=NormConfig(kind="rms_plain", eps=1e-6),
        attention=AttentionConfig(heads=4, qk_norm="head"),
        embedding=EmbeddingConfig(norm=True, tied=False),
        head=HeadConfig(softcap=5.0, scale=0.5),
        residual_scale=0.3,
    ),
    "sandwich": config(
        position=ROTARY,
        norm=NormConfig(kind="rms_offset", placement="sandwich"),
        attention=CAPPED,
        embedding=EmbeddingConfig(scaled=True),
        head=HeadConfig(softcap=5.0),
        other_layers=OtherLayers(then="o.", window=4, position=PositionConfig(kind="rotary", theta=100.0)),
    ),
    "branch": config(
        position=ROTARY,
        norm=NormConfig(kind="rms", placement="branch"),
        attention=AttentionConfig(heads=4, kv_heads=2, qk_norm="width"),
        other_layers=OtherLayers(first=".", then="o", position=PositionConfig(kind="none")),
    ),
    "experts": config(
        position=ROTARY, norm=RMS, feed_forward=replace(GATED, experts=ExpertsConfig(count=5, used=2, balance=0.1))
    ),
    "many experts": config(
        feed_forward=FeedForwardConfig(width=24, bias=False, experts=ExpertsConfig(count=12, used=9, normalized=False))
    ),
    "sinks, bounded experts": config(
        position=ROTARY,
        norm=RMS,
        attention=AttentionConfig(heads=4, kv_heads=2, head_dim=6, sinks=True),
        feed_forward=replace(
            GATED,
            activation="quick_gelu",
            bias=True,
            limit=0.3,
            up_offset=1.0,
            experts=ExpertsConfig(count=5, used=2, router_bias=True),
        ),
        other_layers=OtherLayers(then="o.", window=4),
    ),
    "no bias": config(position=ROTARY, norm=NormConfig(kind="layer_no_bias")),
    "learned": config(embedding=EmbeddingConfig()),
    "rotary": config(position=ROTARY, norm=RMS, feed_forward=GATED),
    "grouped": config(
        position=ROTARY,
        norm=RMS,
        attention=AttentionConfig(heads=4, kv_heads=2, head_dim=6, bias=False, qk_norm="head"),
    ),
    "windowed": config(
        position=ROTARY,
        norm=NormConfig(kind="rms_offset", eps=1e-6),
        attention=AttentionConfig(heads=4, kv_heads=1, window=3),
    ),
    "half windowed": config(position=ROTARY, norm=RMS, other_layers=OtherLayers(first=".", window=4)),
    "sinusoidal": config(
        position=PositionConfig(kind="sinusoidal", layout="interleaved"), norm=NormConfig(placement="post")
    ),
    "no position": config(position=PositionConfig(kind="none")),
    "yarn": config(
        position=PositionConfig(kind="rotary", scaling=RotaryScaling(kind="yarn", factor=2.0, original_length=24)),
        norm=RMS,
    ),
    "dynamic": config(
        position=PositionConfig(kind="rotary", scaling=RotaryScaling(kind="dynamic", factor=4.0)),
        norm=RMS,
        max_length=6,
    ),
    "n-grams": config(position=ROTARY, norm=RMS, embedding=EmbeddingConfig(tied=False, ngrams=3, ngram_rows=29)),
    "relative": config(position=PositionConfig(kind="relative", buckets=8, max_distance=16), norm=RMS),
    "relative both": config(
        **BOTH,
        position=PositionConfig(kind="relative", buckets=8, max_distance=16),
        norm=RMS,
        attention=AttentionConfig(heads=4, scale=1.0, bias=False, output_bias=False),
    ),
    "n-grams both": config(**BOTH, embedding=EmbeddingConfig(ngrams=2, ngram_rows=97)),
    "sinusoidal both": config(
        **BOTH,
        position=PositionConfig(kind="sinusoidal"),
        norm=NormConfig(placement="post"),
        embedding=EmbeddingConfig(scaled=True),
        head=HeadConfig(bias="fixed"),
    ),
    # They write the token that is no position.
    "skipping": config(position=PositionConfig(offset=5, skip_padding=True), embedding=EmbeddingConfig(padding=4)),
    "skipping both": config(
        **BOTH,
        position=PositionConfig(kind="sinusoidal", layout="fairseq", offset=5, skip_padding=True),
        embedding=EmbeddingConfig(scaled=True, padding=4),
    ),
    "learned both": config(
        **BOTH,
        position=PositionConfig(kind="learned", offset=2),
        norm=NormConfig(placement="post"),
        embedding=EmbeddingConfig(norm=True, tied=False),
        decoder_attention=AttentionConfig(heads=2),
        source_vocab_size=31,
    ),
}
COMPILED = [name for name in WRITERS if name not in UNCOMPILED]
DECODERS = [name for name, made in WRITERS.items() if made.is_decoder_only]


def build(made: ModelConfig, seed: int = 0, settings: dict[str, Any] | None = None) -> Transformer:
    """A model whose answers differ from each other by more than rounding."""
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = Transformer(made)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.3)
    torch.random.set_rng_state(state)
    model.origin = Origin(generation=settings or {})
    return model.eval()


@st.composite
def rows(draw: st.DrawFn, texts: int = 4, longest: int = 9) -> list[list[int]]:
    return draw(st.lists(st.lists(st.integers(3, VOCAB - 1), min_size=1, max_size=longest), min_size=1, max_size=texts))


def batch(texts: list[list[int]], side: str, filler: int = PAD) -> tuple[Tensor, Tensor]:
    """Ids padded on one side, and their mask."""
    longest = max(map(len, texts)) + 1
    gaps = [longest - len(text) for text in texts]
    fills = [([filler] * gap, [False] * gap) for gap in gaps]
    left = side == "left"
    ids = [fill + text if left else text + fill for (fill, _), text in zip(fills, texts, strict=True)]
    mask = [
        off + [True] * len(text) if left else [True] * len(text) + off
        for (_, off), text in zip(fills, texts, strict=True)
    ]
    return torch.tensor(ids), torch.tensor(mask)


def recompute(model: Transformer, text: list[int], new: int, ends: tuple[int, ...] = ()) -> list[int]:
    """What greedy search says, each token from a whole pass over everything before it."""
    both = model.config.is_encoder_decoder
    source = torch.tensor([text]) if both else None
    said = [model.config.special_tokens.decoder_start] if both else list(text)
    start = len(said)
    with torch.no_grad():
        while len(said) < start + new and not (len(said) > start and said[-1] in ends):
            said.append(int(model(torch.tensor([said]), source).logits[0, -1].argmax()))
    return said[start:]
