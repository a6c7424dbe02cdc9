"""Rows that a program holds: dicts, data frames of pandas and polars, tables of pyarrow, and data sets of `datasets`.

None of these libraries is imported: an object is known by what it can do.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, cast

from anyformer import limits
from anyformer.data.disk_cache import Cache
from anyformer.data.examples import Where
from anyformer.data.formats.parquet import class_names
from anyformer.data.rows import Row, measure, typed_row
from anyformer.errors import UserError, quote

KEPT = "rows"
"""Folder of the cache."""
_MISSING = ("NAType", "NaTType")
"""Types that stand for no value in pandas."""
_SHOWN = 5


class PandasLike(Protocol):
    """A data frame of pandas."""

    def to_dict(self, orient: Literal["records"], /) -> Any:
        """The rows as dicts."""
        ...


class PolarsLike(Protocol):
    """A data frame of polars."""

    def to_dicts(self) -> list[dict[str, Any]]:
        """The rows as dicts."""
        ...


Data = str | Path | Iterable[str | Path] | Iterable[Mapping[str, Any]] | PandasLike | PolarsLike
"""Files, folders and globs; or rows: dicts as in a .jsonl file, a data frame of pandas or polars, a
`datasets.Dataset`."""


@dataclass(frozen=True)
class Table:
    """Rows in memory, with plain values.

    Attributes:
        values: Of each row, by column.
        classes: Names of classes, by columns that hold their numbers.
        is_typed: Whether all rows have the same columns, so that None stands for a value that isn't there.
    """

    shown: ClassVar[Path] = Path("data")
    target: ClassVar[None] = None
    values: Sequence[dict[str, Any]]
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    is_typed: bool = False

    def rows(self, columns: Sequence[str] = (), limit: int = limits.RECORD_BYTES) -> Iterator[Row]:
        """The rows, as those of a file; the arguments are for files."""
        for number, values in enumerate(self.values, start=1):
            where = Where(self.shown, number, "row")
            measure(values, where)
            yield typed_row(where, values, self.classes) if self.is_typed else Row(where, values)

    @cached_property
    def file(self) -> tuple[str, bytes]:
        """The rows as a file, which is called after its content: .jsonl, or .parquet if there are classes.

        Raises:
            UserError: A text has half a character, or a row is nested too deep.
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
        noted = {"huggingface": json.dumps({"info": {"features": features}})}
        written = BytesIO()
        file.write_table(arrow.Table.from_pylist(list(self.values)).replace_schema_metadata(noted), written)
        return written.getvalue()

    def keep(self, cache: Cache) -> Path:
        """Write `file` into a folder of the cache. Raises UserError as it, and where the disk refuses."""
        name, content = self.file

        def write(path: Path) -> str:
            path.write_bytes(content)
            return name

        return cache.keep(KEPT, write)


def read_data(data: object) -> tuple[str, ...] | Table:
    """The paths that are given, or the rows.

    Args:
        data: See `Data`.

    Raises:
        UserError: It is something else, or a value is none that a .jsonl file could hold.
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
    frames: dict[str, Callable[[], object]] = {
        "to_dicts": lambda: source.to_dicts(),
        "iloc": lambda: source.to_dict("records"),
        "to_pylist": lambda: source.to_pylist(),
    }
    for name, read in frames.items():
        if hasattr(source, name):
            _check_names(list(getattr(source, "columns", ())) if name == "iloc" else [])
            return _table(read(), is_typed=True)
    if not isinstance(data, Iterable):
        raise UserError(
            f"data is of type {type(data).__name__}: give files, or rows as a list of dicts, a DataFrame of pandas or "
            "polars, or a Dataset."
        )
    given = list(cast("Iterable[object]", data))
    if all(isinstance(each, str | Path) for each in given):
        return tuple(map(str, given))
    return _table(given)


def kept_paths(data: object, cache: Callable[[], Cache]) -> tuple[str, ...]:
    """Files with the data: those that are named, or one of the cache that holds the rows. Raises as `read_data`."""
    found = read_data(data)
    return (str(found.keep(cache())),) if isinstance(found, Table) else found


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


def _check_names(columns: Sequence[object]) -> None:
    """Raise UserError for two columns of the same name, of which dicts would have the last one only."""
    for name, count in Counter(map(str, columns)).items():
        if count > 1:
            raise UserError(f"data has {count} columns called {quote(name)}: give them different names.")
