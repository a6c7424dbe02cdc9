"""Texts that a model is asked about, which may be columns of rows that a program holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from anyformer.data.examples.columns import PAIRS, TEXTS, WORDS, Columns, as_columns
from anyformer.data.examples.parts import Parts, as_text
from anyformer.data.examples.rows import Row
from anyformer.data.examples.tables import Data, Table, read_data
from anyformer.data.records import MISSING, find, unknown_field
from anyformer.errors import UserError, quote

Texts = str | Iterable[str] | Iterable[Mapping[str, Any]] | Data
"""A text, texts, or rows with a column of texts."""
Sentences = str | Iterable[str | Sequence[str]] | Iterable[Mapping[str, Any]] | Data
"""A text, texts, lists of words, or rows with a column of either."""

_SHOWN = 20


def asked_texts(data: Texts, columns: Columns | Mapping[str, str] | None = None) -> list[tuple[str, str | None]]:
    """Each text with its second one, or None where texts are no pairs.

    Args:
        data: Texts; or rows, whose other columns, such as a label, are left alone.
        columns: The columns of rows, where they have no usual names: "text", and "second" for pairs.

    Raises:
        UserError: There are no such columns, or a row has no text there.
    """
    found = _given(data)
    if isinstance(found, list):
        _check_no_columns(columns)
        return [(text, None) for text in found]
    rows = list(found.rows())
    chosen = _chosen(rows, columns, ("text", "second"), TEXTS) if rows else {}
    made = [Parts(row, chosen) for row in rows]
    return [(each.text("text"), each.text("second") if "second" in chosen else None) for each in made]


def asked_sentences(data: Sentences, columns: Columns | Mapping[str, str] | None = None) -> list[str | Sequence[str]]:
    """Texts, or lists of words.

    Args:
        data: They; or rows, whose other columns, such as tags, are left alone.
        columns: The column of rows, where it has no usual name: "tokens" for lists of words, "text" for texts.

    Raises:
        UserError: There is no such column, or a row has nothing there.
    """
    found = _given(data)
    if isinstance(found, list):
        _check_no_columns(columns)
        return found
    rows = list(found.rows())
    chosen = _chosen(rows, columns, ("tokens", "text"), (*WORDS, *TEXTS)) if rows else {}
    return [_sentence(Parts(row, chosen), next(iter(chosen))) for row in rows]


def _given(data: Any) -> Table | list[Any]:
    """The rows, or the texts: a column of a frame (a series) is texts, too."""
    if isinstance(data, str):
        return [data]
    is_frame = hasattr(data, "to_dicts") or hasattr(data, "columns") or hasattr(data, "column_names")
    if not is_frame and not isinstance(data, Mapping):
        if not isinstance(data, Iterable):
            kind = type(cast("object", data)).__name__
            raise UserError(f"Give a text, a list of texts, or rows with a column of texts, not a {kind}.")
        data = list(cast("Iterable[object]", data))
        if not data or not isinstance(data[0], Mapping):
            for number, each in enumerate(cast("list[object]", data), start=1):
                if not isinstance(each, str | list | tuple):
                    raise UserError(f"Text {number} of {len(data)} is no text: it is of type {type(each).__name__}.")
            return data
    found = read_data(data)
    assert isinstance(found, Table)
    return found


def _check_no_columns(columns: object) -> None:
    if columns:
        raise UserError("columns are those of rows, and these are texts: leave columns out.")


def _chosen(
    rows: Sequence[Row], columns: Columns | Mapping[str, str] | None, roles: tuple[str, str], usual: Sequence[str]
) -> dict[str, str]:
    """The column of each role, by those of the first row."""
    first, own = rows[0].values, as_columns(columns)
    given = {} if own is None else own.given()
    named = {role: given[role] for role in roles if role in given}
    for column in named.values():
        if find(first, column) is MISSING:
            raise UserError(f"{rows[0].where}, {unknown_field(column, first, 'column')}")
    if roles[0] in named or (named and "second" not in named):
        return named
    pair = next((pair for pair in PAIRS if all(name in first for name in pair)), None)
    if "second" in roles and pair and not named:
        return dict(zip(roles, pair, strict=True))
    texts = [name for name, value in first.items() if isinstance(value, str) and name not in named.values()]
    column = next((name for name in usual if name in first), texts[0] if len(texts) == 1 else None)
    if column is None:
        has = ", ".join(quote(name) for name in list(first)[:_SHOWN]) or "none"
        guess = max(texts, key=lambda name: len(first[name]), default="NAME")
        raise UserError(
            f"The rows have the columns {has}, none of which is known to hold the texts: say which it is, such as "
            f"columns={{'text': {quote(guess)}}}."
        )
    role = "tokens" if "tokens" in roles and not isinstance(first[column], str) else "text"
    return {role: column, **named}


def _sentence(parts: Parts, role: str) -> str | list[str]:
    if role == "text":
        return parts.text("text")
    place = f"the list of its column {quote(parts.column('tokens'))}"
    return [as_text(word, parts.where, place, empty=True) for word in parts.items("tokens")]
