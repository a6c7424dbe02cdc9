"""Examples of files, and a sentence on what they are, such as these::

    chat, because of the column 'messages': 1,204 examples in chats.jsonl.
    classify, because of the columns 'sentence' and 'label': 67,349 examples in train.tsv.gz; 2 labels: 0, 1.
    embed, because of the columns 'sentence1', 'sentence2' and 'score': 5,749 examples in train.csv; scores from 0 to 5,
    divided by 5.
    text, as asked, with the column 'content': 3 examples in a.parquet.

What is wrong is a sentence, too::

    chats.jsonl, line 17, has an unknown role in message 2 of its column 'messages', 'asistant': did you mean
    'assistant'?
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from anyformer import limits
from anyformer.config import ModelConfig
from anyformer.data.disk_cache import Cache
from anyformer.data.examples import Example
from anyformer.data.examples.columns import Columns
from anyformer.data.examples.labels import LabelKind, check_learnable
from anyformer.data.examples.parts import Parts
from anyformer.data.examples.tables import Table
from anyformer.data.input_files import naming_all, suffix_of
from anyformer.data.materialize import HUB, RowFile, read_rows, row_files
from anyformer.data.rows import SHOWN, holds_kept_rows
from anyformer.errors import UserError
from anyformer.tasks import TASKS
from anyformer.tasks.detection import DetectedTask, detect_task


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleSet:
    """The examples of some files.

    Attributes:
        reason: Why, for people: "because of the column 'messages'".
        examples: All of them, in the order of the files.
        labels: The names of labels, tags or classes, in the order of their numbers; None where there are none.
        kind: The kind of answer on a text that is classified.
        notes: More for people: what the labels are, and what was left out.
        skipped: The fault of each row that was skipped.
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
        return len(self.examples)

    def describe(self) -> str:
        """A sentence on the examples."""
        count = f"{len(self):,} example{'s' if len(self) != 1 else ''}"
        names = f"{len(self.files)} files"
        if len(self.files) <= 2:
            names = " and ".join(map(_name, self.files))
        return "; ".join([f"{self.task}, {self.reason}: {count} in {names}", *self.notes]) + "."


def _name(path: Path) -> str:
    path = SHOWN if holds_kept_rows(path) else path
    return str(path) if str(path).startswith(HUB) else path.name


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
    encoding: str | None = None,
) -> ExampleSet:
    """Read the examples of files, or of rows in memory, and find out what they are for.

    Args:
        paths: As for `read_rows`; or the rows.
        task: Their task; None: the one that follows from the columns of the first row.
        columns: The columns whose names are not the usual ones.
        header: The names of the columns of .csv and .tsv files that have no header.
        labels: The names of labels or tags there are, such as those of the training data or of a model; None: all
            that occur.
        kind: The kind of answer on a text that is classified; None: what follows from the labels.
        training: Whether they are to be learned from, so that labels which can't teach anything are refused; None: if
            no labels are given.
        skip_faulty: Leave faulty rows out instead of raising. Files that can't be read are still refused.
        max_record_bytes: The size that a row may have.
        cache, encoding: As for `read_rows`.

    Raises:
        UserError: A file can't be read, a row is faulty (with its place), or nothing can be learned from them.
    """
    files = [paths] if isinstance(paths, Table) else row_files(paths, cache, encoding)
    skipped, classes = list[str](), dict[str, dict[str, None]]()
    first: DetectedTask | None = None
    gather: Callable[[Sequence[Parts]], tuple[Sequence[Example], str | None]] | None = None
    examples, together = list[Example](), list[Parts]()
    with naming_all(file.path for file in files if isinstance(file, RowFile)):
        for file in files:
            rows = iter(file.rows(header, max_record_bytes))
            row = next(rows, None)
            if row is None:
                continue
            detected = detect_task(row.values, f"{row.location},", task, columns)
            first = first or detected
            if detected.task != first.task:
                raise UserError(
                    f"{row.location.path} is for {detected.task}, {detected.reason}, and the files before are for "
                    f"{first.task}, {first.reason}: use them one after the other."
                )
            for part, column in detected.columns.items():
                classes.setdefault(part, {}).update(dict.fromkeys(row.classes.get(column, ())))
            for each in chain((row,), rows):
                try:
                    parts = Parts(each, detected.columns, detected.optional)
                    if detected.schema.gather is not None:
                        gather = gather or detected.schema.gather
                        together.append(parts)
                    elif (example := detected.schema.build(parts)) is not None:
                        examples.append(example)
                except UserError as error:
                    if not skip_faulty:
                        raise
                    skipped.append(str(error))
    names = f"{files[0].shown} is" if len(files) == 1 else f"all {len(files)} files, {files[0].shown} the first, are"
    if first is None:
        is_table = len(files) == 1 and suffix_of(files[0].shown) in (".csv", ".tsv") and not header
        below = " It has no rows below its header." if is_table else ""
        raise UserError(f"There is no example to read: {names} empty.{below}")
    notes = [f"{len(skipped):,} faulty row{'s' if len(skipped) != 1 else ''} left out"] if skipped else list[str]()
    if gather is not None:
        gathered, note = gather(together)
        examples += gathered
        notes += [note] if note else []
    if not examples:
        reason = f"all {len(skipped):,} rows are faulty, {skipped[0]}" if skipped else f"{names} empty."
        raise UserError(f"There is no example to read: {reason}")
    paths_read = [path for file in files for path in (file.shown, file.target) if path is not None]
    loaded = ExampleSet(
        task=first.task, reason=first.reason, examples=examples, files=paths_read, notes=notes, skipped=skipped
    )
    record, named = TASKS[first.task], {part: tuple(names) for part, names in classes.items()}
    if record.resolve_labels is not None:
        examples, label_set = record.resolve_labels(examples, kind, labels, named)
        notes = [label_set.note, *notes]
        loaded = replace(loaded, examples=examples, labels=label_set.names or None, kind=label_set.kind, notes=notes)
    is_learned = training or (training is None and labels is None)
    if is_learned and record.classes is not None and (loaded.labels or loaded.kind):
        values = [value for example in loaded.examples for value in record.classes(example)]
        is_named = bool(labels or named.get("label")) or loaded.kind != "single"
        check_learnable(values, loaded.examples[0].location, named=is_named)
    return loaded


def find_task(
    paths: Sequence[str],
    *,
    columns: Columns | None = None,
    header: Sequence[str] = (),
    cache: Cache | None = None,
    encoding: str | None = None,
    model: Callable[[], ModelConfig] | None = None,
) -> str | None:
    """The task that the examples of files suit, by the columns of the first one; None where there is none.

    Raises UserError as `load_examples`, with a suggestion that suits the model which is looked up.
    """
    rows = read_rows(paths, cache, columns=header, encoding=encoding)
    row = next(rows, None)
    return None if row is None else detect_task(row.values, f"{row.location},", None, columns, model, rows).task
