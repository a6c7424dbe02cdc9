"""`anyformer show MODEL`: what a model is made of and what it costs."""

import json
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from typing import Any

from anyformer.cli.options import Parser, Positional, change_model, make
from anyformer.config import ModelConfig
from anyformer.errors import UserError
from anyformer.pages.formatting import byte_size
from anyformer.spec import read_config
from anyformer.terminal import write


@dataclass(frozen=True)
class ShowOptions:
    """Show a model's config, its parts, and what they cost, without its weights.

    Examples:
        anyformer show llama-3.2-1b
        anyformer show gpt2 --model.decoder-layers 24 --context 512
    """

    model: Positional[str]
    """A preset, a config file, a model or run directory, or a GGUF file, perhaps with fields changed."""
    context: int | None = None
    """Tokens that each token attends to (default: as many as the model was made for)."""
    json: bool = False
    """Print JSON instead of tables."""


def run(argv: list[str]) -> int:
    """Print the account of a model."""
    parser = Parser("show", ShowOptions.__doc__ or "")
    parser.add_fields(ShowOptions)
    parser.add_model_flags()
    given = parser.given(argv)
    options = make(ShowOptions, given)
    config = change_model(read_config(options.model).config, given, "show")
    if options.context is not None and options.context < 1:
        raise UserError(f"--context is a number of tokens, at least 1, not {options.context}.")
    _print(config, options)
    return 0


def _print(config: ModelConfig, options: ShowOptions) -> None:
    from rich.table import Table

    from anyformer.analysis import cache_bytes_per_token, part_costs
    from anyformer.console import Console

    context = options.context or config.max_length
    account = part_costs(config, context)
    parameters, flops = sum(part.parameters for part in account), sum(part.flops for part in account)
    cache = cache_bytes_per_token(config)
    if options.json:
        costs = {"parameters": parameters, "flops_per_token": flops, "cache_bytes_per_token": cache, "context": context}
        write(json.dumps({"config": config.to_dict(), "parts": [asdict(part) for part in account], **costs}, indent=2))
        return
    console = Console()
    settings = Table(box=None, show_header=False, pad_edge=False, padding=(0, 3, 0, 0))
    for field, value in _essentials(config):
        settings.add_row(field, shown(value))
    console.print(options.model, style="bold")
    console.print(settings)
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
    console.print(f"weights: {byte_size(parameters * 4)} in float32, {byte_size(parameters * 2)} in bfloat16")
    if cache:
        whole = byte_size(cache * context)
        console.print(f"key-value cache: {cache:,} bytes per token in bfloat16, {whole} for {context} tokens")


_ALWAYS = {"heads", "width", "activation", "kind", "placement", "eps", "tied"}


def _essentials(config: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """The fields of a config that a person wants to see: what it must say, and what is not as usual."""
    rows: list[tuple[str, Any]] = []
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            if field.default_factory is MISSING or value != field.default_factory():
                rows += _essentials(value, f"{prefix}{field.name}.")
        elif field.name in _ALWAYS or value != field.default:
            rows.append((f"{prefix}{field.name}", value))
    return rows


def shown(value: object) -> str:
    """A field's value, as a person would write it."""
    if value is None or value == ():
        return "-"
    if is_dataclass(value):
        return ", ".join(f"{name} {shown(part)}" for name, part in _essentials(value))
    return f"{value:g}" if isinstance(value, float) else str(value)
