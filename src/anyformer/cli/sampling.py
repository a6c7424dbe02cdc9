"""The flags of `generate` and `chat` that say how tokens are sampled."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, cast

if TYPE_CHECKING:
    from anyformer.generation.config import GenerationOptions


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """Sampling."""

    temperature: Annotated[float | None, "T"] = None
    """0: always the likeliest token; above: draw, the bolder the higher (default: 0; of a chat the model's own, or
    0.7)."""
    top_k: int | None = None
    """Draw from the k likeliest tokens only."""
    top_p: Annotated[float | None, "P"] = None
    """Draw from the likeliest tokens that have this probability together."""
    min_p: Annotated[float | None, "P"] = None
    """Draw from tokens only that are at least this share as likely as the likeliest."""
    repetition_penalty: float = 1.0
    """Above 1: what prompt and text have already becomes less likely."""
    presence_penalty: float = 0.0
    """Above 0: what the new text has already becomes less likely."""
    frequency_penalty: float = 0.0
    """Above 0: the more often the new text has something, the less likely it becomes."""
    seed: int | None = None
    """Makes drawing repeatable."""


def generation_options(options: SamplingOptions) -> GenerationOptions:
    """The fields of `GenerationConfig` among flags, without those that are None, which were left out."""
    from anyformer.generation import GenerationConfig

    flags = {field.name: getattr(options, field.name, None) for field in fields(GenerationConfig)}
    return cast("GenerationOptions", {name: value for name, value in flags.items() if value is not None})
