"""Which blocks of a config are the library's own, and which somebody added."""

from collections.abc import Iterable, Mapping

from anyformer.config import ModelConfig
from anyformer.errors import UserError, nearest, quote


def require_known(config: ModelConfig, known: Mapping[str, Iterable[str]], why: str) -> None:
    """Raise UserError for a kind of block that is not among those known.

    Args:
        config: The model.
        known: Names of activations, norms, positions and perhaps initializations, by ``"activation"``, ``"norm"``,
            ``"position"`` and ``"init"``.
        why: The end of ``a block of your own, whose code ...``.
    """
    activations = {config.feed_forward.activation, config.head.transform, config.head.pooler} - {None}
    if config.decoder_feed_forward is not None:
        activations.add(config.decoder_feed_forward.activation)
    named = [("feed_forward.activation", activation, "activation") for activation in sorted(map(str, activations))]
    named += [("norm.kind", config.norm.kind, "norm"), ("position.kind", config.position.kind, "position")]
    named += [("init.kind", config.init.kind, "init")]
    for field, kind, what in named:
        if what in known and kind not in (names := list(known[what])):
            raise UserError(
                f"{field} is {quote(kind)}, a block of your own, whose code {why}: choose one that anyformer has "
                f"({nearest(kind, names)})."
            )
