"""A task is one file: that of docs/adding/task.md is added as the page says, and every command knows it."""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import anyformer as af
from anyformer import tasks
from anyformer.cli.main import main
from tests.finetuning import toys

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "anyformer"
PAGE = ROOT / "docs" / "adding" / "task.md"


@pytest.fixture
def _task_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The file that the page writes, beside those that there are, and the names that it lists."""
    page = PAGE.read_text(encoding="utf-8")
    (file,) = re.findall(r"```python title=.*?\n(.*?)```", page, re.DOTALL)
    (listed,) = re.findall(r"^\+(.*)", page, re.MULTILINE)
    assert len(file.splitlines()) < 100
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "numbers.py").write_text(file, encoding="utf-8")
    assert set(listed.split()) - set(tasks.TASKS) == {"numbers"}
    monkeypatch.setattr(tasks, "_FILES", listed)
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(folder)])
    yield
    sys.modules.pop("anyformer.tasks.numbers", None)


@pytest.mark.usefixtures("_task_of_the_page")
def test_the_task_of_the_page_is_learned_measured_and_planned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model, tokenizer = toys.encoder()
    af.save(model, tmp_path / "base", tokenizer=tokenizer)
    numbers = {"cat": 2.0, "dog": 1.5, "mat": 1.0}
    words = [str(row["text"]).split() for row in toys.rows("classify", 60)]
    rows = [{"tokens": each, "numbers": [numbers.get(word, 0) for word in each]} for each in words]
    data = toys.write(tmp_path / "numbers.jsonl", rows)
    flags = ["base", f"--data={data}", "--device=cpu", "--dtype=float32", "--batch-size=8", "--learning-rate=1e-2"]

    assert main(["finetune", *flags, "--preview=page.html"]) == 0
    assert "numbers, because of the columns 'tokens' and 'numbers'" in capsys.readouterr().out
    assert "a number for each word" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert main(["finetune", *flags, "--epochs=4", "--name=numbers"]) == 0
    assert re.search(r"mse +0\.\d+ .*; 6 examples held out", capsys.readouterr().out)
    run = tmp_path / "runs" / "numbers"
    assert "It has learned a number for each word." in (run / "model" / "README.md").read_text(encoding="utf-8")
    assert "squared error" in (run / "report.html").read_text(encoding="utf-8")
    assert main(["evaluate", str(run), f"--data={data}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["task"] == "numbers"
    assert 0 < found["metrics"]["mse"]["value"] < 0.5
    assert main(["plan", "base", "--task=numbers", "--device=h100", "--context=16", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["task"] == "numbers"

    toys.write(data, [{**rows[0], "numbers": [1]}, *rows[1:]])
    assert main(["finetune", *flags]) == 2
    assert f"line 1, has {len(words[0])} words and 1 numbers: give one for each word" in capsys.readouterr().err


COMMANDS = {"cli/main.py"}
ELSEWHERE = {
    "chat": COMMANDS,
    "completion": {"data/examples/columns.py"},  # a role of columns
    "classify": COMMANDS,
    "tag": {"finetuning/preview.py"},  # a value of the page's template
    "embed": {*COMMANDS, "learn/diagram/facts.py"},  # an op of a diagram
    # An objective of training from scratch.
    "seq2seq": {
        *("compare/measure.py", "evaluation/harness.py", "plan/workload.py", "tokenizer/training.py"),
        *("training/config.py", "training/prepare.py"),
    },
}
"""Files that look something else up by a word that is the name of a task; `text` is a column and a key of JSON."""


def _words(tree: ast.AST) -> Iterator[ast.expr]:
    """What is compared with something, matched, or a key."""
    for node in ast.walk(tree):
        match node:
            case ast.Compare(left=left, comparators=others):
                yield from (left, *others)
            case ast.MatchValue(value=value):
                yield value
            case ast.Dict(keys=keys):
                yield from (key for key in keys if key is not None)
            case _:
                pass


def test_nothing_outside_asks_for_a_task_by_name() -> None:
    found: dict[str, set[str]] = {}
    quoted = set[str]()
    for path in SOURCE.rglob("*.py"):
        name, tree = path.relative_to(SOURCE).as_posix(), ast.parse(path.read_text(encoding="utf-8"))
        constants = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        quoted |= {name} if "preference" in constants else set()
        words = {part.value for word in _words(tree) for part in ast.walk(word) if isinstance(part, ast.Constant)}
        for task in words & (set(tasks.TASKS) - {"text"}) if not name.startswith("tasks/") else ():
            found.setdefault(task, set()).add(name)
    assert found == ELSEWHERE
    assert quoted == {"tasks/preference.py"}
