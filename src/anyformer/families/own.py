"""Our own file format, for what no Hugging Face class can express: config.json is the ModelConfig, names are ours.

Quantized models are written in it as well. Their config.json is that of their family, with
`"quantization_config": {"quant_method": "anyformer", "bits": 4, "group_size": 32, "model_type": "llama"}` added and
"anyformer" as its model_type: `transformers` would pass over a method that it does not know, and read weights that
aren't there.
"""

from typing import Any, cast

from typing_extensions import override

from anyformer.config import HeadKind, ModelConfig
from anyformer.families.base import Family, Raw, classes

METHOD = "anyformer"
_KEY = "quantization_config"


def quantized_config_json(raw: Raw, bits: int, group_size: int) -> dict[str, Any]:
    """The config.json of a quantized model, from that of its family."""
    added = {"quant_method": METHOD, "bits": bits, "group_size": group_size, "model_type": raw["model_type"]}
    return {**raw, "model_type": METHOD, _KEY: added}


def quantization_method(raw: Raw) -> str | None:
    """The `quant_method` of a config.json; None for a model that is not quantized."""
    value = raw.get(_KEY)
    return value if value is None else str(cast("Raw", value).get("quant_method") if isinstance(value, dict) else value)


def without_quantization(raw: Raw) -> dict[str, Any]:
    """A config.json that says nothing of quantization."""
    return {name: value for name, value in raw.items() if name != _KEY}


def unquantized_config_json(raw: Raw) -> Raw:
    """The inverse of `quantized_config_json`; any other config.json stays as it is."""
    if quantization_method(raw) != METHOD:
        return raw
    model_type = cast("Raw", raw[_KEY]).get("model_type", "")
    return {**without_quantization(raw), "model_type": model_type}


class _OwnFormat(Family):
    @override
    def read(self, raw: Raw, head: HeadKind) -> ModelConfig:
        return ModelConfig.from_dict(raw["config"])

    @override
    def write(self, config: ModelConfig) -> dict[str, Any]:
        return {"config": config.to_dict()}


# What the speed runs of nanoGPT settled on (Jordan et al. 2024, modded-nanogpt), at a size for two cores and ten
# minutes of characters.
_MODERN_NANO = {
    "vocab_size": 65,
    "d_model": 256,
    "decoder_layers": 4,
    "max_length": 256,
    "attention": {"heads": 4, "bias": False, "output_bias": False, "qk_norm": "head"},
    "feed_forward": {"width": 1024, "activation": "relu_squared", "bias": False},
    "position.kind": "rotary",
    "norm": {"kind": "rms", "eps": 1e-6},
    "embedding.tied": False,
    "init": {"std": 0.0625, "scale_residual": True},
}
FAMILY = _OwnFormat(
    model_type="anyformer",
    architectures=classes("Transformer", ""),
    experts="",
    published={"modern-nano": {"config": _MODERN_NANO}},
)
