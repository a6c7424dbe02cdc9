"""Looking inside: diagrams, maps of attention, an architecture as one file, a page in which a model runs."""

from collections.abc import Iterable, Mapping

from anyformer.config import ModelConfig
from anyformer.errors import UserError, nearest, quote


def require_own_blocks(config: ModelConfig, kinds: Mapping[str, Iterable[str]], why: str) -> None:
    """Raise UserError for a kind of block that somebody added, and that is not among the library's own.

    Args:
        kinds: Names of activations, norms, positions and perhaps initializations, by ``"activation"``, ``"norm"``,
            ``"position"`` and ``"init"``.
        why: The end of ``a block of your own, whose code ...``.
    """
    others = config.other_layers and config.other_layers.feed_forward
    networks = [each for each in (config.feed_forward, config.decoder_feed_forward, others) if each is not None]
    activations = {*(each.activation for each in networks), config.head.transform, config.head.pooler} - {None}
    fields = [("feed_forward.activation", activation, "activation") for activation in sorted(map(str, activations))]
    fields += [(f"{part}.kind", getattr(config, part).kind, part) for part in ("norm", "position", "init")]
    for field, kind, part in fields:
        if part in kinds and kind not in (names := list(kinds[part])):
            raise UserError(
                f"{field} is {quote(kind)}, a block of your own, whose code {why}: choose one that anyformer has "
                f"({nearest(kind, names)})."
            )
