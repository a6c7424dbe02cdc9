"""`anyformer show MODEL`: what a model is made of and what it costs."""

import json
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from typing import Annotated, Any

from anyformer.cli.options import Parser, Positional, change_model, make
from anyformer.config import ModelConfig
from anyformer.pages.formatting import byte_size
from anyformer.schema import Rule
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
    context: Annotated[int | None, "N", Rule(lambda n: n >= 1, "is a number of tokens, at least 1")] = None
    """Tokens that each token attends to (default: as many as the model was made for)."""
    json: bool = False
    """Print JSON instead of tables."""


def run(argv: list[str]) -> int:
    """Print the account of a model."""
    parser = Parser("show", ShowOptions.__doc__ or "")
    parser.add_fields(ShowOptions)
    parser.add_model_flags()
    values = parser.values(argv)
    options = make(ShowOptions, values)
    config = change_model(read_config(options.model).config, values, "show")
    _print(config, options)
    return 0


def _print(config: ModelConfig, options: ShowOptions) -> None:
    from anyformer.analysis import cache_bytes_per_token, part_costs, unused_parameters
    from anyformer.console import Console, table

    context = options.context or config.max_length
    costs = part_costs(config, context)
    parameters, flops = sum(part.parameters for part in costs), sum(part.flops for part in costs)
    cache, active = cache_bytes_per_token(config), parameters - unused_parameters(config)
    if options.json:
        totals = {"parameters": parameters, "active_parameters": active, "flops_per_token": flops}
        totals |= {"cache_bytes_per_token": cache, "context": context}
        write(json.dumps({"config": config.to_dict(), "parts": [asdict(part) for part in costs], **totals}, indent=2))
        return
    console = Console()
    settings = table(gap=3)
    settings.show_header = False
    for field, value in _essentials(config):
        settings.add_row(field, shown(value))
    console.print(options.model, style="bold")
    console.print(settings)
    parts = table("part", numbers=("layers", "parameters", "share", "FLOPs per token"), gap=3)
    for part in costs:
        share = f"{part.parameters / parameters:.1%}"
        parts.add_row(part.name, str(part.layers), f"{part.parameters:,}", share, f"{part.flops:,}")
    parts.add_row("total", "", f"{parameters:,}", "", f"{flops:,}", style="bold")
    console.print("", parts, "", sep="\n")
    console.print(f"FLOPs of a forward pass, each token looking back on {context} tokens")
    if active < parameters:
        console.print(f"experts: a token is computed with {active:,} of the parameters ({active / parameters:.1%})")
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
