"""Files to examples, and a sentence on what was found, such as these::

    chat, because of the column 'messages': 1,204 examples in chats.jsonl.
    classify, because of the columns 'sentence' and 'label': 67,349 examples in train.tsv.gz; 2 labels: 0, 1.
    embed, because of the columns 'sentence1', 'sentence2' and 'score': 5,749 examples in train.csv; scores from 0 to 5,
    divided by 5.
    text, as asked, with the column 'content': 3 examples in a.parquet.

What is wrong is a sentence, too::

    chats.jsonl, line 17, has an unknown role in message 2 of its column 'messages', 'asistant': did you mean
    'assistant'?
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from anyformer import limits
from anyformer.data.disk_cache import Cache
from anyformer.data.examples import Example
from anyformer.data.examples.columns import Columns
from anyformer.data.examples.labels import LabelKind, check_learnable
from anyformer.data.examples.parts import Parts
from anyformer.data.examples.tables import Table
from anyformer.data.materialize import HUB, RowFile, row_files
from anyformer.data.rows import Row
from anyformer.errors import UserError
from anyformer.tasks import TASKS
from anyformer.tasks.detection import Reading, find_reading
from anyformer.tasks.task import Shape, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleSet:
    """The examples of some files.

    Attributes:
        task: What a model learns from them.
        reason: Why, for people: "because of the column 'messages'".
        examples: All of them, in the order of the files.
        labels: The names of labels, tags or classes, in the order of their numbers; None where there are none.
        kind: Of texts that are classified, what is said about one.
        files: Where they are from.
        notes: What else was found, for people: what the labels are, and what was left out.
        skipped: What was wrong with each row that was skipped.
    """

    task: str
    reason: str
    examples: Sequence[Example]
    labels: tuple[str, ...] | None = None
    kind: LabelKind | None = None
    files: Sequence[Path] = ()
    notes: Sequence[str] = ()
    skipped: Sequence[str] = ()

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.examples)

    def describe(self) -> str:
        """A sentence on what was found."""
        count = f"{len(self):,} example{'s' if len(self) != 1 else ''}"
        names = f"{len(self.files)} files"
        if len(self.files) <= 2:
            names = " and ".join(str(path) if str(path).startswith(HUB) else path.name for path in self.files)
        return "; ".join([f"{self.task}, {self.reason}: {count} in {names}", *self.notes]) + "."


def load_examples(
    paths: Sequence[str] | Table,
    *,
    task: str | None = None,
    columns: Columns | None = None,
    header: Sequence[str] = (),
    labels: Sequence[str] | None = None,
    kind: LabelKind | None = None,
    training: bool | None = None,
    skip_faulty: bool = False,
    max_record_bytes: int = limits.RECORD_BYTES,
    cache: Cache | None = None,
    stdin: BinaryIO | None = None,
    progress: Callable[[str], None] | None = None,
) -> ExampleSet:
    """Read the examples of files, or of rows in memory, and find out what they are for.

    Args:
        paths: As for `read_rows`; or the rows.
        task: What they are for; None: what follows from the columns of the first row.
        columns: Those whose names are not the usual ones.
        header: The names of the columns of .csv and .tsv files that have no header.
        labels: The names of labels or tags there are, such as those of the training data or of a model; None: all
            that occur.
        kind: Of texts that are classified, what is said about one; None: what follows from the labels.
        training: Whether they are to be learned from, so that labels which can't teach anything are refused; None: if
            no labels are given.
        skip_faulty: Leave faulty rows out instead of raising. Files that can't be read are still refused.
        max_record_bytes: The size that a row may have.
        cache, stdin, progress: As for `row_files`.

    Raises:
        UserError: A file can't be read, a row is faulty (with its place), or nothing can be learned from them.
    """
    files = [paths] if isinstance(paths, Table) else row_files(paths, cache, stdin=stdin, progress=progress)
    skipped, classes = list[str](), dict[str, dict[str, None]]()
    first: Reading | None = None
    examples, together = list[Example](), list[tuple[Shape, Parts]]()
    for file in files:
        rows = iter(file.rows(header, max_record_bytes))
        row = next(rows, None)
        if row is None:
            continue
        reading = find_reading(row.values, f"{row.location},", task, columns)
        first = first or reading
        _check_same(first, reading, row)
        for part, column in reading.columns.items():
            classes.setdefault(part, {}).update(dict.fromkeys(row.classes.get(column, ())))
        for each in _chained(row, rows):
            try:
                parts = Parts(each, reading.columns, reading.optional)
                if reading.shape.gather is not None:
                    together.append((reading.shape, parts))
                elif (example := reading.shape.build(parts)) is not None:
                    examples.append(example)
            except UserError as error:
                if not skip_faulty:
                    raise
                skipped.append(str(error))
    if first is None:
        raise UserError(f"There is no example to read: {_which(files)} empty.")
    notes = [f"{len(skipped):,} faulty row{'s' if len(skipped) != 1 else ''} left out"] if skipped else list[str]()
    if together and (gather := together[0][0].gather) is not None:
        found, note = gather([parts for _, parts in together])
        examples += found
        notes += [note] if note else []
    if not examples:
        reason = f"all {len(skipped):,} rows are faulty, {skipped[0]}" if skipped else f"{_which(files)} empty."
        raise UserError(f"There is no example to read: {reason}")
    made = ExampleSet(
        task=first.task,
        reason=first.reason,
        examples=examples,
        files=[path for file in files for path in (file.shown, file.target) if path is not None],
        notes=notes,
        skipped=skipped,
    )
    named = {part: tuple(names) for part, names in classes.items()}
    made = _settled(TASKS[first.task], made, kind, labels, named)
    if training or (training is None and labels is None):
        _check_learnable(TASKS[first.task], made, bool(labels or named.get("label")))
    return made


def find_task(
    paths: Sequence[str], *, columns: Columns | None = None, header: Sequence[str] = (), cache: Cache | None = None
) -> str | None:
    """The task that the examples of files suit, by the columns of the first one; None where there is none.

    Raises:
        UserError: as `load_examples`.
    """
    for file in row_files(paths, cache):
        row = next(iter(file.rows(header, limits.RECORD_BYTES)), None)
        if row is not None:
            return find_reading(row.values, f"{row.location},", None, columns).task
    return None


def _settled(
    task: Task,
    found: ExampleSet,
    kind: LabelKind | None,
    known: Sequence[str] | None,
    classes: Mapping[str, Sequence[str]],
) -> ExampleSet:
    """The examples with the names and numbers that their labels mean."""
    if task.settle is None:
        return found
    examples, labels = task.settle(found.examples, kind, known, classes)
    notes = [labels.note, *found.notes]
    return replace(found, examples=examples, labels=labels.names or None, kind=labels.kind, notes=notes)


def _check_learnable(task: Task, found: ExampleSet, named: bool) -> None:
    if task.classes is None or not (found.labels or found.kind):
        return
    values = [value for example in found.examples for value in task.classes(example)]
    check_learnable(values, found.examples[0].location, named=named or found.kind != "single")


def _chained(row: Row, rows: Iterable[Row]) -> Iterator[Row]:
    yield row
    yield from rows


def _check_same(first: Reading, reading: Reading, row: Row) -> None:
    if reading.task != first.task:
        raise UserError(
            f"{row.location.path} is for {reading.task}, {reading.reason}, and the files before are for {first.task}, "
            f"{first.reason}: use them one after the other."
        )


def _which(files: Sequence[RowFile | Table]) -> str:
    return f"{files[0].shown} is" if len(files) == 1 else f"all {len(files)} files, {files[0].shown} the first, are"
