"""`anyformer show MODEL`: what a model is made of and what it costs."""

import json
from dataclasses import asdict, dataclass
from typing import Annotated

import tyro

from anyformer.cli.models import config_of, essentials, positional, text
from anyformer.cli.parsing import parse
from anyformer.config import ModelConfig
from anyformer.errors import UserError

_USAGE = "anyformer show MODEL [--context N] [--json] [--model.FIELD VALUE ...], where MODEL is a preset or a directory"


@dataclass(frozen=True)
class ShowOptions:
    """Show a preset's or a model directory's config, its parts, and what they cost."""

    model: ModelConfig
    """The fields of the model, to be changed one by one."""
    context: int | None = None
    """Tokens that each token looks back on; default: as many as the model was made for."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print JSON instead of tables."""


def run(argv: list[str]) -> int:
    """Print the account of a model."""
    if not argv or argv[0] in ("-h", "--help"):
        print(f"usage: {_USAGE}")
        return 0
    (name,), rest = positional(argv, 1, _USAGE)
    options = parse(ShowOptions, rest, default=ShowOptions(model=config_of(name)), prog=f"anyformer show {name}")
    if options.context is not None and options.context < 1:
        raise UserError(f"--context is a number of tokens, at least 1, not {options.context}.")
    _print(name, options)
    return 0


def _print(name: str, options: ShowOptions) -> None:
    from rich.console import Console
    from rich.table import Table

    from anyformer.analysis import cache_bytes_per_token, parts

    config = options.model
    context = options.context or config.max_length
    account = parts(config, context)
    parameters, flops = sum(part.parameters for part in account), sum(part.flops for part in account)
    cache = cache_bytes_per_token(config)
    if options.json:
        costs = {"parameters": parameters, "flops_per_token": flops, "cache_bytes_per_token": cache, "context": context}
        print(json.dumps({"config": config.to_dict(), "parts": [asdict(part) for part in account], **costs}, indent=2))
        return
    console = Console()
    fields = Table(box=None, show_header=False, pad_edge=False, padding=(0, 3, 0, 0))
    for field, value in essentials(config):
        fields.add_row(field, text(value))
    console.print(f"[bold]{name}[/bold]")
    console.print(fields)
    table = Table("part", box=None, header_style="bold", pad_edge=False, padding=(0, 3, 0, 0))
    for heading in ("layers", "parameters", "share", "FLOPs per token"):
        table.add_column(heading, justify="right", no_wrap=True)
    for part in account:
        share = f"{part.parameters / parameters:.1%}"
        table.add_row(part.name, str(part.layers), f"{part.parameters:,}", share, f"{part.flops:,}")
    table.add_row("total", "", f"{parameters:,}", "", f"{flops:,}", style="bold")
    console.print()
    console.print(table)
    console.print()
    console.print(f"FLOPs of a forward pass, each token looking back on {context} tokens")
    console.print(f"weights: {_size(parameters * 4)} in float32, {_size(parameters * 2)} in bfloat16")
    if cache:
        whole = _size(cache * context)
        console.print(f"key-value cache: {cache:,} bytes per token in bfloat16, {whole} for {context} tokens")


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
