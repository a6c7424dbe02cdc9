"""Progress of a run: a bar on a terminal, a line now and then elsewhere."""

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from anyformer.console import Console
from anyformer.pages.formatting import clock
from anyformer.runs.metrics import Meter

_LINES = 10


class TrainingProgress(Progress):
    """Loss, tokens a second, and time left. A context manager."""

    def __init__(self, console: Console) -> None:
        columns = (
            TextColumn("training", markup=False),
            BarColumn(24),
            TaskProgressColumn(),
            TextColumn("{task.fields[line]}", markup=False),
        )
        super().__init__(*columns, console=console, disable=not console.is_terminal)
        self._console = console
        self._task = self.add_task("training", total=1.0, line="")
        self._lines = 0

    def show(self, step: int, progress: float, meter: Meter) -> None:
        """Show a step that the meter has taken in; the loss and the speed are those that were read last."""
        left = clock(meter.elapsed * (1 - progress) / progress if progress > 0 else 0.0)
        speed = f"loss {meter.loss:.3f}  {meter.tokens_per_second:,.0f} tokens/s  " if meter.loss else ""
        line = f"step {step:,}  {speed}{left} left"
        self.update(self._task, completed=progress, line=line)
        if not self.console.is_terminal and int(progress * _LINES) > self._lines:
            self._lines = int(progress * _LINES)
            say(self._console, f"training   {progress:.0%}  {line}")


def say(console: Console, text: str, style: str | None = None) -> None:
    """Print a line as it is, without breaking it."""
    console.print(text, style=style, soft_wrap=True)
