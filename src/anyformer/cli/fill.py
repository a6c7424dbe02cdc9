"""`anyformer fill MODEL "Paris is the [MASK] of France."`: words for the masks."""

from dataclasses import dataclass
from typing import Annotated

from anyformer.cli.options import ModelOptions, Positional, Text, parse
from anyformer.schema import Rule
from anyformer.terminal import write


@dataclass(frozen=True, kw_only=True)
class FillOptions(ModelOptions):
    """Guess the masked words of a text with an encoder that was trained to.

    Examples:
        anyformer fill bert-base-uncased "Paris is the [MASK] of France."
        anyformer fill runs/bert-mini-1 "for [MASK] in range(10):" --top 10
    """

    text: Positional[Text[str]]
    """The text, with the tokenizer's mask token ([MASK], <mask>) where a word is missing."""
    top: Annotated[int, "N", Rule(lambda top: top >= 1, "is a number of guesses, at least 1")] = 5
    """Guesses for each mask."""


def run(argv: list[str]) -> int:
    """Print the likeliest words for each mask."""
    options = parse(FillOptions, argv, "fill")

    from anyformer.generation import fill

    masks = fill(*options.load_model(), options.text, top=options.top)
    for number, candidates in enumerate(masks, 1):
        if len(masks) > 1:
            write(f"mask {number}")
        for candidate in candidates:
            write(f"{candidate.probability:7.1%}  {candidate.text.strip()}")
    return 0
