"""`anyformer diff A B`: only what differs."""

from dataclasses import dataclass

from anyformer.cli.options import Positional, parse, without_vs
from anyformer.cli.show import shown
from anyformer.config import diff
from anyformer.spec import read_config


@dataclass(frozen=True)
class DiffOptions:
    """Show the fields of the config in which two models differ; a `vs` between them may be written, too.

    Examples:
        anyformer diff gpt2 llama
        anyformer diff llama llama:norm.kind=layer,attention.kv_heads=32
        anyformer diff runs/llama-nano-1 llama-3.2-1b
    """

    a: Positional[str]
    """A preset, a config file, a model or run directory, or a GGUF file, perhaps with fields changed."""
    b: Positional[str]
    """Model to compare it with."""


def run(argv: list[str]) -> int:
    """Print the fields in which two models differ."""
    options = parse(DiffOptions, without_vs(argv), "diff")
    differences = diff(read_config(options.a).config, read_config(options.b).config)

    from anyformer.console import Console, table

    if not differences:
        Console().print(f"{options.a} and {options.b} are the same architecture.")
        return 0
    rows = table("", options.a, options.b, gap=3)
    for name, (a, b) in differences.items():
        rows.add_row(name, shown(a), shown(b))
    Console().print(rows)
    return 0
