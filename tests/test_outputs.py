"""What pages show as the output of commands: it was printed by them, whatever its numbers are on another machine."""

from __future__ import annotations

import importlib.util
import io
import re
import shlex
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyformer.cli.main import main
from tests.finetuning.example_files import make as make_example_files

DOCS = Path(__file__).parents[1] / "docs"
QUICK = ("show", "diff")
"""Commands whose output is compared on every run of the tests."""


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_load("make_recording")  # which the other imports
outputs = _load("make_outputs")
SHOWN = [
    pytest.param(block, id=f"{page.stem}-{number}")
    for page in sorted(DOCS.rglob("*.md"))
    for number, block in enumerate(outputs.runs(page.read_text(encoding="utf-8")))
    if block.output is not None and block.language == "sh" and block.code.split()[1] in QUICK
]


def _printed(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(shlex.split(command)[1:]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


@pytest.mark.parametrize("block", SHOWN)
def test_quick_commands_print_what_is_shown(block: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (command,) = outputs.commands(block.code)
    assert " ".join(block.output.split()) == " ".join(_printed(command, capsys).split())


def test_there_are_outputs() -> None:
    """All of the first page, and some of the pages that one starts with."""
    blocks = _blocks("getting-started")
    commands = [block for block in blocks if block.language == "sh" and block.code.startswith("anyformer ")]
    assert {block.code.split()[1] for block in commands} >= {"train", "generate", "finetune", "classify", "compare"}
    assert all(block.output and block.output.strip() for block in commands)
    assert len(SHOWN) >= 2
    assert all(any(block.output for block in _blocks(page)) for page in STARTS)


STARTS = ("getting-started", "training", "finetuning")


def _blocks(page: str) -> list[Any]:
    return outputs.runs((DOCS / f"{page}.md").read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize("page", STARTS)
def test_commands_print_what_the_first_pages_show(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With fewer steps and tiny models, all lines with a label are those of the page, in their order."""
    monkeypatch.chdir(tmp_path)
    make_example_files(tmp_path)
    namespace: dict[str, Any] = {}
    for block in _blocks(page):
        if block.language == "python":
            with redirect_stdout(io.StringIO()) as shown:
                exec(block.code, namespace)
            assert block.output is None or outputs.agrees(_words(block.output), _words(shown.getvalue()))
            continue
        for command in outputs.commands(block.code):
            if command.startswith("anyformer "):
                short = re.sub(r"--(steps|epochs|tokens) \d+", _fewer, command)
                printed = _printed(short, capsys)
                assert block.output
                assert _labels(block.output) <= _labels(printed), command


def _fewer(found: re.Match[str]) -> str:
    return {"steps": "--steps 30", "epochs": "--steps 3", "tokens": "--tokens 12000"}[found[1]]


def _labels(text: str) -> set[str]:
    return set(re.findall(r"^([a-z][a-z ]{9,9} )(?=\S)", text, re.MULTILINE)) - {"training   "}


def _words(text: str) -> str:
    return re.sub(r"'[^']*'", "''", text)


_lines = st.lists(st.sampled_from(["loss 3.2", "a line", "model  x, 1,000 parameters", "-1.5e-3"]), min_size=1)


@given(_lines, st.data())
def test_output_agrees_with_itself_shortened_and_wrapped(lines: list[str], data: st.DataObject) -> None:
    printed = "\n".join(lines)
    begin = data.draw(st.integers(0, len(lines)))
    end = data.draw(st.integers(begin, len(lines)))
    shown = "\n".join([*lines[:begin], "...", *lines[end:]])
    other = re.sub(r"\d", "7", shown.replace(" ", "\n      "))
    assert outputs.agrees(shown, printed)
    assert outputs.agrees(other, printed)
    assert not outputs.agrees(shown + "\nanother", printed)


def test_a_comma_behind_a_number_is_no_part_of_it() -> None:
    assert outputs.agrees("perplexity=1,715, tokens=[324, 289]", "perplexity=739.1, tokens=[31, 2]")
    assert not outputs.agrees("perplexity=1715, tokens", "perplexity=1715 tokens")


def test_a_page_is_filled_with_what_its_commands_print() -> None:
    blocks = ("sh\nanyformer show x", "text\nold", "sh\npip install .", "python\nx = 1")
    page = "# A\n" + "".join(f"\n```{block}\n```\n" for block in blocks)
    ran: list[str] = []

    def printed(block: Any) -> str:
        ran.append(block.code)
        return "new\n"

    filled: Callable[..., str] = outputs.filled
    assert filled(page, printed) == page.replace("old", "new")
    assert ran == ["anyformer show x\n", "pip install .\n", "x = 1\n"]
    assert filled(page.replace("old\n", ""), printed) == page.replace("old", "new")
