"""`anyformer evaluate MODEL --data text`: how well a model predicts a text, and what rounding it costs."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated

from anyformer.cli.loading import ModelOptions
from anyformer.cli.options import flag, parse
from anyformer.errors import UserError
from anyformer.limits import RECORD_BYTES
from anyformer.terminal import write

if TYPE_CHECKING:
    from anyformer.compare.quality import Quality, Text


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(ModelOptions):
    """How well a decoder predicts a text: perplexity, bits per byte, and what it takes.

    The text is cut into windows of --context tokens, and each token is predicted from those before it in its window.

    Examples:
        anyformer evaluate openai-community/gpt2 --data notes.txt
        anyformer evaluate openai-community/gpt2 --data notes.txt --compare
    """

    data: Annotated[tuple[str, ...], "PATH"]
    """The text: files, folders and globs, as for training."""
    field: str = "text"
    """The field that holds the text of a record."""
    max_record_bytes: Annotated[int, "N"] = RECORD_BYTES
    """Bytes that a record may have."""
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


def run(argv: list[str]) -> int:
    """Print the figures."""
    options = parse(EvaluateOptions, argv, "evaluate")
    if options.compare and options.quantize is not None:
        raise UserError("--compare evaluates all of them: leave out --quantize.")
    for name in ("limit", "batch_size", "max_record_bytes"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise UserError(f"{flag(name)} is at least 1, not {value}.")

    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from anyformer.compare.quality import measure, predictions, read_text, weight_dtype
    from anyformer.console import Console

    text: Text | None = None
    results: dict[str, Quality] = {}
    console = Console(stderr=True)
    for quantize in (None, "int8", "int4") if options.compare else (options.quantize,):
        model, tokenizer = replace(options, quantize=quantize).load_model()
        if text is None:
            text = read_text(tokenizer, options.data, options.field, options.limit, options.max_record_bytes)
        title = weight_dtype(model)
        columns = (
            TextColumn(title, markup=False),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task(title, total=predictions(text))
            quality = measure(model, text, options.context, options.batch_size, partial(bar.advance, task))
        name = quantize or title
        results[name] = quality
        if options.json:
            figures = {
                "weights": name,
                "perplexity": quality.perplexity,
                "bits_per_byte": quality.bits_per_byte,
                "loss": quality.evaluation.loss,
                "tokens": quality.evaluation.predicted,
                "bytes_of_weights": quality.size,
                "read_tokens_per_second": quality.prompt_tokens_per_second,
                "written_tokens_per_second": quality.decode_tokens_per_second,
            }
            write(json.dumps(figures), flush=True)
    if not options.json and text is not None:
        _show(results, text)
    return 0


def _show(results: dict[str, Quality], text: Text) -> None:
    from rich.table import Table

    from anyformer.console import Console

    console = Console()
    first = next(iter(results.values()))
    console.print(f"{first.evaluation.predicted:,} tokens, {text.size:,} bytes of text")
    table = Table("weights", box=None, header_style="bold", pad_edge=False)
    for column in ("perplexity", "cost", "bits per byte", "MB", "tokens/s read", "written"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, quality in results.items():
        table.add_row(
            name,
            f"{quality.perplexity:.3f}",
            "" if quality is first else f"{quality.perplexity / first.perplexity - 1:+.2%}",
            f"{quality.bits_per_byte:.4f}",
            f"{quality.size / 1e6:,.1f}",
            f"{quality.prompt_tokens_per_second:,.0f}",
            f"{quality.decode_tokens_per_second:,.0f}",
        )
    console.print(table)
