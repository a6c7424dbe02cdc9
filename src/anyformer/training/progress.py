"""What a run shows: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from anyformer.runs.metrics import Meter
from anyformer.runs.report.formatting import clock

_LINES = 10


class TrainingProgress:
    """Loss, tokens a second, and time left. A context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.fields[line]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=1.0, line="")
        self._shown = 0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show(self, step: int, progress: float, meter: Meter) -> None:
        """Show a step that the meter has taken in; the loss and the speed are those that were read last."""
        left = clock(meter.elapsed * (1 - progress) / progress if progress > 0 else 0.0)
        speed = f"loss {meter.loss:.3f}  {meter.tokens_per_second:,.0f} tokens/s  " if meter.loss else ""
        line = f"step {step:,}  {speed}{left} left"
        self._bar.update(self._task, completed=progress, line=line)
        if not self._console.is_terminal and int(progress * _LINES) > self._shown:
            self._shown = int(progress * _LINES)
            say(self._console, f"training   {progress:.0%}  {line}")


def say(console: Console, text: str, style: str | None = None) -> None:
    """Print a line as it is: no markup, no breaking."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
