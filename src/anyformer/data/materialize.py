"""Data that can be read only once, or from afar, kept in the cache as a file: standard input, and data sets of the hub.

A data set is written `hf:NAME[:CONFIG][:SPLIT]`, such as `hf:roneneldan/TinyStories`, `hf:opus_books:de-en` or
`hf:Salesforce/wikitext:wikitext-2-v1:test`. NAME may be a folder, too.
"""

import codecs
import hashlib
import json
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any, BinaryIO, cast

from anyformer import limits
from anyformer.data.disk_cache import Cache, key
from anyformer.data.formats.parquet import class_names
from anyformer.data.records import text_of
from anyformer.data.rows import unknown_field
from anyformer.errors import UserError

STANDARD_INPUT = "-"
HUB = "hf:"

_BLOCK = 1 << 20


def materialize(
    paths: Iterable[str],
    fields: Sequence[str],
    cache: Cache,
    *,
    stdin: BinaryIO | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[str]:
    """Return the paths, with a file of the cache in place of `-` and of each `hf:` data set.

    A data set is read over the network once; from then on it is the file. Standard input is read at each call.

    Args:
        fields: the fields of a data set that are wanted.
        stdin: what to read for `-`; None: standard input.
        progress: called with a line on what is being read.

    Raises:
        UserError: there is nothing on standard input, or a data set can't be had or lacks a field.
    """
    found: list[str] = []
    for path in paths:
        if progress is not None and (path == STANDARD_INPUT or path.startswith(HUB)):
            progress(f"reading {'standard input' if path == STANDARD_INPUT else path}")
        if path == STANDARD_INPUT:
            found.append(str(_standard_input(cache, sys.stdin.buffer if stdin is None else stdin)))
        else:
            found.append(str(_hub(path, fields, cache)) if path.startswith(HUB) else path)
    return found


def standard_input(cache: Cache, stdin: BinaryIO | None = None) -> Path:
    """Keep standard input as a file: what begins as JSON as .json, and anything else as .txt.

    Raises:
        UserError: there is nothing on it, or it is a terminal.
    """
    return _standard_input(cache, sys.stdin.buffer if stdin is None else stdin, sniff=True)


def hub_rows(spec: str, cache: Cache) -> tuple[Path, dict[str, tuple[str, ...]]]:
    """Keep all fields of a data set of the hub.

    Returns:
        The rows as a .jsonl.zst file, and the names of the classes in columns of whole numbers.

    Raises:
        UserError: it can't be had.
    """

    def make(folder: Path) -> None:
        names = dict[str, tuple[str, ...]]()
        _pack(folder / "rows.jsonl.zst", spec, _whole_rows(spec, names))
        (folder / "names.json").write_text(json.dumps(names), encoding="utf-8")

    def read(folder: Path) -> tuple[Path, dict[str, tuple[str, ...]]]:
        names = limits.read_object(folder / "names.json")
        if not (folder / "rows.jsonl.zst").is_file():
            raise UserError(f"{folder} has lost its rows.")
        return folder / "rows.jsonl.zst", {column: tuple(map(str, classes)) for column, classes in names.items()}

    return cache.entry("sources", _name(spec, None), make, read)


def _standard_input(cache: Cache, stdin: BinaryIO, sniff: bool = False) -> Path:
    if stdin.isatty():
        raise UserError("--data - reads standard input, and that is a terminal: pipe a text into the command.")

    def write(path: Path) -> str:
        digest, suffix = hashlib.sha256(), ".txt"
        with path.open("wb") as file:
            while block := stdin.read(_BLOCK):
                if sniff and not file.tell() and block.removeprefix(codecs.BOM_UTF8).lstrip()[:1] in (b"{", b"["):
                    suffix = ".json"
                digest.update(block)
                file.write(block)
        if not path.stat().st_size:
            raise UserError("There is no text to read: standard input is empty.")
        return f"stdin-{digest.hexdigest()[:32]}{suffix}"

    return cache.keep("sources", write)


def _hub(spec: str, fields: Sequence[str], cache: Cache) -> Path:
    def write(path: Path) -> None:
        rows = (dict(zip(fields, values, strict=True)) for values in _rows(spec, fields))
        _pack(path, spec, rows)

    return cache.file("sources", f"{_name(spec, tuple(fields))}.jsonl.zst", write)


def _name(spec: str, *facts: object) -> str:
    """Name of a data set in the cache."""
    name = "".join(character if character.isalnum() else "-" for character in spec.removeprefix(HUB))
    return f"{name[:80]}-{key(spec, *facts)[:12]}"


def _pack(path: Path, spec: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as .jsonl.zst."""
    try:
        import zstandard
    except ImportError as error:
        raise UserError(f"Reading {spec} needs datasets and zstandard: pip install 'anyformer[data]'.") from error
    with path.open("wb") as file, zstandard.ZstdCompressor(level=3).stream_writer(file) as packed:
        for row in rows:
            packed.write(json.dumps(row, ensure_ascii=False, default=_as_text).encode("utf-8") + b"\n")


def _as_text(value: object) -> str:
    """A date, or what else JSON doesn't have."""
    return value.isoformat() if isinstance(value, date) else f"<{type(value).__name__}>"


def _rows(spec: str, fields: Sequence[str]) -> Iterator[tuple[str, ...]]:
    with _stream(spec) as stream:
        for number, row in enumerate(cast("Iterable[Mapping[str, Any]]", stream), start=1):
            if number == 1:
                for field in fields:
                    if field.partition(".")[0] not in row and field not in row:
                        raise UserError(f"{spec} {unknown_field(field, row)}")
            yield tuple(text_of(row, field, f"{spec}, row {number},") for field in fields)


def _whole_rows(spec: str, names: dict[str, tuple[str, ...]]) -> Iterator[Mapping[str, Any]]:
    """The rows of a data set; `names` is filled with those of its classes."""
    with _stream(spec) as stream:
        if getattr(stream, "features", None) is not None:
            names.update(class_names(stream.features.arrow_schema))
        yield from cast("Iterable[Mapping[str, Any]]", stream)


@contextmanager
def _stream(spec: str) -> Generator[Any, None, None]:
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise UserError(f"Reading {spec} needs datasets: pip install 'anyformer[data]'.") from error
    name, *rest = spec.removeprefix(HUB).split(":")
    if not name or len(rest) > 2:
        raise UserError(f"{spec} is not a data set's name: write hf:NAME, hf:NAME:CONFIG, or hf:NAME:CONFIG:SPLIT.")
    config, split = (*(part or None for part in rest), None, None)[:2]
    untyped = cast("Any", datasets)
    try:
        # With one part after the name that is the config, unless there is no such config.
        if split is None and config is not None and config not in untyped.get_dataset_config_names(name):
            config, split = None, config
        yield untyped.load_dataset(name, config, split=split or "train", streaming=True)
    except (DatasetsError, OSError, ValueError, LookupError) as error:
        line = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
        raise UserError(f"The data set {spec} can't be read: {line}.") from error
