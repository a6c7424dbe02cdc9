"""Runs the commands of a page, and writes below each what it printed: ``python docs/make_outputs.py getting-started``.

A block of ``sh`` or ``python`` with a block of ``text`` right after it is a run and its output. All of a page run in
one folder, in their order. Lines of progress are thinned out, long ones wrapped as a terminal's; speeds are left out.
"""

import argparse
import io
import re
import tempfile
from collections.abc import Callable, Sequence
from contextlib import chdir, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

from make_recording import run, shortened, wrapped

DOCS = Path(__file__).parent
_RUN = re.compile(
    r"^```(?P<language>sh|python)\n(?P<code>[^`]*?)^```\n(?P<between>\n```text\n)?(?P<output>(?<=text\n).*?^```\n)?",
    re.DOTALL | re.MULTILINE,
)


_SPEED = re.compile(r"(?:, |  )[\d,]+ (?:tokens/s|s)\b|(?:  |, about )\d+:\d\d left")
"""What is different on each machine, and at each time: it is left out."""


class Run(NamedTuple):
    """A block of code, and what stands below it as its output; None where nothing does."""

    language: str
    code: str
    output: str | None


def runs(page: str) -> list[Run]:
    """The blocks of code of a page."""
    return [_run(found) for found in _RUN.finditer(page)]


def _run(found: re.Match[str]) -> Run:
    output = found["output"]
    return Run(found["language"], found["code"], None if output is None else output.removesuffix("```\n"))


def filled(page: str, printed: Callable[[Run], str]) -> str:
    """The page with the outputs that `printed` gives to its runs."""

    def written(found: re.Match[str]) -> str:
        output = printed(_run(found))
        if found["output"] is None:
            return found[0]
        return f"```{found['language']}\n{found['code']}```\n\n```text\n{output}```\n"

    return _RUN.sub(written, page)


def agrees(shown: str, printed: str) -> bool:
    """Whether all that is shown was printed, in this order, whatever its numbers are.

    A line of dots stands for any number of lines, and how lines are wrapped doesn't count.
    """
    parts = (re.escape(_masked(part)) for part in re.split(r"^ *\.\.\.$", shown, flags=re.MULTILINE))
    return re.search(r"(?:^|\s|$).*".join(parts), _masked(printed), re.DOTALL) is not None


def _masked(text: str) -> str:
    return " ".join(re.sub(r"[-+]?\d+(?:,\d+)*(?:\.\d+)?(?:e[-+]?\d+)?", "0", _SPEED.sub("", text)).split())


def commands(code: str) -> list[str]:
    """The command lines of a block of sh."""
    return [line for line in code.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]


class _Runner:
    """Runs the blocks of a page, Python in one namespace."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.namespace = folder, dict[str, Any]()

    def __call__(self, block: Run) -> str:
        if block.language == "python":
            printed = io.StringIO()
            with chdir(self.folder), redirect_stdout(printed):
                exec(block.code, self.namespace)
            return printed.getvalue()
        lines: list[str] = []
        for command in commands(block.code):
            if command.startswith("anyformer "):
                printed = run(command, self.folder)
                is_training = any(text.startswith("training ") for _, text in printed)
                lines += _wrapped(shortened(printed) if is_training else printed)
        return "".join(f"{line.rstrip()}\n" for line in lines)


def _wrapped(printed: Sequence[tuple[float, str]]) -> list[str]:
    return [part for _, text in printed for part in wrapped(_SPEED.sub("", text), 90) or [""]]


def main() -> None:
    """Run the page, and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page")
    parser.add_argument("--folder", type=Path, help="where to run it: with the models that the page names, as folders")
    parser.add_argument("--only", nargs="+", help="commands to run, such as train (default: all, and Python)")
    arguments = parser.parse_args()
    page = DOCS / f"{arguments.page}.md"
    with tempfile.TemporaryDirectory() as empty:
        runner = _Runner(arguments.folder or Path(empty))

        def printed(block: Run) -> str:
            is_asked = arguments.only is None or block.code.split()[1] in arguments.only
            return runner(block) if is_asked else block.output or ""

        page.write_text(filled(page.read_text(encoding="utf-8"), printed), encoding="utf-8")


if __name__ == "__main__":
    main()
