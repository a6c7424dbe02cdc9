"""Makes the notebooks from their sources in jupytext's percent format: ``python notebooks/make.py``.

Edit ``1_gpt_from_scratch.py``, not ``1_gpt_from_scratch.ipynb``. A notebook is stored with its outputs: one whose code
has changed is run from top to bottom, which takes minutes, and one whose text has changed keeps the outputs that it has.
"""

import argparse
import base64
import hashlib
import io
import os
import re
import sys
import tempfile
from pathlib import Path

import jupytext
import nbformat

FOLDER = Path(__file__).parent
LARGEST = 400_000
"""Bytes of a notebook with its outputs, so that code hosts show it."""
_LONGEST_PAGE = 60_000
"""Characters of an output in HTML that is stored; of a larger one there is what it says in words."""
_COLORS = 48
"""Of a stored picture."""
METADATA = {
    "accelerator": "GPU",
    "colab": {"gpuType": "T4", "provenance": []},
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def sources() -> list[Path]:
    """The sources of all notebooks, in their order."""
    return sorted(FOLDER.glob("[0-9]_*.py"))


def notebook(source: Path) -> nbformat.NotebookNode:
    """The notebook of a source, without outputs. Cells are numbered, and keep no metadata but their tags."""
    made = jupytext.read(source, fmt="py:percent")
    made.metadata = nbformat.from_dict({**METADATA, "executed": digest(made)})
    made.nbformat, made.nbformat_minor = 4, 5
    for number, cell in enumerate(made.cells, 1):
        cell.id = f"cell-{number}"
        cell.metadata = nbformat.from_dict(
            {key: cell.metadata[key] for key in ("tags",) if key in cell.metadata}
        )
    nbformat.validate(made)
    return made


def executed(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """The cells that are run: all of code but the one that installs."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [cell for cell in cells if "install" not in cell.metadata.get("tags", [])]


def digest(notebook: nbformat.NotebookNode) -> str:
    """A hash of the code whose outputs are stored, which tells whether they are still those of the source."""
    return hashlib.sha256(
        "\0".join(cell.source for cell in executed(notebook)).encode()
    ).hexdigest()[:16]


def execute(notebook: nbformat.NotebookNode, folder: Path, kernel: str = "python3") -> None:
    """Run the code in a folder, and keep what it shows. An error in any cell is raised."""
    from nbclient import NotebookClient

    run = nbformat.from_dict({**notebook, "cells": []})
    run.cells = executed(notebook)
    where = {"metadata": {"path": str(folder)}}
    NotebookClient(run, timeout=None, kernel_name=kernel, resources=where).execute()
    for number, cell in enumerate(run.cells, 1):
        cell.execution_count = number
        cell.metadata.pop("execution", None)
        cell.outputs = [kept for output in cell.outputs if (kept := _stored(output, number))]


def _stored(output: nbformat.NotebookNode, number: int) -> nbformat.NotebookNode | None:
    """The output as it is stored: small, without what differs from run to run only, None for warnings and logs."""
    if output.output_type == "stream":
        # What a line of progress was before it was rewritten, and colors, are no text.
        output.text = re.sub(r"^.*\r(?!\n)|\x1b\[[\d;]*m", "", output.text, flags=re.MULTILINE)
        return None if output.name == "stderr" else output
    if "execution_count" in output:
        output.execution_count = number
    output.metadata = nbformat.from_dict({})
    data = output.data
    if len(data.get("text/html", "")) > _LONGEST_PAGE:
        del data["text/html"]
    if "image/png" in data:
        data["image/png"] = _smaller(data["image/png"])
    return output


def _smaller(png: str) -> str:
    from PIL import Image

    picture, written = Image.open(io.BytesIO(base64.b64decode(png))), io.BytesIO()
    picture.convert("RGB").quantize(_COLORS, dither=Image.Dither.NONE).save(
        written, "PNG", optimize=True
    )
    return base64.b64encode(written.getvalue()).decode()


def keep_outputs(notebook: nbformat.NotebookNode, stored: Path) -> bool:
    """Give the notebook the outputs of the stored one; False if those are of other code."""
    if not stored.exists():
        return False
    before = nbformat.read(stored, as_version=4)
    if before.metadata.get("executed") != digest(notebook) or digest(before) != digest(
        notebook
    ):
        return False
    for cell, other in zip(executed(notebook), executed(before), strict=True):
        cell.outputs, cell.execution_count = other.outputs, other.execution_count
    return True


def text(notebook: nbformat.NotebookNode) -> str:
    """What the file of a notebook holds."""
    return nbformat.writes(notebook) + "\n"


def main() -> None:
    """Make those that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "numbers", nargs="*", help="of the notebooks, such as 1 3 (default: all)"
    )
    parser.add_argument(
        "--run", action="store_true", help="run even those whose code is as it was"
    )
    arguments = parser.parse_args()
    # The programs that cells call are those beside this Python, and the package is this checkout's.
    os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    os.environ |= {"PYTHONPATH": str(FOLDER.parent / "src"), "JUPYTER_PLATFORM_DIRS": "1"}
    for source in sources():
        if arguments.numbers and source.name[0] not in arguments.numbers:
            continue
        made, stored = notebook(source), source.with_suffix(".ipynb")
        if arguments.run or not keep_outputs(made, stored):
            print(f"running {source.stem}", flush=True)
            with tempfile.TemporaryDirectory() as folder:
                execute(made, Path(folder))
        written = text(made)
        if len(written) > LARGEST:
            sys.exit(
                f"{stored.name} would have {len(written):,} bytes, more than {LARGEST:,}: draw less"
            )
        stored.write_text(written, encoding="utf-8")


if __name__ == "__main__":
    main()
