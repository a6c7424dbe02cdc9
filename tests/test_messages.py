"""Messages, pages and the documentation name commands, flags and functions that exist."""

from __future__ import annotations

import ast
import io
import re
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

import anyformer as af
from anyformer.cli.main import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@cache
def _help_of(command: str) -> str:
    shown = io.StringIO()
    with redirect_stdout(shown), suppress(SystemExit):
        import_module(f"anyformer.cli.{command}").run(["--help"])
    return shown.getvalue()


@cache
def _texts_of_the_package() -> list[tuple[Path, str]]:
    """Everything that the package may say: strings, docstrings, pages and scripts."""
    return list(_read_texts())


def _read_texts() -> Iterator[tuple[Path, str]]:
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                # What is filled in is no word of ours.
                yield path, "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield path, node.value
    for path in sorted(path for kind in ("html", "js", "j2", "md") for path in (ROOT / "src").rglob(f"*.{kind}")):
        yield path, path.read_text(encoding="utf-8")


_COMMAND = re.compile(r"(?:`|^ *\$? ?)anyformer ([a-z][\w-]*)([^`\n]*)", re.MULTILINE)


def _unknown_commands(text: str) -> list[str]:
    """The commands, and the flags of commands, that a text names and that aren't there."""
    found: list[str] = []
    for command, rest in _COMMAND.findall(text):
        if command not in COMMANDS:
            found.append(command)
            continue
        flags = re.findall(r"(?<![\w-])--[a-z][\w-]*(?![\w.-])", rest)
        found += (f"{command} {flag}" for flag in flags if flag not in re.findall(r"--[a-z][\w-]*", _help_of(command)))
    return found


def test_messages_name_commands_that_exist() -> None:
    code = re.compile(r"^```.*?^```$|`[^`]+`", re.DOTALL | re.MULTILINE)
    texts = [
        *_texts_of_the_package(),
        # Pages on adding name what they add.
        *(
            (page, "".join(code.findall(page.read_text(encoding="utf-8"))))
            for page in PAGES
            if page.parent.name != "adding"
        ),
    ]
    wrong = {f"{path.relative_to(ROOT)}: {command}" for path, text in texts for command in _unknown_commands(text)}
    assert not wrong
    assert sum(len(_COMMAND.findall(text)) for _, text in texts) > 200


@pytest.mark.parametrize(
    ("text", "unknown"),
    [
        ("use `anyformer tag MODEL`", ["tag"]),
        ("`anyformer train --stepps 3 --steps 3`", ["train --stepps"]),
        ("    anyformer generate RUN --seed 1", []),
        ("anyformer trains models", ["trains"]),
    ],
)
def test_commands_that_are_not_there_are_noticed(text: str, unknown: list[str]) -> None:
    assert _unknown_commands(text) == unknown


def test_messages_name_functions_that_exist() -> None:
    """`anyformer.NAME` in a message, and a bare `name` that it says to use."""
    for path, text in _texts_of_the_package():
        for name in re.findall(r"\buse `(?:anyformer\.)?([a-z_]+)`", text):
            assert hasattr(af, name), f"{path.relative_to(ROOT)}: there is no anyformer.{name}"
