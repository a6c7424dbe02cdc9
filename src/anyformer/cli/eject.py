"""`anyformer eject MODEL -o FILE`: an architecture as one Python file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from anyformer import atomic
from anyformer.cli.options import Positional, parse, without_vs
from anyformer.errors import UserError
from anyformer.terminal import write


@dataclass(frozen=True)
class EjectOptions:
    """Write an architecture as one Python file that needs torch and safetensors alone.

    It has the model with its config folded to constants, what loads its weights from a directory in Hugging Face's
    format, and what samples and trains.

    Examples:
        anyformer eject gpt2 -o gpt2.py
        anyformer eject runs/llama-nano-1 -o mine.py
        anyformer eject --diff gpt2 llama
    """

    models: Positional[tuple[str, ...]]
    """A preset, a config file, a model or run directory, or a GGUF file, perhaps with fields changed; with --diff two
    of them."""
    output: Annotated[Path | None, "-o"] = None
    """The file (default: standard output)."""
    diff: bool = False
    """Show what separates two architectures, as a diff of their code."""


def run(argv: list[str]) -> int:
    """Write the file, or print what separates two."""
    options = parse(EjectOptions, without_vs(argv), "eject")
    models, output = options.models, options.output
    if len(models) != (2 if options.diff else 1):
        count = f"{len(models)} {'was' if len(models) == 1 else 'were'} given"
        raise UserError(f"eject writes one model, and --diff compares two models: {count}.")
    if options.diff and output is not None:
        raise UserError("--diff prints to standard output: leave -o out.")
    if output is not None:
        atomic.check_new(output)

    from anyformer.learn.eject import architecture_diff, eject

    if options.diff:
        write(architecture_diff(*models) or f"{models[0]} and {models[1]} are the same architecture.")
        return 0
    text = eject(models[0])
    if output is None:
        write(text.rstrip("\n"))
    else:
        atomic.write(output, text)
        write(f"{output}: {text.count(chr(10))} lines")
    return 0
