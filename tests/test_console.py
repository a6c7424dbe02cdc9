"""Tables and progress bars: user text is text, and a console that can't be written to ends nothing."""

from __future__ import annotations

import ast
import io
import sys

import pytest
from rich.progress import Progress, TextColumn
from rich.table import Table

from anyformer import terminal
from anyformer.console import Console
from tests.test_structure import SOURCE
from tests.test_terminal import EVIL, Screen, harmless


def test_cells_and_headers_are_text(monkeypatch: pytest.MonkeyPatch) -> None:
    for file in (Screen(), io.StringIO()):
        console = Console(file=file, width=200)
        table = Table(f"head [/b]{EVIL}", title="title [/b]")
        table.add_row(f"cell [red]{EVIL}")
        console.print(table)
        console.print(f"line [/b] {EVIL} :cat:", style="bold")
        shown = file.getvalue()
        assert all(text in shown for text in ("head [/b]", "title [/b]", "cell [red]", "line [/b]", ":cat:"))
        assert harmless(shown) == file.isatty()


def test_notes_are_filtered_even_in_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    Console(stderr=True).print(f"note {EVIL}", soft_wrap=True)
    assert harmless(capsys.readouterr().err)


def test_a_spinner_shows_text() -> None:
    status = Console(file=io.StringIO()).status("reading [/b]")
    assert str(status.renderable.text) == "reading [/b]"


def test_progress_bars_take_no_markup() -> None:
    file = Screen()
    with Progress(TextColumn("{task.description}", markup=False), console=Console(file=file, width=80)) as bar:
        bar.add_task("see [/b]")
    assert "see [/b]" in file.getvalue()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "TextColumn":
                assert "markup" in [keyword.arg for keyword in node.keywords], path


def test_forced_colors_make_no_terminal_of_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Notebooks set FORCE_COLOR for the programs that they start."""
    monkeypatch.delenv("TTY_COMPATIBLE", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert not Console(file=io.StringIO()).is_terminal
    assert Console(file=Screen()).is_terminal


class Gone(Screen):
    """A terminal whose window was closed."""

    def write(self, text: str) -> int:
        raise OSError(5, "Input/output error")


def test_a_terminal_that_is_gone_ends_nothing_and_is_told_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Gone())
    console = Console()
    with Progress(console=console) as bar:
        task = bar.add_task("x", total=2)
        bar.advance(task)
        console.print("line")
    with pytest.raises(terminal.OutputError, match="Input/output error"):
        terminal.finish()
    terminal.finish()
    with pytest.raises(terminal.OutputError):
        terminal.write("text")
    monkeypatch.setattr(sys, "stderr", Gone())
    Console(stderr=True).print("note")
    terminal.message("message")
    terminal.finish()
