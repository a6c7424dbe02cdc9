"""Rows and texts that a program holds: dicts, data frames of pandas and polars, tables of pyarrow, and `datasets`.

None of these libraries is imported: an object is known by what it can do.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast

from anyformer import limits
from anyformer.data.disk_cache import Cache
from anyformer.data.examples.columns import PAIRS, TEXTS, WORDS, Columns, as_columns
from anyformer.data.examples.parts import Parts, as_text
from anyformer.data.formats import Location
from anyformer.data.formats.parquet import class_names
from anyformer.data.rows import KEPT, MISSING, SHOWN, Row, find, measure, typed_row, unknown_field
from anyformer.errors import UserError, quote
from anyformer.tokenizer.texts import texts_of

_MISSING = ("NAType", "NaTType")
"""Types that stand for no value in pandas."""
_SHOWN, _MOST_COLUMNS = 5, 20
"""Names that a message repeats of a mapping, and of columns."""


class DataFrame(Protocol):
    """A data frame of pandas or polars."""

    @property
    def columns(self) -> Any:
        """The names of its columns."""
        ...


Data = str | Path | Iterable[str | Path] | Iterable[Mapping[str, Any]] | DataFrame
"""Files, folders and globs; or rows: dicts as in a .jsonl file, a data frame of pandas or polars, a
`datasets.Dataset`."""
Texts = str | Iterable[str] | Iterable[Mapping[str, Any]] | Data
"""A text, texts, or rows with a column of texts."""
Sentences = str | Iterable[str | Sequence[str]] | Iterable[Mapping[str, Any]] | Data
"""A text, texts, lists of words, or rows with a column of either."""


@dataclass(frozen=True)
class Table:
    """Rows in memory, with plain values.

    Attributes:
        values: Of each row, by column.
        classes: Names of classes, by columns that hold their numbers.
        is_typed: Whether all rows have the same columns, so that None stands for a value that isn't there.
    """

    shown: ClassVar[Path] = SHOWN
    target: ClassVar[None] = None
    values: Sequence[dict[str, Any]]
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    is_typed: bool = False

    def rows(self, columns: Sequence[str] = (), limit: int = limits.RECORD_BYTES) -> Iterator[Row]:
        """The rows, as those of a file; the arguments are for files."""
        for number, values in enumerate(self.values, start=1):
            location = Location(self.shown, number, "row")
            measure(values, location)
            yield typed_row(location, values, self.classes) if self.is_typed else Row(location, values)

    @cached_property
    def file(self) -> tuple[str, bytes]:
        """The rows as a file, which is called after its content: .jsonl, or .parquet if there are classes.

        Raises UserError for a text with half a character, and for a row that is nested too deep.
        """
        for _ in self.rows():
            pass  # raises
        if self.classes:
            content, suffix = self._parquet(), "parquet"
        else:
            content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.values).encode("utf-8")
            suffix = "jsonl"
        return f"{hashlib.sha256(content).hexdigest()[:16]}.{suffix}", content

    def _parquet(self) -> bytes:
        import pyarrow  # `datasets`, where classes come from, needs it as well
        from pyarrow import parquet

        arrow, file = cast("tuple[Any, Any]", (pyarrow, parquet))
        features = {name: {"names": names, "_type": "ClassLabel"} for name, names in self.classes.items()}
        notes = {"huggingface": json.dumps({"info": {"features": features}})}
        written = BytesIO()
        file.write_table(arrow.Table.from_pylist(list(self.values)).replace_schema_metadata(notes), written)
        return written.getvalue()


def read_data(data: object) -> tuple[str, ...] | Table:
    """The paths of the data, or its rows; see `Data`.

    Raises UserError for something else, and for a value that no .jsonl file could hold.
    """
    if isinstance(data, str | Path):
        return (str(data),)
    if isinstance(data, Mapping):
        names = [repr(str(name)[:40]) for name in cast("Mapping[object, object]", data)] or ["'train'"]
        raise UserError(
            f"data is a {type(data).__name__} of {', '.join(names[:_SHOWN])}: give a list of rows, each a dict, or one "
            f"of its parts, such as data[{names[0]}], if they are data sets."
        )
    source: Any = data
    if hasattr(source, "features") and hasattr(source, "with_format"):  # datasets
        features: Any = source.features
        classes = {} if features is None else class_names(features.arrow_schema)
        return _table(source.with_format(None), classes, is_typed=True)
    if hasattr(source, "to_dicts"):  # polars
        return _table(source.to_dicts(), is_typed=True)
    if hasattr(source, "iloc"):  # pandas
        if not hasattr(source, "columns"):
            name = quote(getattr(source, "name", None) or "text")
            raise UserError(f"data is a {type(source).__name__}, one column: give rows, such as df[[{name}]].")
        # Of two columns of the same name, dicts would have the last one only.
        for name, count in Counter(map(str, source.columns)).items():
            if count > 1:
                raise UserError(f"data has {count} columns called {quote(name)}: give them different names.")
        return _table(source.to_dict("records"), is_typed=True)
    if hasattr(source, "to_pylist"):  # pyarrow
        return _table(source.to_pylist(), is_typed=True)
    if not isinstance(data, Iterable):
        raise UserError(
            f"data is of type {type(data).__name__}: give files, or rows as a list of dicts, a DataFrame of pandas or "
            "polars, or a Dataset."
        )
    items = list(cast("Iterable[object]", data))
    if all(isinstance(each, str | Path) for each in items):
        return tuple(map(str, items))
    return _table(items)


def kept_paths(data: object, cache: Callable[[], Cache]) -> tuple[str, ...]:
    """Files with the data: those that are named, or one of the cache that holds the rows.

    Raises as `read_data` and `Table.file`, and where the disk refuses.
    """
    found = read_data(data)
    if not isinstance(found, Table):
        return found
    name, content = found.file
    return (str(cache().file(KEPT, name, lambda path: path.write_bytes(content))),)


def _table(rows: Any, classes: Mapping[str, tuple[str, ...]] | None = None, *, is_typed: bool = False) -> Table:
    values = [_row(row, number) for number, row in enumerate(rows, start=1)]
    return Table(values, classes or {}, is_typed)


def _row(row: object, number: int) -> dict[str, Any]:
    if not isinstance(row, Mapping):
        raise UserError(
            f"data holds paths or rows, and a row is a dict such as one of a .jsonl file: item {number} is a "
            f"{type(row).__name__}."
        )
    made = dict[str, Any]()
    for name, value in cast("Mapping[object, object]", row).items():
        try:
            made[str(name)] = _plain(value)
        except (TypeError, ValueError, RecursionError) as error:
            raise UserError(
                f"data, row {number}, is not what a .jsonl file can hold: in its column {quote(str(name))} is {error}."
            ) from error
    return made


def _plain(value: Any, depth: int = 0) -> Any:
    """The value as JSON has it. Raises TypeError, ValueError or RecursionError for one that it has nothing for."""
    kind = type(value)
    if value is None or kind in (str, bool, int):
        return value
    if kind.__name__ in _MISSING:
        return None
    if isinstance(value, float | Decimal):
        number = float(value)
        return None if number != number else number
    if isinstance(value, str | int):
        return str(value) if isinstance(value, str) else int(value)
    if depth > limits.DEPTH:
        raise ValueError(f"a value that is nested more than {limits.DEPTH} levels deep")
    if isinstance(value, Mapping):
        items = cast("Mapping[object, object]", value).items()
        return {str(name): _plain(each, depth + 1) for name, each in items}
    if isinstance(value, list | tuple):
        return [_plain(each, depth + 1) for each in cast("Iterable[object]", value)]
    for name in ("tolist", "isoformat"):  # of arrays, tensors and their numbers; of dates
        if callable(convert := getattr(value, name, None)):
            return _plain(convert(), depth + 1)
    raise TypeError(f"a value of type {kind.__name__}")


def read_texts(data: Texts, columns: Columns | Mapping[str, str] | None = None) -> list[tuple[str, str | None]]:
    """Each text with its second one, or None where texts are no pairs.

    The columns of rows without the usual names are "text", and "second" for pairs. Other columns, such as a label, are
    left alone. Raises UserError where there are no such columns, or a row has no text there.
    """
    parts = _texts_or_parts(data, columns, ("text", "second"), TEXTS)
    return [
        (each.text("text"), each.text("second") if "second" in each.required else None)
        if isinstance(each, Parts)
        else (each, None)
        for each in parts
    ]


def read_sentences(data: Sentences, columns: Columns | Mapping[str, str] | None = None) -> list[str | Sequence[str]]:
    """Texts, or lists of words.

    The column of rows without the usual name is "tokens" for lists of words, "text" for texts. Other columns, such as
    tags, are left alone. Raises UserError where there is no such column, or a row has nothing there.
    """
    parts = _texts_or_parts(data, columns, ("tokens", "text"), (*WORDS, *TEXTS))
    return [_sentence(each, number) for number, each in enumerate(parts, start=1)]


def _sentence(parts: Parts | object, number: int) -> str | list[str]:
    if not isinstance(parts, Parts):
        return parts if isinstance(parts, str) else texts_of(parts, f"Text {number}: word")
    if "tokens" not in parts.required:
        return parts.text("text")
    place = f"the list of {parts.place('tokens')}"
    return [as_text(word, parts.location, place, empty=True) for word in parts.items("tokens")]


def _texts_or_parts(
    data: Any, columns: Columns | Mapping[str, str] | None, roles: tuple[str, str], usual: Sequence[str]
) -> Sequence[Any]:
    """The texts, or the parts with these roles of each row; a column of a frame (a series) is texts, too."""
    if isinstance(data, str):
        data = [data]
    is_frame = hasattr(data, "to_dicts") or hasattr(data, "columns") or hasattr(data, "column_names")
    if not is_frame and not isinstance(data, Mapping):
        if not isinstance(data, Iterable):
            kind = type(cast("object", data)).__name__
            raise UserError(f"Give a text, a list of texts, or rows with a column of texts, not a {kind}.")
        data = list(cast("Iterable[object]", data))
        if not data or not isinstance(data[0], Mapping):
            texts = texts_of(cast("object", data), lists="tokens" in roles)
            if columns:
                raise UserError("columns are those of rows, and these are texts: leave columns out.")
            return texts
    table = read_data(data)
    assert isinstance(table, Table)
    rows = list(table.rows())
    by_role = _columns_by_role(rows[0], columns, roles, usual) if rows else {}
    return [Parts(row, by_role) for row in rows]


def _columns_by_role(
    row: Row, columns: Columns | Mapping[str, str] | None, roles: tuple[str, str], usual: Sequence[str]
) -> dict[str, str]:
    own = as_columns(columns)
    named = {role: column for role, column in (own.by_role() if own else {}).items() if role in roles}
    for column in named.values():
        if find(row.values, column) is MISSING:
            raise UserError(f"{row.location}, {unknown_field(column, row.values, 'column')}")
    if roles[0] in named or (named and "second" not in named):
        return {role: named[role] for role in roles if role in named}
    pair = next((pair for pair in PAIRS if all(name in row.values for name in pair)), None)
    if "second" in roles and pair and not named:
        return dict(zip(roles, pair, strict=True))
    texts = [name for name, value in row.values.items() if isinstance(value, str) and name not in named.values()]
    column = next((name for name in usual if name in row.values), texts[0] if len(texts) == 1 else None)
    if column is None:
        has = ", ".join(quote(name) for name in list(row.values)[:_MOST_COLUMNS]) or "none"
        guess = max(texts, key=lambda name: len(row.values[name]), default="NAME")
        raise UserError(
            f"The rows have the columns {has}, none of which is known to hold the texts: say which it is, such as "
            f"columns={{'text': {quote(guess)}}}."
        )
    role = "tokens" if "tokens" in roles and not isinstance(row.values[column], str) else "text"
    return {role: column, **named}
