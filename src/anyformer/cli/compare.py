"""`anyformer compare MODEL ...`: models of several families, trained and judged side by side."""

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from anyformer import terminal
from anyformer.cli.options import Positional, parse, without_vs
from anyformer.errors import UserError
from anyformer.schema import hints


@dataclass(frozen=True)
class CompareOptions:
    """Train models of several families on the same text within the same budget, and say which is better at what.

    A family's name (gpt2, llama, bert, t5, transformer ...) is a model of that family scaled down to a size that
    learns something in minutes; sizes are made equal. Presets with a size, with fields changed (llama:norm.kind=layer),
    config files and finished runs can be compared, too. What was done stays in a folder: the same command goes on with
    it after it was stopped, and several that run at the same time share the work.

    Examples:
        anyformer compare gpt2 llama bert t5 transformer --data notes.txt
        anyformer compare llama llama:norm.kind=layer --flops 1e13 --seeds 5
        anyformer compare llama-nano --vary norm.kind=layer,rms position.kind=rotary,learned
    """

    models: Positional[tuple[str, ...]]
    """A preset, a family, a config file or a run; with fields changed after a colon."""
    vary: Annotated[tuple[str, ...], "FIELD=A,B"] = ()
    """Compare all combinations of these values of a single model's fields, and say what each change is worth."""
    data: Annotated[tuple[str, ...], "PATH"] = ()
    """Files, folders and globs of text (default: the standard library of the running Python)."""
    field: str = "text"
    """The field that holds the text, in records such as lines of jsonl."""
    tokenizer: str | None = None
    """Kind and size of the tokenizer that is trained for all, bpe:N or unigram:N (default: bpe, N to suit the text)."""
    match: Annotated[str, "{parameters,flops,none}"] = "parameters"
    """Size that is made equal: parameters outside embeddings, or FLOPs of training a token."""
    tokens: float | None = None
    """Budget of each model and seed: tokens of text to train on (default: half a million)."""
    flops: float | None = None
    """Budget in floating-point operations of training, such as 1e13."""
    minutes: float | None = None
    """Budget in minutes of training on this machine."""
    seeds: Annotated[int, "N"] = 3
    """Runs of each, from different first weights: the differences between them are the noise."""
    tune: bool = False
    """Try three learning rates for each, within the budget."""
    context: Annotated[int, "N"] = 128
    """Tokens that a model reads at a time."""
    batch_size: Annotated[int, "N"] = 8
    """Texts in a batch."""
    tasks: bool = True
    """Do the tasks that every family can do; --no-tasks leaves them out."""
    classify: Annotated[tuple[str, ...], "PATH"] = ()
    """Texts with labels for the classifier among the tasks (default: which text a passage of the data is from)."""
    processes: Annotated[int, "N"] = 1
    """Processes that share the work."""
    scheduler: Annotated[str | None, "ADDRESS"] = None
    """Give the work to the workers of a dask scheduler, such as tcp://node0:8786, in the place of processes here."""
    device: str | None = None
    """cpu, cuda, mps ... (default: an accelerator if there is one)."""
    dtype: Annotated[str | None, "{float32,bfloat16,float16,int8}"] = None
    """The dtype of matrix products in training (default: the fastest here)."""
    out: Annotated[Path | None, "FOLDER"] = None
    """Where to keep it (default: a folder in comparisons/, the same for the same command)."""


def run(argv: list[str]) -> int:
    """Compare models; returns the exit status."""
    values = vars(parse(CompareOptions, without_vs(argv), "compare"))
    from anyformer.cluster import workers
    from anyformer.compare.compare import work
    from anyformer.compare.jobs import StoppedError
    from anyformer.compare.request import Request, budget_of
    from anyformer.compare.summary import show
    from anyformer.console import Console

    budget = budget_of({kind: values[kind] for kind in ("tokens", "flops", "minutes")})
    request = Request(budget=budget, **{name: values[name] for name in hints(Request) if name in values})
    console = Console()
    address = values["scheduler"]
    if address is not None and values["processes"] != 1:
        raise UserError("--scheduler gives the work to the workers of a cluster, and --processes shares it here: one.")
    try:
        with nullcontext() if address is None else workers(address) as executor, console.status("comparing") as status:
            comparison, out = work(
                request,
                values["out"],
                processes=values["processes"],
                executor=executor,
                say=console.say,
                working=status.update,
            )
    except StoppedError as stopped:
        terminal.message("anyformer: stopped; the same command goes on with it.")
        return stopped.status
    show(console, comparison)
    console.say(f"numbers    {out / 'compare.json'}")
    console.say(f"page       {out / 'compare.html'}")
    return 0
