"""`anyformer attention MODEL "text" -o attention.html`: what each head attends to in one's own text."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from anyformer.cli.options import ModelOptions, Positional, Text, parse
from anyformer.terminal import write


@dataclass(frozen=True, kw_only=True)
class AttentionOptions(ModelOptions):
    """Show what every head of a model attends to while it reads a text, as one page that works offline.

    Examples:
        anyformer attention openai-community/gpt2 "The cat sat on the mat because it was tired."
        anyformer attention google-t5/t5-small "translate English to German: The house is small."
        anyformer attention runs/transformer-1 "a small house" --target "ein kleines Haus" -o house.html
    """

    text: Positional[Text[str]]
    """The text; of an encoder-decoder what its encoder reads."""
    target: Text[str | None] = None
    """Text that an encoder-decoder's decoder reads (default: what the model generates greedily)."""
    output: Annotated[Path, "-o"] = Path("attention.html")
    """The page."""


def run(argv: list[str]) -> int:
    """Write the page, and say what each head does."""
    options = parse(AttentionOptions, argv, "attention")

    from anyformer.learn.attention_maps import attention, most_tokens, notes, write_page
    from anyformer.pages.render import require_page

    # Before the model is loaded.
    require_page(options.output)
    model, tokenizer = options.load_model()
    weights = attention(model, tokenizer, options.text, options.target, max_tokens=most_tokens(model.config))
    for note in notes(weights):
        write(note)
    write_page(weights, options.output, model=Path(options.model).name)
    write(f"{options.output}: {len(weights.source_tokens or weights.tokens)} tokens")
    return 0
