"""`anyformer diff A B`: only what differs."""

from anyformer.cli.models import config_of, positional, text
from anyformer.config import diff

_USAGE = "anyformer diff A B, where each is a preset or a model directory: anyformer diff gpt2 llama"


def run(argv: list[str]) -> int:
    """Print the fields in which two models differ."""
    if argv and argv[0] in ("-h", "--help"):
        print(f"usage: {_USAGE}")
        return 0
    (left, right), rest = positional(argv, 2, _USAGE)
    positional(rest, 0, _USAGE)
    differences = diff(config_of(left), config_of(right))

    from rich.console import Console
    from rich.table import Table

    if not differences:
        Console().print(f"{left} and {right} are the same architecture.")
        return 0
    table = Table("", left, right, header_style="bold", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for name, (a, b) in differences.items():
        table.add_row(name, text(a), text(b))
    Console().print(table)
    return 0
