"""Tasks of fine-tuning, a file each: what a model learns from examples.

`task.py` says what a task is. A task is added by its file and its name below, see docs/adding/task.md; `finetune`,
`evaluate`, `plan` and their pages ask its record, and know no task by name. `loading` makes examples of rows, and
`evaluate` measures a model on them.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, cast

from typing_extensions import override

if TYPE_CHECKING:
    from anyformer.tasks.task import Task

_FILES = """
text chat completion preference classify tag embed seq2seq
"""


class _Tasks(Mapping[str, "Task"]):
    """The tasks by name. A file is imported when its task is asked for: `--help` needs their names alone."""

    @override
    def __getitem__(self, name: str) -> Task:
        if name not in _FILES.split():
            raise KeyError(name)
        return cast("Task", import_module(f"{__name__}.{name}").TASK)

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(_FILES.split())

    @override
    def __len__(self) -> int:
        return len(_FILES.split())


TASKS: Mapping[str, Task] = _Tasks()
CHOICES = f"{{{','.join(TASKS)}}}"
"""The names, as a help shows them."""


def example_commands() -> list[str]:
    """Commands that fine-tune a model, one of each task's record: its file is read, as `--help` doesn't load torch."""
    commands = list[str]()
    for file in (folder / f"{name}.py" for name in TASKS for folder in map(Path, __path__)):
        nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if file.exists() else ()
        arguments = (node.value for node in nodes if isinstance(node, ast.keyword) and node.arg == "finetune")
        commands += [f"anyformer finetune {value.value}" for value in arguments if isinstance(value, ast.Constant)]
    return commands
