"""Looking inside: diagrams, maps of attention, an architecture as one file, a page in which a model runs."""

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from operator import attrgetter

from anyformer.config import ExpertsConfig, ModelConfig
from anyformer.errors import UserError, nearest, quote
from anyformer.schema import not_default

_ROUTER = ("count", "used", "normalized", "balance")
BEYOND_A_ROUTER = tuple(
    f"feed_forward.experts.{each.name}" for each in fields(ExpertsConfig) if each.name not in _ROUTER
)
"""Fields of a mixture of experts that is more than a softmax over all, of which the largest are chosen (Mixtral)."""


def require_defaults(config: ModelConfig, names: Iterable[str], why: str) -> None:
    """Raise UserError for a field among these that is not at its default: ``head.softcap is 30.0, which ...``; and for
    experts with biases."""
    for name in not_default(config, names):
        value = attrgetter(name)(config)
        raise UserError(f"{name} is {'set' if is_dataclass(value) else quote(value)}, which {why}.")
    if config.feed_forward.experts is not None and config.feed_forward.bias:
        raise UserError(f"feed_forward.bias is True beside experts, which {why}.")


def require_own_blocks(config: ModelConfig, kinds: Mapping[str, Iterable[str]], why: str) -> None:
    """Raise UserError for a kind of block that somebody added, and that is not among the library's own.

    Args:
        config: The model.
        kinds: Names of activations, norms, positions and perhaps initializations, by ``"activation"``, ``"norm"``,
            ``"position"`` and ``"init"``.
        why: The end of ``a block of your own, whose code ...``.
    """
    activations = {config.feed_forward.activation, config.head.transform, config.head.pooler} - {None}
    if config.decoder_feed_forward is not None:
        activations.add(config.decoder_feed_forward.activation)
    fields = [("feed_forward.activation", activation, "activation") for activation in sorted(map(str, activations))]
    fields += [(f"{part}.kind", getattr(config, part).kind, part) for part in ("norm", "position", "init")]
    for field, kind, part in fields:
        if part in kinds and kind not in (names := list(kinds[part])):
            raise UserError(
                f"{field} is {quote(kind)}, a block of your own, whose code {why}: choose one that anyformer has "
                f"({nearest(kind, names)})."
            )
