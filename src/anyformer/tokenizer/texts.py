"""Texts as a program holds them: one, a list, a column of a data frame; and what is no text."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from anyformer.errors import UserError, quote


def texts_of(value: object, what: str = "Text", *, lists: bool = False) -> list[Any]:
    """Texts as a list, one string being a list of one.

    Args:
        what: The name of one of them, for messages.
        lists: Whether a list, of token ids or of words, may stand for a text.

    Raises:
        UserError: rows, of which one column are the texts, or a member that is no text.
    """
    if isinstance(value, str):
        return [value]
    _refuse_columns(value)
    if not isinstance(value, Iterable) or isinstance(value, bytes | Path):
        raise UserError(f"Give a text or a list of texts, not a {type(value).__name__}.")
    texts = list(cast("Iterable[object]", value))
    for number, text in enumerate(texts, start=1):
        if isinstance(text, str) or (lists and _is_list(text)):
            continue
        kind, hint = type(text).__name__, ""
        if isinstance(text, Mapping) and text:
            names = list(cast("Mapping[object, object]", text))
            hint = f": give one of its values, such as row[{quote(names[0])}]"
            if "role" in names:
                hint = ", a message: `anyformer.generation.Conversation` answers those"
        raise UserError(f"{what} {number} of {len(texts)} is no text: it is of type {kind}{hint}.")
    return texts


def check_text(value: object, function: str, instead: str) -> None:
    """Raise UserError where a function that takes one text was given something else; `instead` says what to do."""
    if not isinstance(value, str):
        raise UserError(f"`{function}` takes one text, not a {type(value).__name__}: {instead}.")


def _refuse_columns(value: object) -> None:
    """Raise UserError for a frame or a mapping, which would be read as the names of its columns."""
    columns: Any = value if isinstance(value, Mapping) else getattr(value, "column_names", None)
    columns = getattr(value, "columns", None) if columns is None else columns
    if columns is not None:
        kind, name = type(value).__name__, quote(next(iter(columns), "text"))
        raise UserError(f"A {kind} has columns, and texts are one of them: give that, such as data[{name}].")


def _is_list(value: object) -> bool:
    """Whether something is a list, an array or a tensor in one dimension, of ids or words."""
    is_other = isinstance(value, Mapping | bytes) or getattr(value, "ndim", 1) != 1
    return isinstance(value, Iterable) and not is_other
