"""Limits on what a file may ask of the program: every model, data file and run directory may come from a stranger.

docs/security.md lists the limits and says how to raise them. What is read here is a regular file: a named pipe or a
device would be waited for, perhaps forever.
"""

import errno
import json
import os
import stat
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

import yaml

from anyformer.errors import UserError, quote

MEGABYTE = 10**6
JSON_BYTES = 50 * MEGABYTE
"""Bytes of a JSON file: more than any tokenizer.json of a published model. Short values take 25 times the memory."""
YAML_BYTES = MEGABYTE // 5
"""Bytes of a YAML file; so many take two seconds to read."""
LOG_BYTES = 256 * MEGABYTE
"""Bytes of a run's metrics.jsonl; a step takes about 200."""
RECORD_BYTES = 16 * MEGABYTE
"""Bytes of a record of data, such as a line of jsonl, or of a line of text that is a prompt or one side of a pair."""
_LONGEST_NAME, _LONGEST_NUMBER = 200, 400
DEPTH = 100
"""Objects and lists within each other, in JSON and YAML."""


def can_be_path(path: str | os.PathLike[str]) -> bool:
    """Whether a path could be one of this file system: a text that somebody took for one may be too long."""
    try:
        os.stat(path)  # noqa: PTH116, Path("x\0") can be made, too
    except OSError as error:
        return error.errno != errno.ENAMETOOLONG
    except ValueError:  # a null character
        return False
    return True


def open_file(path: Path, *, buffering: int = -1) -> BinaryIO:
    """Open a regular file for reading. Raises OSError where it can't be opened, and UserError for anything else, such
    as a named pipe.
    """
    # Without O_NONBLOCK the opening of a named pipe waits for a writer.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise UserError(f"{path} is not a file but {_kind(mode)}.")
        return os.fdopen(descriptor, "rb", buffering)
    except BaseException:
        os.close(descriptor)
        raise


@contextmanager
def reading(path: object) -> Generator[None]:
    """Raise UserError for an OSError within: the path can't be read."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror or error}.") from error


def read_bytes(path: Path, limit: int = JSON_BYTES) -> bytes:
    """The content of a regular file. Raises UserError where it can't be read, or has more bytes than the limit."""
    try:
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                raise UserError(_too_large(path, size, limit))
            return file.read(size)  # a buffer of the limit would be allocated whole
    except FileNotFoundError as error:
        raise UserError(f"{path.parent} has no {path.name}.") from error
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise UserError(f"{path} can't be read: {getattr(error, 'strerror', None) or error}.") from error


def read_text(path: Path, limit: int = JSON_BYTES) -> str:
    """The content of a regular file in UTF-8. Raises UserError as `read_bytes`, and where it is not UTF-8."""
    content = read_bytes(path, limit)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: byte {error.start} can't be part of a text.") from error


def parse_json(content: str | bytes, location: object) -> Any:
    """The value that a JSON text describes; `location` is its name in messages, such as its path.

    Raises UserError where it is not JSON, or is nested more than `DEPTH` levels deep.
    """
    try:
        # json.loads takes bytes for UTF-16 where they look like it.
        value: object = json.loads(content if isinstance(content, str) else content.decode("utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{location} is not JSON: {error.msg} in line {error.lineno}, column {error.colno}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{location} is not JSON: byte {error.start} is not UTF-8.") from error
    except RecursionError:
        raise UserError(_too_deep(location)) from None
    except ValueError as error:  # an integer of thousands of digits
        raise UserError(f"{location} is not JSON: {str(error).partition(';')[0]}.") from error
    check_depth(value, location)
    return value


def read_json(path: Path, limit: int = JSON_BYTES) -> Any:
    """The value in a JSON file. Raises UserError where it can't be read, is too large, too deep or is not JSON."""
    return parse_json(read_bytes(path, limit), path)


def parse_object(content: str | bytes, location: object) -> dict[str, Any]:
    """The object that a JSON text describes. Raises UserError as `parse_json`, and for another value."""
    value = parse_json(content, location)
    if not isinstance(value, dict):
        raise UserError(f"{location} should hold a JSON object, not {type(value).__name__}.")
    return cast("dict[str, Any]", value)


def read_object(path: Path, limit: int = JSON_BYTES) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError as `read_json`, and for another value."""
    return parse_object(read_bytes(path, limit), path)


def read_yaml(path: Path, limit: int = YAML_BYTES) -> Any:
    """The value in a YAML file of plain values: no aliases, which can make gigabytes of a few lines, and no dates.

    Raises UserError where it can't be read, is too large, too deep, or is not such YAML.
    """
    text = read_text(path, limit)
    try:
        value: object = yaml.load(text, _PlainLoader)
    except RecursionError:
        raise UserError(_too_deep(path)) from None
    except (yaml.YAMLError, LookupError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}.") from error
    check_depth(value, path)
    return value


def check_depth(value: object, location: object) -> None:
    """Raise UserError for a value of objects and lists that are nested more than `DEPTH` levels deep."""
    level: list[object] = [value] if isinstance(value, dict | list) else []
    for _ in range(DEPTH):
        nested = (cast("Any", each).values() if isinstance(each, dict) else each for each in level)
        level = [each for inner in nested for each in cast("Any", inner) if isinstance(each, dict | list)]
        if not level:
            return
    raise UserError(_too_deep(location))


def path_inside(directory: Path, name: str) -> Path:
    """The path of a file that another file names.

    Raises UserError where it leads out of the directory, as it is written or by a symbolic link. The links of Hugging
    Face's cache, from a snapshot to its blobs, are allowed.
    """
    lexical = Path(name)
    if lexical.is_absolute() or ".." in lexical.parts or "\0" in name or len(name) > _LONGEST_NAME:
        raise UserError(f"{directory} names a file outside itself: {quote(name)}.")
    path = directory / name
    try:
        # Unlike Path.resolve, realpath takes links that lead to each other.
        root, target = Path(os.path.realpath(directory)), Path(os.path.realpath(path))
    except ValueError as error:  # a half of a character
        raise UserError(f"{directory} names a file that can't exist: {quote(name)}.") from error
    is_blob = root.parent.name == "snapshots" and target.parent == root.parent.parent / "blobs"
    if not (target.is_relative_to(root) or is_blob):
        raise UserError(f"{path} is a symbolic link out of its folder: put a copy of the file in its place.")
    return path


def check_file(path: Path, limit: int | None = None) -> None:
    """Check a path before a library opens it, which would wait for a named pipe, or read a file of any size.

    Raises UserError for anything but a regular file, and for more bytes than the limit; a missing one is left to the
    library.
    """
    with suppress(OSError, ValueError):
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path} is not a file but {_kind(status.st_mode)}.")
        if limit is not None and status.st_size > limit:
            raise UserError(_too_large(path, status.st_size, limit))


def check_files(directory: Path, patterns: Iterable[str], limit: int | None = None) -> None:
    """Check the files of a folder that match a pattern; raises UserError as `path_inside` and `check_file`."""
    for path in (path for pattern in patterns for path in directory.glob(pattern)):
        check_file(path_inside(directory, str(path.relative_to(directory))), limit)


class _PlainLoader(yaml.SafeLoader):
    """YAML's values that JSON has, too."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """A node. Raises YAMLError for an alias."""
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.MarkedYAMLError(problem="aliases are not allowed", problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping. Raises YAMLError for a name that is no text, or there twice."""
        names = set[object]()
        for key, _ in node.value:
            name: object = self.construct_object(key, deep=True) if isinstance(key, yaml.ScalarNode) else None
            if not isinstance(name, str) or name in names:
                problem = f"{quote(name)} is there twice" if isinstance(name, str) else "a field's name is no text"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            names.add(name)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> int:
        """A whole number. Raises YAMLError for one that Python could not print."""
        if len(node.value) > _LONGEST_NUMBER:
            raise yaml.MarkedYAMLError(problem="a number is too long", problem_mark=node.start_mark)
        return self.construct_yaml_int(node)


_PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_PLAIN = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map")} | {None}
# The others give dates, bytes and sets.
_PlainLoader.yaml_constructors = {
    tag: constructor for tag, constructor in yaml.SafeLoader.yaml_constructors.items() if tag in _PLAIN
} | {"tag:yaml.org,2002:int": _PlainLoader.construct_number}


def _too_large(path: Path, size: int, limit: int) -> str:
    return f"{path} has {size:,} bytes, more than the {limit:,} that such a file may have."


def _too_deep(location: object) -> str:
    return f"{location} is nested more than {DEPTH} levels deep."


def _kind(mode: int) -> str:
    kinds = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a named pipe", stat.S_ISSOCK: "a socket"}
    return next((name for test, name in kinds.items() if test(mode)), "a device")
