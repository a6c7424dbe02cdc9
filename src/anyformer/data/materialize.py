"""All that data may be given as: files, folders, globs, and what can be read only once or from afar.

Standard input and data sets of the hub are kept in the cache as a file. A data set is written
`hf:NAME[:CONFIG][:SPLIT]`, such as `hf:roneneldan/TinyStories`, `hf:opus_books:de-en` or
`hf:Salesforce/wikitext:wikitext-2-v1:test`. NAME may be a folder, too.
"""

import codecs
import hashlib
import json
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, cast

from anyformer import limits
from anyformer.data.disk_cache import Cache, identity, key
from anyformer.data.formats import Location
from anyformer.data.formats.parquet import class_names
from anyformer.data.input_files import counted, find_files, in_utf8, naming_all, suffix_of
from anyformer.data.pairs import parallel_files, side_by_side
from anyformer.data.rows import SUFFIXES, Row, memory, read_file, text_of, typed_row, unknown_field
from anyformer.errors import UserError, library

STANDARD_INPUT = "-"
HUB = "hf:"

_BLOCK = 1 << 20


def materialize(
    paths: Iterable[str], fields: Sequence[str], cache: Cache, *, progress: Callable[[str], None] = lambda line: None
) -> list[str]:
    """Return the paths, with a file of the cache in place of `-` and of each `hf:` data set.

    A data set is read over the network once; from then on it is the file, with the text of these fields. Standard input
    is read at each call. `progress` is called with a line on what is being read.

    Raises UserError where there is nothing on standard input, or a data set can't be had or lacks a field.
    """

    def file(path: str) -> str:
        if path == STANDARD_INPUT:
            progress("reading standard input")
            return str(keep_standard_input(cache))
        if not path.startswith(HUB):
            return path
        progress(f"reading {path}")
        name = f"{_name(path, tuple(fields))}.jsonl.zst"
        return str(cache.file("sources", name, lambda file: _pack(file, path, _texts(path, fields))))

    return [*map(file, paths)]


@dataclass(frozen=True, slots=True)
class RowFile:
    """A file of rows, which messages call `shown`.

    Attributes:
        target: Of parallel text, the file of the other language.
        is_typed: Whether an object has the same keys in each row, so that null stands for one that isn't there.
    """

    path: Path
    shown: Path
    target: Path | None = None
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    is_typed: bool = False

    def rows(self, columns: Sequence[str], limit: int) -> Iterator[Row]:
        """Read it; see `read_rows`."""
        if self.target is not None:
            rows = (
                Row(Location(self.path, pair.line), {"source": pair.source, "target": pair.target})
                for pair in side_by_side(self.path, self.target, limit)
                if pair.source or pair.target
            )
            return counted(rows, self.path, memory)
        rows = read_file(self.path, limit, columns=columns, shown=self.shown)
        if not self.is_typed:
            return rows
        return (typed_row(Location(self.shown, row.location.number, "row"), row.values, self.classes) for row in rows)


def read_rows(
    paths: Sequence[str],
    cache: Cache | None = None,
    *,
    columns: Sequence[str] = (),
    max_record_bytes: int = limits.RECORD_BYTES,
    encoding: str | None = None,
) -> Iterator[Row]:
    """Read the rows of files, in order, each file as `read_file` does.

    Args:
        paths: Files of `SUFFIXES`, compressed or not, folders and globs of them, `-` for standard input, data sets of
            the hub as `hf:NAME[:CONFIG][:SPLIT]`, and two files of parallel lines as `SOURCE,TARGET`, which have the
            columns `source` and `target`.
        cache: For standard input, data sets of the hub and files that are not UTF-8; None: the user's own.
        encoding: Of the files that are not UTF-8, or "skip" to leave them out; None: they are refused.

    Raises:
        UserError: What `find_files` raises; a file can't be read, or a row is faulty or too large (with its number).
    """
    files = row_files(paths, cache, encoding)
    with naming_all(file.path for file in files):
        for file in files:
            yield from file.rows(columns, max_record_bytes)


def row_files(paths: Sequence[str], cache: Cache | None = None, encoding: str | None = None) -> list[RowFile]:
    """The files that paths name, each once; see `read_rows`."""
    files = list[RowFile]()
    if len(paths) == 2 and all(_is_parallel(path) for path in paths):
        raise UserError(f"Two files of parallel lines are given as one, with a comma: {','.join(paths)}.")
    for path in paths:
        if path == STANDARD_INPUT:
            files.append(RowFile(keep_standard_input(cache or Cache(), sniff=True), Path("standard input")))
        elif path.startswith(HUB):
            file, classes = _whole_data_set(path, cache or Cache())
            files.append(RowFile(file, Path(path), classes=classes, is_typed=True))
        elif sides := _parallel(path):
            source, *target = utf8_files(sides, cache, encoding).values()
            files += [RowFile(source, sides[0], target=file) for file in target]
        else:
            read = utf8_files(find_files(path, SUFFIXES), cache, encoding)
            files += [RowFile(file, own) for own, file in read.items()]
    if not paths:
        find_files(paths)  # raises
    return list({(file.path.absolute(), file.target): file for file in files}.values())


def utf8_files(files: Iterable[Path], cache: Cache | None, encoding: str | None) -> dict[Path, Path]:
    """By each file the one to read, which is of the cache where its own text is not in UTF-8; see `in_utf8`.

    Files that are left out are missing. Raises UserError where all of them are.
    """

    def read_as(file: Path) -> Path | None:
        def keep(end: str, write: Callable[[Path], None]) -> Path:
            return (cache or Cache()).file("sources", f"{identity([file])}-{end}", write)

        return in_utf8(file, encoding, keep)

    read = {file: read_as(file) for file in files}
    kept = {own: file for own, file in read.items() if file is not None}
    if read and not kept:
        raise UserError(f"None of the files is UTF-8 text, {next(iter(read))} the first: give their --encoding.")
    return kept


def _parallel(path: str) -> list[Path] | None:
    source, _, target = path.partition(",")
    if not source or not target or _exists(path):
        return None
    return parallel_files(source, target) if _exists(source) or _exists(target) else None


def _is_parallel(path: str) -> bool:
    """Whether it is a file of no kind that holds rows, as train.en."""
    return limits.can_be_path(path) and Path(path).is_file() and suffix_of(Path(path), SUFFIXES) is None


def _exists(path: str) -> bool:
    return limits.can_be_path(path) and Path(path).exists()


def keep_standard_input(cache: Cache, sniff: bool = False, option: str = "--data") -> Path:
    """Keep standard input as a .txt file, or with `sniff` what begins as JSON as .json.

    Raises UserError, which names the option that asked for it, for a terminal or no text.
    """
    source = sys.stdin.buffer
    if source.isatty():
        raise UserError(f"{option} - reads standard input, and that is a terminal: pipe a text into the command.")

    def write(path: Path) -> str:
        digest, suffix = hashlib.sha256(), ".txt"
        with path.open("wb") as file:
            while block := source.read(_BLOCK):
                if sniff and not file.tell() and block.removeprefix(codecs.BOM_UTF8).lstrip()[:1] in (b"{", b"["):
                    suffix = ".json"
                digest.update(block)
                file.write(block)
        if not path.stat().st_size:
            raise UserError("There is no text to read: standard input is empty.")
        return f"stdin-{digest.hexdigest()[:32]}{suffix}"

    return cache.keep("sources", write)


def _whole_data_set(spec: str, cache: Cache) -> tuple[Path, dict[str, tuple[str, ...]]]:
    """Keep all fields of a data set as a .jsonl.zst file; also the names of the classes in columns of whole numbers."""

    def make(folder: Path) -> None:
        names = dict[str, tuple[str, ...]]()
        _pack(folder / "rows.jsonl.zst", spec, _rows(spec, names))
        (folder / "names.json").write_text(json.dumps(names), encoding="utf-8")

    def read(folder: Path) -> tuple[Path, dict[str, tuple[str, ...]]]:
        names = limits.read_object(folder / "names.json")
        if not (folder / "rows.jsonl.zst").is_file():
            raise UserError(f"{folder} has lost its rows.")
        return folder / "rows.jsonl.zst", {column: tuple(map(str, classes)) for column, classes in names.items()}

    return cache.entry("sources", _name(spec, None), make, read)


def _name(spec: str, *facts: object) -> str:
    name = "".join(character if character.isalnum() else "-" for character in spec.removeprefix(HUB))
    return f"{name[:80]}-{key(spec, *facts)[:12]}"


def _pack(path: Path, spec: str, rows: Iterable[Mapping[str, Any]]) -> None:
    zstandard = library("zstandard", f"Reading {spec}", "data", "datasets and zstandard")
    with path.open("wb") as file, zstandard.ZstdCompressor(level=3).stream_writer(file) as packed:
        for row in rows:
            packed.write(json.dumps(row, ensure_ascii=False, default=_as_text).encode("utf-8") + b"\n")


def _as_text(value: object) -> str:
    """A date, or what else JSON doesn't have."""
    return value.isoformat() if isinstance(value, date) else f"<{type(value).__name__}>"


def _texts(spec: str, fields: Sequence[str]) -> Iterator[Mapping[str, str]]:
    for number, row in enumerate(_rows(spec, {}), start=1):
        if number == 1:
            for name in fields:
                if name.partition(".")[0] not in row and name not in row:
                    raise UserError(f"{spec} {unknown_field(name, row)}")
        yield {name: text_of(row, name, f"{spec}, row {number}") for name in fields}


def _rows(spec: str, names: dict[str, tuple[str, ...]]) -> Iterator[Mapping[str, Any]]:
    """The rows of a data set; `names` is filled with those of its classes."""
    with _stream(spec) as stream:
        if getattr(stream, "features", None) is not None:
            names.update(class_names(stream.features.arrow_schema))
        yield from cast("Iterable[Mapping[str, Any]]", stream)


@contextmanager
def _stream(spec: str) -> Generator[Any, None, None]:
    datasets = library("datasets", f"Reading {spec}", "data")
    name, *rest = spec.removeprefix(HUB).split(":")
    if not name or len(rest) > 2:
        raise UserError(f"{spec} is not a data set's name: write hf:NAME, hf:NAME:CONFIG, or hf:NAME:CONFIG:SPLIT.")
    config, split = (*(part or None for part in rest), None, None)[:2]
    try:
        # With one part after the name that is the config, unless there is no such config.
        if split is None and config is not None and config not in datasets.get_dataset_config_names(name):
            config, split = None, config
        yield datasets.load_dataset(name, config, split=split or "train", streaming=True)
    except (datasets.exceptions.DatasetsError, OSError, ValueError, LookupError) as error:
        line = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
        raise UserError(f"The data set {spec} can't be read: {line}.") from error
