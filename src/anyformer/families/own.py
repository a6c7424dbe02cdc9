"""Our own file format, for what no Hugging Face class can express: config.json is the ModelConfig, names are ours."""

from anyformer.config import HeadKind, ModelConfig
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
)
