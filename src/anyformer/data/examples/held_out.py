"""Examples to hold out for validation, and examples that are there twice."""

import hashlib
from collections.abc import Iterable, Sequence

from anyformer.data.examples import Example
from anyformer.data.formats import Location
from anyformer.errors import UserError

SHARE = 0.1
"""Share of the examples that is held out."""

Twice = tuple[Location, Location]
"""The locations of an example, and of one that says the same."""


def held_out(examples: Sequence[Example], share: float = SHARE, seed: int = 0) -> tuple[list[Example], list[Example]]:
    """Split examples for training and validation, by a hash of their content.

    Examples that say the same, or ask the same of a classifier, a tagger or a translator, are on the same side. The
    split depends on nothing but the examples, the share (of the different ones; at least one is held out) and the seed.

    Raises:
        UserError: The share is not between 0 and 1, or there are no two different examples.
    """
    if not 0 < share < 1:
        raise UserError(f"The share of examples that are held out must be between 0 and 1, not {share:g}.")
    salt = seed.to_bytes(8, "little", signed=True)
    keys = [hashlib.blake2b(_hash(each.question), digest_size=16, salt=salt).digest() for each in examples]
    ranked = sorted(set(keys))
    if len(ranked) < 2:
        raise UserError(
            "There are no two different examples, so that none can be held out: give examples for validation."
        )
    out = frozenset(ranked[: min(max(round(share * len(ranked)), 1), len(ranked) - 1)])
    sides: tuple[list[Example], list[Example]] = [], []
    for example, key in zip(examples, keys, strict=True):
        sides[key in out].append(example)
    return sides


def duplicates(examples: Iterable[Example]) -> list[Twice]:
    """Examples that say the same as one before, label included, each with the first that does."""
    first = dict[bytes, Location]()
    pairs = [(first.setdefault(digest(each), each.location), each.location) for each in examples]
    return [(before, location) for before, location in pairs if before is not location]


def overlap(training: Iterable[Example], validation: Iterable[Example]) -> list[Twice]:
    """Examples for validation that ask the same as one for training, each with the first that does."""
    first = dict[bytes, Location]()
    for example in training:
        first.setdefault(_hash(example.question), example.location)
    keys = ((_hash(example.question), example.location) for example in validation)
    return [(first[key], location) for key, location in keys if key in first]


def digest(example: Example) -> bytes:
    """A hash of all that an example says."""
    return _hash(example.content)


def _hash(content: object) -> bytes:
    return hashlib.blake2b(repr(content).encode("utf-8", "surrogatepass"), digest_size=16).digest()
