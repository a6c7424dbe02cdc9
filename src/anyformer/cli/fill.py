"""`anyformer fill MODEL "Paris is the [MASK] of France."`: words for the masks."""

from dataclasses import dataclass

from tyro.conf import Positional

from anyformer.cli.parsing import parse
from anyformer.errors import UserError


@dataclass(frozen=True)
class FillOptions:
    """Guess the masked words of a text with an encoder that was trained to."""

    model: Positional[str]
    """A model directory, a run directory, or a hub id."""
    text: Positional[str]
    """The text, with the tokenizer's mask token ([MASK], <mask>) where a word is missing."""
    top: int = 5
    """Guesses for each mask."""
    device: str | None = None
    """Where to compute, such as cuda; default: the CPU."""


def run(argv: list[str]) -> int:
    """Print the likeliest words for each mask."""
    options = parse(FillOptions, argv, prog="anyformer fill")
    if options.top < 1:
        raise UserError(f"--top is a number of guesses, at least 1, not {options.top}.")

    from anyformer.checkpoint import load
    from anyformer.generation import fill

    model, tokenizer = load(options.model, device=options.device)
    masks = fill(model, tokenizer, options.text, top=options.top)
    for number, candidates in enumerate(masks, 1):
        if len(masks) > 1:
            print(f"mask {number}")
        for candidate in candidates:
            print(f"{candidate.probability:7.1%}  {candidate.text.strip()}")
    return 0
