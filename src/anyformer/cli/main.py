"""`anyformer COMMAND ...`: finds the command's file and turns what goes wrong into one sentence."""

import gc
import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module

from anyformer import __version__, terminal
from anyformer.errors import UserError, nearest

_GROUPS = {
    "Train": {
        "train": "train a model from scratch on your own text",
        "finetune": "go on training a model on your own examples",
        "compare": "models of several families, trained and judged side by side",
        "runs": "list and compare training runs",
    },
    "Use": {
        "generate": "continue a prompt, or rewrite a source",
        "chat": "talk with a model in the terminal",
        "fill": "fill in masked words",
        "embed": "turn texts into vectors",
        "classify": "label texts, or the words of texts",
        "serve": "an OpenAI-compatible server, for the clients that people have",
    },
    "Look inside": {
        "show": "what a model is made of and what it costs",
        "diff": "what separates two models",
        "plan": "what training would take: memory, time and money",
        "attention": "what each head attends to in your text, as a page",
        "diagram": "a drawing of a model, or of what separates two",
        "eject": "an architecture as one Python file, to be read and changed",
        "explain": "a page in which a model runs, and shows what it computes",
    },
    "Check and convert": {
        "evaluate": "how good a model is at a text or a task, and what quantizing it costs",
        "verify": "compare a model with the same in transformers",
        "convert": "write a GGUF file for llama.cpp, or read one into a directory",
        "env": "what computes here: versions, processor, backends; for a report of a problem",
    },
}
COMMANDS = {name: summary for group in _GROUPS.values() for name, summary in group.items()}
_ELSEWHERE = {
    "train": "pretrain",
    "finetune": "sft tune",
    "generate": "inference infer sample complete predict run",
    "embed": "encode vectorize",
    "classify": "label tag ner",
    "evaluate": "eval test perplexity ppl",
    "convert": "quantize merge export",
    "show": "info inspect summary describe",
    "diagram": "draw plot visualize",
    "compare": "benchmark bench",
    "env": "version doctor",
}
"""Commands, each with the names that other programs have for it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit status: 0; 1 if a comparison found a difference; 2 for what the user can mend; 128 and the signal's
        number where a signal ended it, so 130 after Ctrl-C.
    """
    argv = list(sys.argv[1:] if arguments is None else arguments)
    # OpenMP's threads wait for each other by spinning, and starve each other as soon as another program wants a core.
    # This many spins are enough on idle cores, and training beside one busy process ran 10 times faster than with its
    # default of 300,000 (docs/measurements/training.md). It is read when torch is imported, which is later.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    status = _status(partial(_run, argv))
    return _status(terminal.finish) or status


def _run(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        terminal.write(_help())
    elif argv[0] in ("-V", "--version"):
        terminal.write(f"anyformer {__version__}")
    elif argv[0] not in COMMANDS:
        is_pair = "vs" in " ".join(argv).split()
        ours = next((name for name, theirs in _ELSEWHERE.items() if argv[0] in theirs.split()), None)
        hint = f"that is {ours!r} here" if ours else nearest(argv[0], COMMANDS)
        if is_pair:
            hint = "`anyformer compare A B` trains two models, `anyformer diff A B` lists what separates them"
        raise UserError(f"there is no command {argv[0]!r} ({hint}).")
    else:
        return import_module(f"anyformer.cli.{argv[0]}").run(argv[1:])
    return 0


def _status(action: Callable[[], int | None]) -> int:
    """The exit status of what is done; says in one sentence why it failed."""
    try:
        return action() or 0
    except KeyboardInterrupt:
        return _signaled(signal.SIGINT)
    except terminal.Terminated as end:
        return _signaled(end.number)
    except SystemExit as end:  # after --help
        return end.code if isinstance(end.code, int) else 0
    except Exception as error:
        if number := terminal.last_signal():
            return _signaled(number)
        if isinstance(error, terminal.ReaderLeftError):
            return 0
        reason = error if isinstance(error, UserError | terminal.OutputError) else terminal.system_refusal(error)
        if reason is None:
            raise
        terminal.message(f"anyformer: {reason}")
        return 2


def _signaled(number: int) -> int:
    """The exit status after a signal, as shells have it; says which one came."""
    how = "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"
    terminal.message(f"anyformer: {how}.")
    return 128 + number


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = ["anyformer: every transformer from the same few blocks", "", "usage: anyformer COMMAND ...", ""]
    for title, commands in _GROUPS.items():
        lines += [f"{title}:", *(f"  {name:<{width}}  {summary}" for name, summary in commands.items()), ""]
    lines.append("`anyformer COMMAND --help` explains one, with examples.")
    lines.append("Start with `anyformer train`: it trains a small model on Python's own source in two minutes.")
    return "\n".join(lines)


def _main() -> int:
    terminal.prepare()
    return main()


def script() -> None:
    """The console script."""
    # For what the libraries that we use start: none of it imports from the current folder.
    os.environ["PYTHONSAFEPATH"] = "1"
    # Imports and a model make a million objects and no garbage; three searches of them all would take 0.1 s.
    gc.set_threshold(*gc.get_threshold()[:2], 100)
    status = _status(_main)
    # A signal that comes while Python shuts down would end it with another status, or a traceback.
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    # Before it ends Python would look for garbage among all objects of torch, a quarter of a second; but Triton would
    # list on standard error what is left of it.
    if "triton" in sys.modules:
        gc.unfreeze()
    else:
        gc.freeze()
    sys.exit(status)
