"""The parts that every transformer is made of.

Each is made from its own small config and can be used without the rest::

    from anyformer import blocks

    attention = blocks.MultiHeadAttention(AttentionConfig(heads=4), d_model=64)
    y = attention(x, mask=blocks.Mask(causal=True))
"""

from anyformer.blocks.attention import MultiHeadAttention
from anyformer.blocks.block import TransformerBlock
from anyformer.blocks.embedding import InputEmbedding, TokenEmbedding
from anyformer.blocks.feed_forward import ACTIVATIONS, FeedForward
from anyformer.blocks.head import Classifier, LanguageModelHead, Pooler
from anyformer.blocks.mask import Mask, attention_mask
from anyformer.blocks.norm import NORMS, LayerNorm, OffsetRMSNorm, PlainRMSNorm, RMSNorm
from anyformer.blocks.pooling import TextPooling
from anyformer.blocks.position import (
    POSITIONS,
    LearnedPosition,
    PositionalEncoding,
    PositionSize,
    RelativePosition,
    RotaryPosition,
    Rotation,
    SinusoidalPosition,
)
from anyformer.blocks.stack import Stack

__all__ = [
    "ACTIVATIONS",
    "NORMS",
    "POSITIONS",
    "Classifier",
    "FeedForward",
    "InputEmbedding",
    "LanguageModelHead",
    "LayerNorm",
    "LearnedPosition",
    "Mask",
    "MultiHeadAttention",
    "OffsetRMSNorm",
    "PlainRMSNorm",
    "Pooler",
    "PositionSize",
    "PositionalEncoding",
    "RMSNorm",
    "RelativePosition",
    "RotaryPosition",
    "Rotation",
    "SinusoidalPosition",
    "Stack",
    "TextPooling",
    "TokenEmbedding",
    "TransformerBlock",
    "attention_mask",
]
