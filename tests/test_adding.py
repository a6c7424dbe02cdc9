"""The pages on adding a family, a kernel and a command: followed literally, in a copy of the repository."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import pytest

import anyformer as af

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs" / "adding").glob("*.md"))
_FENCE = re.compile(
    r'^```(?P<language>\w+) title="(?P<title>[^"]+)"\n(?P<code>.*?)^```\n(?:\n```text\n(?P<output>.*?)^```\n)?',
    re.DOTALL | re.MULTILINE,
)


class Step(NamedTuple):
    """A new file, a change of a file, or commands with what they print."""

    language: str
    title: str
    code: str
    output: str | None


def _steps(page: Path) -> list[Step]:
    return [Step(**found.groupdict()) for found in _FENCE.finditer(page.read_text(encoding="utf-8"))]


def _patched(text: str, diff: str) -> str:
    """The text with a diff applied, whose old lines occur once; "..." is the rest of a line as it is in the text."""
    lines, new, rest = diff.splitlines(), "", ""
    ends = {line: "(.*)\n" if line.endswith("...") else "()\n" for line in lines}
    pattern = "".join(re.escape(line[1:].removesuffix("...")) + ends[line] for line in lines if line[0] in " -")
    matches = list(re.finditer(f"^{pattern}", text, re.MULTILINE))
    assert len(matches) == 1, f"this is there {len(matches)} times:\n{diff}"
    (match,) = matches
    rests = iter(match.groups())
    for line in lines:
        rest = next(rests) if line[0] in " -" else rest
        if line[0] in " +":
            new += f"{line[1:].removesuffix('...')}{rest if line.endswith('...') else ''}\n"
    return text[: match.start()] + new + text[match.end() :]


def _apply(step: Step, place: Path, source: Path = ROOT) -> None:
    file = place / step.title
    file.parent.mkdir(parents=True, exist_ok=True)
    if step.language == "diff":
        text = (file if file.exists() else source / step.title).read_text(encoding="utf-8")
        file.write_text(_patched(text, step.code), encoding="utf-8")
    else:
        assert not any((folder / step.title).exists() for folder in (place, source)), f"{step.title} exists"
        file.write_text(step.code, encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_change_of_a_page_applies(page: Path, tmp_path: Path) -> None:
    steps = _steps(page)
    for step in steps:
        if step.title != "run":
            _apply(step, tmp_path)
            if step.title.endswith(".py"):
                compile((tmp_path / step.title).read_text(encoding="utf-8"), step.title, "exec")
    assert {step.language for step in steps} >= {"python", "diff", "sh"}


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_that_is_followed_works(page: Path, tmp_path: Path) -> None:
    for name in ("src", "tests", "docs", "benchmarks", "notebooks"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ROOT.glob("*.*"):
        if file.is_file():
            shutil.copy(file, tmp_path)
    tokenizer = af.Tokenizer.train(["the cat sat on the mat. "] * 9, "bpe:300")
    config = af.preset("gpt2-nano", vocab_size=tokenizer.vocab_size, d_model=32, attention={"heads": 2})
    af.save(af.build(config), tmp_path / "model", tokenizer=tokenizer)
    for step in _steps(page):
        if step.title != "run":
            _apply(step, tmp_path, tmp_path)
            continue
        printed = "".join(_run(line, tmp_path) for line in step.code.splitlines())
        assert step.output is None or step.output.split() == printed.split()


def _run(line: str, place: Path) -> str:
    words = shlex.split(line)
    set_here = list(takewhile(lambda word: "=" in word, words))
    program, *arguments = words[len(set_here) :]
    command = [sys.executable, *([] if program == "python" else ["-m", program]), *arguments]
    environment = os.environ | {"PYTHONPATH": str(place / "src")}
    environment |= {name: value for name, _, value in (word.partition("=") for word in set_here)}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    return done.stdout
