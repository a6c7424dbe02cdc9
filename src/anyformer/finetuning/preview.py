"""A page that draws examples as the model will see them, before training on them.

The page is one file that asks nothing of a network and runs no script. Every text in it is escaped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from anyformer import atomic
from anyformer.evaluation.metrics.tagging import kind_spans
from anyformer.finetuning.check import Check
from anyformer.pages.render import render, require_page
from anyformer.tasks.task import Encoded, EncodedText
from anyformer.tokenizer import StreamDecoder, Tokenizer

ROWS = 60
"""Examples that a page draws."""
_TOKENS = 2000
"""Tokens of a text that it draws."""


def write_preview(
    path: Path, name: str, tokenizer: Tokenizer, rows: Sequence[Encoded], checks: Mapping[str, Check]
) -> Path:
    """Write the page.

    Args:
        path: Where to; a page of ours that is there is replaced.
        name: What is trained, for the heading.
        tokenizer: What encoded the rows.
        rows: Examples, the first `ROWS` of which are drawn.
        checks: The counts above them, such as those of training and of validation, by name.

    Raises:
        UserError: the file is there already and no such page, or the disk refuses.
    """
    require_page(path)
    texts = [text for row in rows for text in row.texts]
    shown = rows[:ROWS]
    colors = _colors(shown)
    task = next((check.task for check in checks.values()), None)
    values = {
        "title": f"{name} · anyformer",
        "state": "",
        "heading": name,
        "about": [] if task is None else [task.name, task.learns],
        "checks": [
            {"name": each, "facts": check.facts(), "warnings": check.warnings()} for each, check in checks.items()
        ],
        "title_of_rows": "1 example" if len(shown) == 1 else f"{len(shown)} examples",
        "shows_learned": any(text.learned is not None for text in texts),
        "kinds": [{"name": kind, "color": color} for kind, color in colors.items()],
        "rows": [_row(number, row, tokenizer, colors) for number, row in enumerate(shown, 1)],
    }
    atomic.write(path, render("preview.html", values, __package__ or ""))
    return path


def _colors(rows: Sequence[Encoded]) -> dict[str, int]:
    """The color of each kind of entity, or of each tag of another scheme."""
    kinds = {kind for row in rows for text in row.texts for kind, _, _ in _spans(text)}
    return {kind: place % 8 for place, kind in enumerate(sorted(kinds))}


def _spans(text: EncodedText) -> list[tuple[str, int, int]]:
    """Kind, first token, and the token behind the last of each entity: a word's tokens share the tag of its first."""
    if text.tags is None:
        return []
    first = [place for place, tag in enumerate(text.tags) if tag is not None]
    tags = [tag for tag in text.tags if tag is not None]
    behind = [*first[1:], len(text.tags)]
    return [(kind, first[start], behind[end - 1]) for kind, start, end in kind_spans(tags, grouped=text.grouped)]


def _row(number: int, row: Encoded, tokenizer: Tokenizer, colors: Mapping[str, int]) -> dict[str, Any]:
    special = tokenizer.special_ids
    texts = [
        {
            "title": text.title,
            "counts": _counts(text),
            "tokens": list(_tokens(text, tokenizer, special, colors)),
            "notes": list(_notes(text)),
        }
        for text in row.texts
    ]
    return {"number": number, "where": str(row.example.location), "label": row.label, "texts": texts}


def _counts(text: EncodedText) -> str:
    learned = "" if text.learned is None else f", {sum(text.learned):,} learned"
    return f"{len(text.tokens):,} token{'s' * (len(text.tokens) != 1)}{learned}"


def _notes(text: EncodedText) -> Iterator[str]:
    if len(text.tokens) > _TOKENS:
        yield f"Not drawn: {len(text.tokens) - _TOKENS:,} more tokens."
    if text.cut.tokens:
        lost = f", {text.cut.targets:,} of them to be learned" if text.cut.targets else ""
        end = " The end of the answer is lost." if text.cut.lost_end else ""
        yield f"Cut off: {text.cut.tokens:,} more token{'s' * (text.cut.tokens != 1)}{lost}.{end}"


def _tokens(
    text: EncodedText, tokenizer: Tokenizer, special: frozenset[int], colors: Mapping[str, int]
) -> Iterator[dict[str, Any]]:
    ids = list(text.tokens[:_TOKENS])
    entity = {place: (kind, place == end - 1) for kind, start, end in _spans(text) for place in range(start, end)}
    for place, (token, piece) in enumerate(zip(ids, pieces(tokenizer, ids), strict=True)):
        tag = None if text.tags is None else text.tags[place]
        kind, ends = entity.get(place, ("", False)) if token not in special else ("", False)
        kinds = {
            "learned": text.learned is not None and text.learned[place],
            "special": token in special,
            "entity": bool(kind),
            "byte": not piece,
        }
        yield {
            # A line end is drawn as what it is, and goes to the next line.
            "text": piece.replace("\n", "↵\n") or "·",
            "kind": " ".join(name for name, holds in kinds.items() if holds),
            "title": " ".join(filter(None, [str(token), tokenizer.token(token), tag])),
            "tag": kind if ends else None,
            "color": colors.get(kind),
        }


def pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """The text of each token: a character of several tokens is that of the last one, and empty for the others.

    They are, joined, the text of all ids with its special tokens; words of BERT's tokenizers are not put together as
    written text is.
    """
    if tokenizer.cleans_up:
        words = [tokenizer.token(token) or "" for token in ids]
        return [
            f" {word}" if k and not word.startswith("##") else word.removeprefix("##") for k, word in enumerate(words)
        ]
    decoder = StreamDecoder(tokenizer, skip_special=False)
    found = [decoder.push(token) for token in ids]
    if found:
        found[-1] += decoder.flush()
    return found
