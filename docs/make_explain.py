"""Write docs/explain/example.html: llama-nano, trained for two minutes on the standard library of this Python.

It is done as a user would do it::

    anyformer train llama-nano
    anyformer explain runs/llama-nano-1 -o docs/explain/example.html

Usage: python docs/make_explain.py [RUN]    with a run, that is shown instead
"""

import sys
import tempfile
from pathlib import Path

import anyformer as af
from anyformer.cli.main import main

PAGE = Path(__file__).parent / "explain" / "example.html"


def write(run: str) -> None:
    """Write the page of a run."""
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(af.explain(run, name="llama-nano"), encoding="utf-8")
    print(f"{PAGE}: {PAGE.stat().st_size / 1e6:.1f} MB")


if len(sys.argv) > 1:
    write(sys.argv[1])
else:
    with tempfile.TemporaryDirectory() as folder:
        main(["train", "llama-nano", "--runs", folder])
        write(str(next(Path(folder).iterdir())))
