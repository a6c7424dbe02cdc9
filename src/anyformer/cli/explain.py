"""`anyformer explain MODEL -o model.html`: a page in which the model runs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from anyformer import atomic
from anyformer.cli.options import ModelOptions, parse
from anyformer.terminal import write


@dataclass(frozen=True, kw_only=True)
class ExplainOptions(ModelOptions):
    """Write a page in which the model runs, and shows what it computes: offline, in any browser.

    It reads what you type and shows tokens, attention, feed-forward, the residual stream and the logits of every
    layer, and it writes on, token by token. The weights are in it in 8-bit integers, up to 36 million of them.

    Examples:
        anyformer explain runs/llama-nano-1
        anyformer explain runs/bert-1 -o bert.html
    """

    output: Annotated[Path, "-o"] = Path("model.html")
    """The page, a new file."""


def run(argv: list[str]) -> int:
    """Write the page."""
    options = parse(ExplainOptions, argv, "explain")
    atomic.check_new(options.output)

    from anyformer.learn.explain import check_stored, explain

    check_stored(options.model)  # before its weights are read
    model, tokenizer = options.load_model()
    page = explain(model, tokenizer, name=Path(options.model).name, directory=options.model)
    atomic.write(options.output, page)
    write(f"{options.output}: {len(page) / 1e6:.1f} MB, open it in a browser")
    return 0
