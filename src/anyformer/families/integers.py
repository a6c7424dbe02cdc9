"""How config.json says that a model's matrices are integers of ours.

It is that of the family, with `"quantization_config": {"quant_method": "anyformer", "bits": 4, "group_size": 32,
"model_type": "llama"}` beside it, and "anyformer" as its own model_type: `transformers` would pass over a method that
it does not know, and read weights that aren't there.
"""

from typing import Any, cast

from anyformer.families.base import Raw

METHOD = "anyformer"
_KEY = "quantization_config"


def marked(raw: Raw, bits: int, group: int) -> dict[str, Any]:
    """The config.json of a model with integers, from that of its family."""
    said = {"quant_method": METHOD, "bits": bits, "group_size": group, "model_type": raw["model_type"]}
    return {**raw, "model_type": METHOD, _KEY: said}


def method(raw: Raw) -> str | None:
    """Whose integers a config.json speaks of; None: it speaks of none."""
    said = raw.get(_KEY)
    return said if said is None else str(cast("Raw", said).get("quant_method") if isinstance(said, dict) else said)


def plain(raw: Raw) -> Raw:
    """The config.json of the family; one without integers of ours stays as it is."""
    if method(raw) != METHOD:
        return raw
    family = cast("Raw", raw[_KEY]).get("model_type", "")
    return {**{key: value for key, value in raw.items() if key != _KEY}, "model_type": family}
