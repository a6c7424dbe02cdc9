"""What reaches the user: standard output and standard error.

Text of a model, a file or a template may contain escape sequences, which a terminal obeys: they rename its window,
move the cursor over what was shown before, or write to the clipboard. So all output to a terminal is filtered here, and
messages always are. Output to a file or a pipe is unchanged.
"""

import os
import re
import sys
from collections.abc import Iterable, Mapping
from typing import TextIO

from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment
from typing_extensions import override

# All control characters but tab and line end, and those that change the direction of what was shown before.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_LONGEST_MESSAGE = 2000


def printable(text: str) -> str:
    """The text without what a terminal would obey instead of showing it."""
    return _CONTROL.sub("", text)


def shorten(text: str, length: int = _LONGEST_MESSAGE) -> str:
    """The text, the middle of one that is longer being left out."""
    if len(text) <= length:
        return text
    begin = 2 * length // 3
    return f"{text[:begin]} ... ({len(text) - length:,} characters) ... {text[len(text) - (length - begin) :]}"


def write(*values: object, sep: str = " ", end: str = "\n", flush: bool = False) -> None:
    """Print to standard output, as `print`."""
    text = sep.join(map(str, values)) + end
    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    if flush:
        sys.stdout.flush()


def message(text: object) -> None:
    """Print a line to standard error, in a readable length."""
    sys.stderr.write(f"{shorten(printable(str(text)))}\n")


class Console(RichConsole):
    """A rich console whose text is printable where it goes to a terminal; markup is off, so brackets are text."""

    def __init__(
        self,
        *,
        stderr: bool = False,
        file: TextIO | None = None,
        width: int | None = None,
        soft_wrap: bool = False,
        quiet: bool = False,
    ) -> None:
        super().__init__(
            stderr=stderr,
            file=file,
            width=width,
            soft_wrap=soft_wrap,
            quiet=quiet,
            markup=False,
            highlight=False,
            emoji=False,
        )

    @override
    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control is None and self.is_terminal:
                segment = segment._replace(text=printable(segment.text))
            yield segment


def prepare_streams() -> None:
    """Make standard streams fit for any text: what an encoding lacks is written as an escape such as \\u2014.

    One that is closed counts as the null device: the next file that is opened would get its number, and what is
    printed.
    """
    for number, (name, mode) in enumerate(_STREAMS.items()):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)
            if descriptor != number:
                os.dup2(descriptor, number)
                os.close(descriptor)
            stream = os.fdopen(number, mode, encoding="utf-8", closefd=False)
            setattr(sys, name, stream)
    streams: tuple[TextIO, TextIO] = (sys.stdout, sys.stderr)
    for stream in streams:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]


_STREAMS: Mapping[str, str] = {"stdin": "r", "stdout": "w", "stderr": "w"}
