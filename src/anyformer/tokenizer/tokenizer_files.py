"""The files of a tokenizer's directory: their names, and reading them with one clear sentence for each fault."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from anyformer.errors import UserError

TOKENIZER = "tokenizer.json"
CONFIG = "tokenizer_config.json"
SPECIAL_MAP = "special_tokens_map.json"
ADDED = "added_tokens.json"
CHAT_TEMPLATE = "chat_template.jinja"
COMPANIONS = (CONFIG, SPECIAL_MAP, ADDED, CHAT_TEMPLATE)

_ALONE = (TOKENIZER, "vocab.txt", "spiece.model", "tokenizer.model", "source.spm")
TOKENIZER_FILES = (*_ALONE, *COMPANIONS, "vocab.json", "merges.txt", "target.spm")
"""Every file that a tokenizer is read from or written to."""


def has_tokenizer(directory: str | os.PathLike[str]) -> bool:
    """Whether a directory (or file) holds a tokenizer in any form known here, readable or not."""
    path = Path(directory)
    if path.is_file():
        return path.suffix in {".json", ".txt", ".model"}
    if any((path / name).is_file() for name in _ALONE):
        return True
    return (path / "vocab.json").is_file() and (path / "merges.txt").is_file()


def read_bytes(path: Path) -> bytes:
    """Read a whole file, or raise UserError naming it."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror or error}.") from error


def parse_object(content: bytes, path: Path) -> dict[str, Any]:
    """Parse a JSON object, or raise UserError with the file and the line."""
    try:
        value: object = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a JSON file: byte {error.start} is not UTF-8.") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON: {error.msg} in line {error.lineno}.") from error
    except (ValueError, RecursionError) as error:  # integers of thousands of digits, lists in lists in lists
        raise UserError(f"{path} can't be read as JSON: {error}.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} should hold a JSON object, but holds a {type(value).__name__}.")
    return cast("dict[str, Any]", value)


def to_json(value: Mapping[str, Any]) -> bytes:
    """Write JSON as Hugging Face does: indented, UTF-8, a newline at the end."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8")
