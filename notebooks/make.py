"""Makes the notebooks from their sources in jupytext's percent format: ``python notebooks/make.py``.

Edit ``1_gpt_from_scratch.py``, not ``1_gpt_from_scratch.ipynb``. The same source gives the same bytes, without outputs.
"""

from pathlib import Path

import jupytext
import nbformat

FOLDER = Path(__file__).parent
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
    """The notebook of a source. Cells are numbered, and keep no metadata but their tags."""
    made = jupytext.read(source, fmt="py:percent")
    made.metadata = nbformat.from_dict(METADATA)
    made.nbformat, made.nbformat_minor = 4, 5
    for number, cell in enumerate(made.cells, 1):
        cell.id = f"cell-{number}"
        cell.metadata = nbformat.from_dict({key: cell.metadata[key] for key in ("tags",) if key in cell.metadata})
    nbformat.validate(made)
    return made


def text(source: Path) -> str:
    """What the file of a notebook holds."""
    return nbformat.writes(notebook(source)) + "\n"


if __name__ == "__main__":
    for source in sources():
        source.with_suffix(".ipynb").write_text(text(source), encoding="utf-8")
