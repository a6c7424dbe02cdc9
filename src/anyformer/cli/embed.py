"""`anyformer embed MODEL "a" "b"`: texts as vectors, or how alike they are."""

import json
from dataclasses import dataclass

from anyformer.cli.options import ModelOptions, Positional, Text, parse
from anyformer.terminal import write


@dataclass(frozen=True, kw_only=True)
class EmbedOptions(ModelOptions):
    """Turn each text into one vector, as the model's pooling files say, and show how alike the texts are.

    Examples:
        anyformer embed sentence-transformers/all-MiniLM-L6-v2 "a cat" "a kitten" "tax law"
        anyformer embed sentence-transformers/all-MiniLM-L6-v2 "a cat" --json
        anyformer embed google/embeddinggemma-300m "which planet is red?" --prompt query
    """

    texts: Positional[Text[tuple[str, ...]]]
    """The texts."""
    prompt: str | None = None
    """The name of the words that the model wants before such texts, such as query or document (default: its own
    choice)."""
    json: bool = False
    """Print the vectors, one JSON list a line."""


def run(argv: list[str]) -> int:
    """Print the vectors, or the cosines between them."""
    options = parse(EmbedOptions, argv, "embed")

    from anyformer.generation import embed

    model, tokenizer = options.load_model()
    vectors = embed(model, tokenizer, options.texts, prompt=options.prompt).cpu()
    if options.json:
        for vector in vectors:
            write(json.dumps([float(number) for number in vector]))
        return 0

    from torch.nn.functional import normalize

    from anyformer.console import Console, table

    directions = normalize(vectors, dim=1)
    cosines = table("cosine", *map(str, range(1, len(options.texts) + 1)))
    for number, (text, row) in enumerate(zip(options.texts, directions @ directions.T, strict=True), 1):
        cosines.add_row(f"{number}  {text}", *(f"{float(value):.3f}" for value in row))
    console = Console()
    console.print(f"{len(options.texts)} vectors of {vectors.shape[1]} numbers (--json prints them)")
    console.print(cosines)
    return 0
