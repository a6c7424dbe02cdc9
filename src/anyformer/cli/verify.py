"""`anyformer verify DIR`: the same numbers, tokens and words as transformers?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from anyformer.cli.models import positional
from anyformer.cli.parsing import parse

if TYPE_CHECKING:
    from anyformer.compare.verify import Check

_USAGE = "anyformer verify MODEL [--tolerance 1e-4], where MODEL is a directory or a hub id"


@dataclass(frozen=True)
class VerifyOptions:
    """Compare a model with the same in transformers; exit status 0 only if they are equal, 1 if not."""

    tolerance: float = 1e-4
    """Largest difference allowed in logits and hidden states, relative to their largest value."""


def run(argv: list[str]) -> int:
    """Print each comparison."""
    if not argv or argv[0] in ("-h", "--help"):
        print(f"usage: {_USAGE}")
        return 0
    (name,), rest = positional(argv, 1, _USAGE)
    options = parse(VerifyOptions, rest, default=VerifyOptions(), prog="anyformer verify")

    from anyformer.compare.verify import verify

    return show(verify(name, tolerance=options.tolerance))


def show(checks: Sequence[Check]) -> int:
    """Print comparisons; returns 0 if all are equal, else 1."""
    from rich.console import Console

    console = Console(highlight=False)
    for check in checks:
        console.print("[green]equal    [/]" if check.equal else "[red]different[/]", f"{check.name}: {check.detail}")
    return 0 if all(check.equal for check in checks) else 1
