"""Tables, colors and progress bars on the streams of `anyformer.terminal`."""

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Table
from rich.text import Text
from typing_extensions import override

from anyformer.terminal import discard, note_failure, printable

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn
    from rich.status import Status


class Console(RichConsole):
    """A rich console without markup, so that brackets are text, whose text is printable where a terminal shows it.

    If it can't be written to, what is printed is dropped: a run must not be lost because its terminal is gone.
    `anyformer.terminal.finish` says so for standard output.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, highlight=False, emoji=False, **options)

    @property
    @override
    def is_terminal(self) -> bool:
        # FORCE_COLOR, which notebooks set for the programs they start, makes a terminal of anything, to rich. Progress
        # bars would fill pages there.
        forced = bool(os.environ.get("FORCE_COLOR")) and os.environ.get("TTY_COMPATIBLE") != "1"
        return super().is_terminal and (not forced or self.file.isatty())

    @override
    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        shown = self.stderr or self.is_terminal or self.file.isatty()
        for segment in super().render(renderable, options):
            if shown and segment.control is None:
                segment = segment._replace(text=printable(segment.text))
            yield segment

    @override
    def status(self, status: RenderableType, **options: Any) -> "Status":
        # A spinner takes its text for markup whatever the console does.
        return super().status(Text(status) if isinstance(status, str) else status, **options)

    def say(self, text: str, style: str | None = None) -> None:
        """Print a line as it is, without breaking it."""
        self.print(text, style=style, soft_wrap=True)

    def print_whole(self, table: Table) -> None:
        """Print a table; where there is no terminal to fold it for, but a file or a program, as wide as it is."""
        if not self.is_terminal:
            self.width = max(self.width, self.width_of(table))
        self.print(table)

    def width_of(self, table: Table) -> int:
        """Columns that a table takes where nothing of it is folded."""
        return Measurement.get(self, self.options.update(max_width=10_000), table).maximum

    @override
    def on_broken_pipe(self) -> None:
        raise  # the error that rich calls this for; its own way ends the program

    @override
    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        try:
            super().__exit__(exc_type, exc_value, traceback)
        except OSError as error:
            self.quiet = True
            if self.stderr:
                discard(self.file)
            else:
                note_failure(error)


def table(*texts: str, numbers: Sequence[str] = (), gap: int = 2) -> Table:
    """A table without lines: columns of texts, then of numbers, with so many spaces between them."""
    made = Table(*texts, box=None, header_style="bold", pad_edge=False, padding=(0, gap, 0, 0))
    for heading in numbers:
        made.add_column(heading, justify="right", no_wrap=True)
    return made


def progress_bar(*last: "ProgressColumn") -> "Progress":
    """A bar on standard error for tasks with a description, hidden where that is no terminal.

    Args:
        last: Columns behind the bar, before the time that is left; none: the percentage.
    """
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=24))
    remaining = TimeRemainingColumn()
    shown = last or (TaskProgressColumn(),)
    return Progress(*columns, *shown, remaining, console=console, disable=not console.is_terminal)
