"""Examples to hold out for validation, and examples that are there twice."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from anyformer.data.examples import Example, Where
from anyformer.errors import UserError

SHARE = 0.1
"""Share of the examples that is held out."""

Twice = tuple[Where, Where]
"""The places of an example, and of one that says the same."""


def held_out(examples: Sequence[Example], share: float = SHARE, seed: int = 0) -> tuple[list[Example], list[Example]]:
    """Split examples for training and validation, by a hash of their content.

    Examples that say the same, or ask the same of a classifier, a tagger or a translator, are on the same side. The
    split depends on nothing but the examples, the share and the seed, not on their order.

    Args:
        examples: All of them.
        share: Of the different examples, how many are held out; at least one is.
        seed: Another one gives another split.

    Returns:
        Those to train on, and those held out.

    Raises:
        UserError: The share is not between 0 and 1, or there are no two different examples.
    """
    if not 0 < share < 1:
        raise UserError(f"The share of examples that are held out must be between 0 and 1, not {share:g}.")
    keys = [_key(example, seed) for example in examples]
    ranked = sorted(set(keys))
    if len(ranked) < 2:
        raise UserError(
            "There are no two different examples, so that none can be held out: give examples for validation."
        )
    out = frozenset(ranked[: min(max(round(share * len(ranked)), 1), len(ranked) - 1)])
    training = [example for example, key in zip(examples, keys, strict=True) if key not in out]
    return training, [example for example, key in zip(examples, keys, strict=True) if key in out]


def duplicates(examples: Iterable[Example]) -> list[Twice]:
    """Examples that say the same as one before, label included, each with the first that does."""
    first, found = dict[bytes, Where](), list[Twice]()
    for example in examples:
        before = first.setdefault(digest(example), example.where)
        if before is not example.where:
            found.append((before, example.where))
    return found


def overlap(training: Iterable[Example], validation: Iterable[Example]) -> list[Twice]:
    """Examples for validation that ask the same as one for training, each with the first that does."""
    first = dict[bytes, Where]()
    for example in training:
        first.setdefault(_hash(example.question), example.where)
    keys = ((_hash(example.question), example.where) for example in validation)
    return [(first[key], where) for key, where in keys if key in first]


def digest(example: Example) -> bytes:
    """A hash of all that an example says."""
    return _hash(example.content)


def _key(example: Example, seed: int) -> bytes:
    return hashlib.blake2b(
        _hash(example.question), digest_size=16, salt=seed.to_bytes(8, "little", signed=True)
    ).digest()


def _hash(content: object) -> bytes:
    return hashlib.blake2b(repr(content).encode("utf-8", "surrogatepass"), digest_size=16).digest()
