"""`anyformer diagram MODEL [OTHER]`: a drawing of a model, or of what separates two."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from anyformer import atomic
from anyformer.cli.options import Positional, parse, without_vs
from anyformer.spec import read_config
from anyformer.terminal import write


@dataclass(frozen=True)
class DiagramOptions:
    """Draw a model's blocks as an SVG picture; of two models, with what differs in color.

    Blocks have the same place in every drawing, and those that a model lacks are dashed. Shapes of tensors, masks,
    parameters, FLOPs and the bytes of the key-value cache are in it.

    Examples:
        anyformer diagram llama-3.2-1b -o llama.svg
        anyformer diagram gpt2 llama -o blocks.svg
        anyformer diagram llama llama:norm.kind=layer,position.kind=learned -o change.svg
    """

    model: Positional[str]
    """A preset, a config file, a model or run directory, or a GGUF file, perhaps with fields changed."""
    other: Positional[str | None] = None
    """Model to compare it with."""
    output: Annotated[Path | None, "-o"] = None
    """The picture, a new file (default: standard output)."""
    context: int | None = None
    """Tokens that each token attends to, for the FLOPs (default: as many as the shorter model was made for)."""


def run(argv: list[str]) -> int:
    """Draw the models."""
    options = parse(DiagramOptions, without_vs(argv), "diagram")
    names = [options.model] if options.other is None else [options.model, options.other]
    models = [(each.spec, each.config) for each in map(read_config, names)]
    if options.output is not None:
        atomic.check_new(options.output)

    from anyformer.learn.diagram import draw, panels

    picture = draw(panels(models, options.context))
    if options.output is None:
        write(picture, end="")
    else:
        atomic.write(options.output, picture)
        write(f"{options.output}: {' and '.join(names)}")
    return 0
