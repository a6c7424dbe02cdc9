"""`anyformer evaluate MODEL --data text`: how well a model predicts a text, and what rounding it costs."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

from anyformer.cli.loading import LoadOptions
from anyformer.cli.options import Positional, parse
from anyformer.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from anyformer.compare.quality import Quality, Text


@dataclass(frozen=True)
class EvaluateOptions:
    """How well a decoder predicts a text: perplexity, bits per byte, and what it takes.

    The text is cut into windows of --context tokens, and each token is predicted from those before it in its window.

    Examples:
        anyformer evaluate openai-community/gpt2 --data notes.txt
        anyformer evaluate openai-community/gpt2 --data notes.txt --compare
    """

    model: Positional[str]
    """A model directory, a run directory, a GGUF file, or a hub id."""
    data: Annotated[tuple[str, ...], "PATH"]
    """The text: files, folders and globs, as for training."""
    field: str = "text"
    """The field that holds the text of a record."""
    context: int | None = None
    """Tokens of a window (default: as many as the model was trained on, at most 1,024)."""
    limit: int | None = None
    """Read this many tokens of the text (default: all)."""
    batch_size: int = 4
    """Windows that are read at a time."""
    compare: bool = False
    """Evaluate it as stored, with int8 and with int4, and show what each costs."""
    json: bool = False
    """Print the figures as JSON, one object a line."""
    loading: LoadOptions = LoadOptions()


def run(argv: list[str]) -> int:
    """Print the figures."""
    options = parse(EvaluateOptions, argv, "evaluate")
    if options.compare and options.loading.quantize is not None:
        raise UserError("--compare evaluates all of them: leave out --quantize.")
    for name in ("limit", "batch_size"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} is at least 1, not {value}.")

    from rich.console import Console

    console = Console(stderr=True)
    text: Text | None = None
    found: dict[str, Quality] = {}
    for kind in (None, "int8", "int4") if options.compare else (options.loading.quantize,):
        name, found_text, quality = _evaluate(options, kind, text, console)
        text = found_text
        found[name] = quality
        if options.json:
            print(json.dumps(_figures(name, quality)), flush=True)
    if not options.json and text is not None:
        _show(found, text)
    return 0


def _evaluate(
    options: EvaluateOptions, kind: str | None, text: Text | None, console: Console
) -> tuple[str, Text, Quality]:
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from anyformer.compare.quality import measure, predictions, read_text, weight_dtype

    model, tokenizer = replace(options.loading, quantize=kind).load(options.model)
    if text is None:
        text = read_text(tokenizer, options.data, options.field, options.limit)
    name = weight_dtype(model)
    bar = Progress(
        TextColumn(name),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task(name, total=predictions(text))
        quality = measure(
            model, text, options.context, options.batch_size, lambda count: bar.update(task, advance=count)
        )
    return name if kind is None else kind, text, quality


def _figures(name: str, quality: Quality) -> dict[str, Any]:
    return {
        "weights": name,
        "perplexity": quality.perplexity,
        "bits_per_byte": quality.bits_per_byte,
        "loss": quality.evaluation.loss,
        "tokens": quality.evaluation.predicted,
        "bytes_of_weights": quality.size,
        "read_tokens_per_second": quality.prompt_tokens_per_second,
        "written_tokens_per_second": quality.decode_tokens_per_second,
    }


def _show(found: dict[str, Quality], text: Text) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    first = next(iter(found.values()))
    console.print(f"{first.evaluation.predicted:,} tokens, {text.size:,} bytes of text", highlight=False)
    columns = ["weights", "perplexity", "cost", "bits per byte", "MB", "tokens/s read", "written"]
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column == "weights" else "right", no_wrap=True)
    for name, quality in found.items():
        cost = quality.perplexity / first.perplexity - 1
        table.add_row(
            name,
            f"{quality.perplexity:.3f}",
            "" if quality is first else f"{cost:+.2%}",
            f"{quality.bits_per_byte:.4f}",
            f"{quality.size / 1e6:,.1f}",
            f"{quality.prompt_tokens_per_second:,.0f}",
            f"{quality.decode_tokens_per_second:,.0f}",
        )
    console.print(table)
