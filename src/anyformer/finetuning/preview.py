"""A page that draws examples as the model will see them, before training on them.

The page is one file that asks nothing of a network and runs no script. Texts in it are escaped.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from anyformer import atomic
from anyformer.evaluation.label_metrics import kind_spans
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
        rows: Examples, the first `ROWS` of which are drawn.
        checks: The counts above them, by name.

    Raises:
        UserError: the file is there already and no such page, or the disk refuses.
    """
    require_page(path)
    shown = rows[:ROWS]
    # The color of each kind of entity, or of each tag of another scheme.
    kinds = {kind for row in shown for text in row.texts for kind, _, _ in _spans(text)}
    colors = {kind: index % 8 for index, kind in enumerate(sorted(kinds))}
    values = {
        "title": f"{name} · anyformer",
        "state": "",
        "heading": name,
        "checks": checks,
        "colors": colors,
        "shows_learned": any(text.loss_mask is not None for row in rows for text in row.texts),
        "rows": [(row, [_text(text, tokenizer, colors) for text in row.texts]) for row in shown],
    }
    atomic.write(path, render("preview.html", values, __package__ or ""))
    return path


def _spans(text: EncodedText) -> list[tuple[str, int, int]]:
    """Kind, first token, and the token behind the last of each entity: a word's tokens share the tag of its first."""
    if text.tags is None:
        return []
    first = [index for index, tag in enumerate(text.tags) if tag is not None]
    tags = [tag for tag in text.tags if tag is not None]
    behind = [*first[1:], len(text.tags)]
    return [(kind, first[start], behind[end - 1]) for kind, start, end in kind_spans(tags, grouped=text.grouped)]


def _text(text: EncodedText, tokenizer: Tokenizer, colors: Mapping[str, int]) -> dict[str, Any]:
    learned = "" if text.loss_mask is None else f", {sum(text.loss_mask):,} learned"
    notes: list[str] = []
    if len(text.tokens) > _TOKENS:
        notes.append(f"Not drawn: {len(text.tokens) - _TOKENS:,} more tokens.")
    if text.cut.tokens:
        lost = f", {text.cut.targets:,} of them to be learned" if text.cut.targets else ""
        end = " The end of the answer is lost." if text.cut.lost_end else ""
        notes.append(f"Cut off: {text.cut.tokens:,} more token{'s' * (text.cut.tokens != 1)}{lost}.{end}")
    return {
        "title": text.title,
        "counts": f"{len(text.tokens):,} token{'s' * (len(text.tokens) != 1)}{learned}",
        "tokens": list(_tokens(text, tokenizer, colors)),
        "notes": notes,
    }


def _tokens(text: EncodedText, tokenizer: Tokenizer, colors: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    ids, special = list(text.tokens[:_TOKENS]), tokenizer.special_ids
    entities = {index: (kind, index == end - 1) for kind, start, end in _spans(text) for index in range(start, end)}
    for index, (token, piece) in enumerate(zip(ids, pieces(tokenizer, ids), strict=True)):
        tag = None if text.tags is None else text.tags[index]
        kind, ends = entities.get(index, ("", False)) if token not in special else ("", False)
        kinds = {
            "learned": text.loss_mask is not None and text.loss_mask[index],
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
    """The text of each token, which joined are the text of all ids with its special tokens.

    A character of several tokens is that of the last one. Words of BERT's tokenizers stay apart.
    """
    if tokenizer.cleans_up:
        words = [tokenizer.token(token) or "" for token in ids]
        return [
            f" {word}" if k and not word.startswith("##") else word.removeprefix("##") for k, word in enumerate(words)
        ]
    decoder = StreamDecoder(tokenizer, skip_special=False)
    texts = [decoder.push(token) for token in ids]
    if texts:
        texts[-1] += decoder.flush()
    return texts
