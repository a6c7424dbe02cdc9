"""JSON files of a model directory, read with one clear sentence for each fault."""

import json
from pathlib import Path
from typing import Any, cast

from anyformer.errors import UserError


def read_json(path: Path) -> object:
    """The JSON value in a file. Raises UserError if there is none, or one too deep or too long for Python."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path.parent} has no {path.name}.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} can't be read as JSON: {error}.") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises UserError if there is none."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} should hold a JSON object, not {type(value).__name__}.")
    return cast("dict[str, Any]", value)


def path_inside(directory: Path, name: str) -> Path:
    """The path of a file that another file names. Raises UserError if it leads out of the directory."""
    try:
        path = (directory / name).resolve()
    except (OSError, ValueError) as error:
        raise UserError(f"{directory} names a file that can't exist, {name[:40]!r}: {error}.") from error
    # A hub download links into its cache, so the folder of the unresolved path counts as well.
    lexical = Path(name)
    if lexical.is_absolute() or ".." in lexical.parts:
        raise UserError(f"{directory} names a file outside itself: {name!r}.")
    return path
