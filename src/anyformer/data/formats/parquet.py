"""Parquet."""

import json
import shutil
import tempfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from anyformer.data.input_files import Expansion
from anyformer.errors import UserError, cut, library

_ROWS = 16
"""Rows that are read at a time. A few bytes can stand for megabytes in each of them, and with so few rows there is no
time to be won any more."""
_BUFFER = 1 << 20


@contextmanager
def open_parquet(file: BinaryIO, path: Path) -> Generator[Any, None, None]:
    """Open a file as a `pyarrow.parquet.ParquetFile`.

    Raises UserError where it can't be read, now or later inside the `with`, or grows out of all proportion.
    """
    pa, parquet = (library(name, f"Reading {path}", "data", "pyarrow") for name in ("pyarrow", "pyarrow.parquet"))
    try:
        with tempfile.TemporaryFile() as unpacked:
            source: Any = file
            if path.suffix.lower() != ".parquet":
                # The index of a parquet file is at its end, so it can't be read as a stream.
                shutil.copyfileobj(file, unpacked)
                source = unpacked
            table = parquet.ParquetFile(source, buffer_size=_BUFFER)
            groups = (table.metadata.row_group(index).total_byte_size for index in range(table.num_row_groups))
            Expansion(path).add(sum(groups))
            yield table
    except (pa.ArrowException, ValueError) as error:  # ValueError: text that is not UTF-8
        line = cut(str(error).splitlines()[0])
        raise UserError(f"{path} is not a whole parquet file: {line}.") from error


def parquet_rows(table: Any, fields: Sequence[str] | None, groups: range | None = None) -> Iterator[dict[str, Any]]:
    """The values of each row, of these columns and row groups only; None: of all."""
    columns = None if fields is None else list(fields)
    for batch in table.iter_batches(_ROWS, row_groups=groups, columns=columns, use_threads=False):
        try:
            yield from batch.to_pylist()
        except (ArithmeticError, LookupError, TypeError, AttributeError, ImportError) as error:
            # Of times that Python has not, in zones that nobody knows.
            raise ValueError(f"a value can't be read ({error})") from error


def class_names(schema: Any) -> dict[str, tuple[str, ...]]:
    """The names of the classes in columns of whole numbers, as the library `datasets` notes them in a file."""
    try:
        note: object = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    except (ValueError, RecursionError):
        return {}
    features = _member(_member(note, "info"), "features")
    columns = cast("dict[str, object]", features) if isinstance(features, dict) else {}
    return {column: names for column, feature in columns.items() if (names := _names(feature)) is not None}


def _names(feature: object) -> tuple[str, ...] | None:
    """The names of a `ClassLabel`, or of a list of them."""
    if isinstance(feature, list):
        feature = cast("list[object]", feature)[0] if feature else None
    if _member(feature, "_type") in ("Sequence", "List", "LargeList"):
        inner = _member(feature, "feature")
        return _names(inner) if isinstance(inner, dict) else None
    names = _member(feature, "names")
    if _member(feature, "_type") != "ClassLabel" or not isinstance(names, list):
        return None
    names = cast("list[object]", names)
    return tuple(cast("list[str]", names)) if all(isinstance(name, str) for name in names) else None


def _member(value: object, name: str) -> object:
    return cast("dict[str, object]", value).get(name) if isinstance(value, dict) else None
