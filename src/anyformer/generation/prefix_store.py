"""Keys and values of texts, for others that begin with the same tokens: the next turn of a chat, or a shared prompt."""

from collections.abc import Sequence
from typing import Any, cast

from anyformer.blocks.kv_cache import KeyValueCache
from anyformer.model import Transformer
from anyformer.tokenizer.prompt import common_prefix

_WORTH_SHARING = 16
"""Tokens in common below which a text is rather read anew."""


class PrefixStore:
    """The latest texts of a decoder-only model.

    Args:
        model: Its caches are kept.
        texts: Number of texts; 0: none is kept.
    """

    def __init__(self, model: Transformer, texts: int) -> None:
        self._model, self._most = model, 0 if model.config.is_encoder_decoder else texts
        self._kept: list[tuple[str | None, list[int], KeyValueCache]] = []
        """The latest last."""

    def find(self, ids: Sequence[int], adapter: str | None = None) -> KeyValueCache | None:
        """A cache with the longest beginning that a prompt has in common with a text, and room for the prompt.

        Texts that were read with another adapter have other keys and values. The last token of the prompt is never in
        it, since its logits are not kept. None: there is nothing worth it.
        """
        best, shared = None, _WORTH_SHARING - 1
        for entry in self._kept:
            common = min(common_prefix(entry[1], ids), len(ids) - 1)
            if entry[0] == adapter and common > shared:
                best, shared = entry, common
        if best is None:
            return None
        self._kept.remove(best)
        self._kept.append(best)
        cache = self._model.make_cache(1, max(len(ids), best[2].length))
        cache.put(0, best[2])
        cache.truncate(shared)
        return cache

    def keep(self, cache: KeyValueCache, row: int | None = None, adapter: str | None = None) -> None:
        """Keep a text, and forget those that it begins with.

        Args:
            cache: Taken over if `row` is None, and has one text then.
            row: The text of the cache, which is copied.
        """
        if self._most == 0:
            return
        if row is not None:
            own = self._model.make_cache(1, int(cache.lengths[row]))
            own.put(0, cache, row)
            cache = own
        ids = cast("list[int]", cast("Any", cache.tokens[0, : cache.length]).tolist())
        self._kept = [each for each in self._kept if each[0] != adapter or common_prefix(each[1], ids) < len(each[1])]
        self._kept.append((adapter, ids, cache))
        del self._kept[: -self._most]

    def clear(self) -> None:
        """Forget all texts."""
        self._kept.clear()
