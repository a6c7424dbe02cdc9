"""Our own file format, for what no Hugging Face class can express: config.json is the ModelConfig, names are ours."""

from anyformer.config import (
    AttentionConfig,
    EmbeddingConfig,
    FeedForwardConfig,
    HeadKind,
    InitConfig,
    ModelConfig,
    NormConfig,
    PositionConfig,
)
from anyformer.families.base import Family, Raw


def _read(raw: Raw, head: HeadKind) -> ModelConfig:
    return ModelConfig.from_dict(raw["config"])


FAMILY = Family(
    model_type="anyformer",
    architectures={
        "Transformer": "language_model",
        "TransformerModel": "none",
        "TransformerForSequenceClassification": "classification",
        "TransformerForTokenClassification": "token_classification",
    },
    read=_read,
    write=lambda config: {"config": config.to_dict()},
    rows=(),
    presets={
        # What the speed runs of nanoGPT settled on (Jordan et al. 2024, modded-nanogpt), at a size for two cores and
        # ten minutes of characters.
        "modern-nano": ModelConfig(
            vocab_size=65,
            d_model=256,
            encoder_layers=0,
            decoder_layers=4,
            max_length=256,
            attention=AttentionConfig(heads=4, bias=False, output_bias=False, qk_norm=True),
            feed_forward=FeedForwardConfig(width=1024, activation="relu_squared", bias=False),
            position=PositionConfig(kind="rotary"),
            norm=NormConfig(kind="rms", eps=1e-6),
            embedding=EmbeddingConfig(tied=False),
            init=InitConfig(std=0.0625, scale_residual=True),
            model_type="anyformer",
        ),
    },
)
