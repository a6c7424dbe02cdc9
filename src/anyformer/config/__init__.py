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

from anyformer.config.block import AttentionConfig as AttentionConfig
from anyformer.config.block import ExpertsConfig as ExpertsConfig
from anyformer.config.block import FeedForwardConfig as FeedForwardConfig
from anyformer.config.block import NormConfig as NormConfig
from anyformer.config.block import OtherLayers as OtherLayers
from anyformer.config.inputs import EmbeddingConfig as EmbeddingConfig
from anyformer.config.inputs import PositionConfig as PositionConfig
from anyformer.config.inputs import RotaryScaling as RotaryScaling
from anyformer.config.model import ModelConfig as ModelConfig
from anyformer.config.model import diff as diff
from anyformer.config.output import HeadConfig as HeadConfig
from anyformer.config.output import HeadKind as HeadKind
from anyformer.config.output import InitConfig as InitConfig
from anyformer.config.output import PoolingConfig as PoolingConfig
from anyformer.config.output import ProblemType as ProblemType
from anyformer.config.output import SpecialTokens as SpecialTokens
