"""`anyformer evaluate MODEL --data text`: how well a model predicts a text, and what rounding it costs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

from anyformer.cli.loading import ModelOptions
from anyformer.cli.options import flag, parse
from anyformer.errors import UserError
from anyformer.limits import RECORD_BYTES
from anyformer.terminal import write

if TYPE_CHECKING:
    from anyformer.evaluation.perplexity import Quality, Text
    from anyformer.model import Transformer
    from anyformer.tokenizer import Tokenizer

    Loaded = tuple[Transformer, Tokenizer | None]


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
    """Evaluate it as stored, with int8 and with int4, and show what each costs; with an --adapter, beside the integers
    and merged before they are made."""
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

    from anyformer.console import Console
    from anyformer.evaluation.perplexity import divergence, measure, predictions, read_text, weight_dtype

    text: Text | None = None
    reference: Transformer | None = None
    results: dict[str, Quality] = {}
    console = Console(stderr=True)
    for name, load in _variants(options):
        model, tokenizer = load()
        if text is None:
            text = read_text(tokenizer, options.data, options.field, options.limit, options.max_record_bytes)
        title = name or weight_dtype(model)
        columns = (
            TextColumn(title, markup=False),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task(title, total=predictions(text))
            quality = measure(model, text, options.context, options.batch_size, partial(bar.advance, task))
        if reference is not None:
            off = divergence(model, reference, text, options.context, options.batch_size)
            quality = replace(quality, divergence=off)
        elif options.compare:
            reference = model
        results[title] = quality
        if options.json:
            figures = {
                "weights": title,
                "perplexity": quality.perplexity,
                "divergence": quality.divergence,
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


def _variants(options: EvaluateOptions) -> Iterator[tuple[str | None, Callable[[], Loaded]]]:
    """What is evaluated: a name, or None for that of the weights, and how it is loaded."""
    from anyformer.quantization import quantize

    def rounded(kind: str) -> Loaded:
        model, tokenizer = options.load_model()
        return quantize(model, kind), tokenizer

    yield options.quantize, options.load_model
    if not options.compare:
        return
    kinds: tuple[Literal["int8", "int4"], ...] = ("int8", "int4")
    for kind in kinds:
        beside = replace(options, quantize=kind).load_model
        if options.adapter:
            yield f"{kind} and the adapter", beside
            yield f"merged, then {kind}", partial(rounded, kind)
        else:
            yield kind, beside


def _show(results: dict[str, Quality], text: Text) -> None:
    from rich.table import Table

    from anyformer.console import Console

    console = Console()
    first = next(iter(results.values()))
    console.print(f"{first.evaluation.predicted:,} tokens, {text.size:,} bytes of text")
    table = Table("weights", box=None, header_style="bold", pad_edge=False)
    for column in ("perplexity", "cost", "KL", "bits per byte", "MB", "tokens/s read", "written"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, quality in results.items():
        table.add_row(
            name,
            f"{quality.perplexity:.3f}",
            "" if quality is first else f"{quality.perplexity / first.perplexity - 1:+.2%}",
            "" if quality.divergence is None else f"{quality.divergence:.4f}",
            f"{quality.bits_per_byte:.4f}",
            f"{quality.size / 1e6:,.1f}",
            f"{quality.prompt_tokens_per_second:,.0f}",
            f"{quality.decode_tokens_per_second:,.0f}",
        )
    console.print(table)
    for kind in ("int8", "int4"):
        beside, merged = (results.get(name) for name in (f"{kind} and the adapter", f"merged, then {kind}"))
        if beside is not None and merged is not None:
            nearer = (merged.divergence or 0.0) <= (beside.divergence or 0.0)
            how = "merged before the weights are rounded" if nearer else "beside the integers"
            console.print(f"{kind}: the adapter costs less {how}")
