"""How many examples are drawn inside a test; those of a whole test are counted in conftest.py."""

from __future__ import annotations

from hypothesis import settings

IN_GATE = False
"""Whether slow tests are left out."""


def examples(most: int) -> settings:
    """Settings of a property inside of a test: a tenth of its examples in the gate, but two at least."""
    return settings(max_examples=max(2, most // 10) if IN_GATE else most)
