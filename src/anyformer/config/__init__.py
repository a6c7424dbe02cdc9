"""The description of any transformer, as data.

A `ModelConfig` is a handful of small frozen dataclasses, each named after the block that it configures, in the order in
which a text goes through them. Decoder-only, encoder-only and encoder-decoder are not three classes but two numbers::

    encoder_layers  decoder_layers
          0               12          GPT-2, LLaMA   (generates)
         12                0          BERT           (understands)
          6                6          T5, the 2017 Transformer (rewrites one sequence as another)

The type of a field says which values it takes, and `_faults` what several fields together may not say. This package
imports no torch, so that the command line can show, compare and check configs at once.
"""

from anyformer.config.block import AttentionConfig, ExpertsConfig, FeedForwardConfig, NormConfig, OtherLayers
from anyformer.config.model import ModelConfig, check_layers, diff
from anyformer.config.parts import (
    EmbeddingConfig,
    HeadConfig,
    HeadKind,
    InitConfig,
    PoolingConfig,
    PositionConfig,
    ProblemType,
    RotaryScaling,
    SpecialTokens,
)

__all__ = [
    "AttentionConfig",
    "EmbeddingConfig",
    "ExpertsConfig",
    "FeedForwardConfig",
    "HeadConfig",
    "HeadKind",
    "InitConfig",
    "ModelConfig",
    "NormConfig",
    "OtherLayers",
    "PoolingConfig",
    "PositionConfig",
    "ProblemType",
    "RotaryScaling",
    "SpecialTokens",
    "check_layers",
    "diff",
]
