"""`anyformer verify MODEL`: the same numbers, token ids and text as transformers?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

from anyformer.cli.options import ModelOptions, parse
from anyformer.errors import UserError

if TYPE_CHECKING:
    from anyformer.verify import Check


@dataclass(frozen=True, kw_only=True)
class VerifyOptions(ModelOptions):
    """Compare a model with the same model in transformers (a GGUF file, if need be, in llama.cpp).

    The exit status is 0 if they are equal, 1 if not. Both compute in float32, unless --dtype or --quantize asks how far
    the model moves from its float32 original.

    Examples:
        anyformer verify openai-community/gpt2
        anyformer verify runs/llama-nano-1 --quantize int8 --tolerance 0.05
    """

    tolerance: Annotated[float, "X"] = 1e-4
    """Largest difference allowed in logits and hidden states, relative to their largest value."""


def run(argv: list[str]) -> int:
    """Print each comparison."""
    options = asdict(parse(VerifyOptions, argv, "verify"))
    if options.pop("adapter"):
        raise UserError(
            "verify compares a model without adapters: write one that has them merged, by `anyformer convert MODEL DIR "
            "--adapter ADAPTER`, and verify that."
        )

    from anyformer.verify import verify

    return show(verify(options.pop("model"), **options))


def show(checks: Sequence[Check]) -> int:
    """Print comparisons; returns 0 if all are equal, else 1."""
    from rich.text import Text

    from anyformer.console import Console

    console = Console()
    for check in checks:
        word, color = ("rounded", "yellow") if check.is_rounded else ("equal", "green")
        word, color = (word, color) if check.equal else ("different", "red")
        console.print(Text(f"{word:<9}", color), f"{check.name}: {check.detail}")
    return 0 if all(check.equal for check in checks) else 1
