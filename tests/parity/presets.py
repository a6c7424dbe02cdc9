"""Presets at a size that fits a test."""

from typing import Any

from anyformer.config import ModelConfig, SpecialTokens
from anyformer.families import PRESETS


def shrunk(name: str) -> ModelConfig:
    """A preset with all of its choices, at a size that fits a test."""
    big = PRESETS[name]
    fraction, heads = big.position.rotary_fraction, 4
    # Widths of heads of which the rotated part has pairs.
    d_model = 24 if fraction == 1.0 else 40 if fraction == 0.4 else 32
    changes: dict[str, Any] = {"d_model": d_model, "vocab_size": 60, "max_length": 64, "feed_forward.width": 40}
    attention = big.attention
    changes["attention.heads"] = heads
    if attention.kv_heads is not None:
        changes["attention.kv_heads"] = heads if attention.kv_heads == attention.heads else 2
    if attention.head_dim is not None:
        changes["attention.head_dim"] = 6 if attention.head_dim * attention.heads == big.d_model else 8
    if attention.window is not None:
        changes["attention.window"] = 5
    if big.position.scaling is not None and big.position.scaling.kind == "longrope":
        pairs = int(d_model // heads * fraction) // 2
        factors = {name: getattr(big.position.scaling, name)[:pairs] for name in ("short_factor", "long_factor")}
        changes["position.scaling"] = factors
    if big.other_layers is not None:
        # A pattern that three layers show.
        changes["other_layers"] = {"first": "", "then": "o.", "window": big.other_layers.window and 5}
        if big.other_layers.then == ".":
            changes["other_layers"] = {"first": "o", "feed_forward": {"width": 30}}
    if attention.latent is not None:
        changes["attention.latent"] = {"rank": 6, "rotary_dim": 4, "value_dim": 5}
        changes["attention.scale"] = None  # YaRN's follows from the width of heads
        changes["attention.latent.query_rank"] = attention.latent.query_rank and 7
    if big.feed_forward.experts is not None:
        changes["feed_forward.experts.count"] = min(big.feed_forward.experts.count, 16)
    layers = {"encoder_layers": 2, "decoder_layers": 3}
    changes |= {stack: count for stack, count in layers.items() if getattr(big, stack)}
    # Positions that skip padding are counted from its id.
    pad = 1 if big.position.skip_padding else 0
    changes["special_tokens"] = SpecialTokens(
        bos=1 - pad, eos=(2,), pad=pad, decoder_start=0 if big.is_encoder_decoder else None
    )
    if big.embedding.padding is not None:
        changes["embedding.padding"] = pad
    return big.replace(**changes)
