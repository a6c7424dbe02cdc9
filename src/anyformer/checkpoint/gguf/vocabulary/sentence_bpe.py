"""SentencePiece's BPE with bytes for what it does not know, llama.cpp's `llama` (Kudo & Richardson 2018).

llama.cpp has scores where `tokenizer.json` has merges: it joins the two neighbors that make the token of the highest
score, whichever two they are.
"""

import re
from typing import Any, cast

from anyformer.checkpoint.gguf.vocabulary.entries import NORMAL, Entries
from anyformer.errors import UserError
from anyformer.tokenizer.gguf import BYTE, UNKNOWN
from anyformer.tokenizer.sentencepiece import SPACE

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def describe(pipeline: Any, entries: Entries, notes: list[str]) -> dict[str, Any]:
    """The metadata. Raises UserError for what llama.cpp's algorithm can't follow."""
    model = pipeline["model"]
    prefix = _prefix(pipeline, notes)
    if not {f"<0x{byte:02X}>" for byte in range(256)} <= set(entries.tokens):
        raise UserError("llama.cpp's SentencePiece tokenizer needs a token for every byte, which this one lacks.")
    entries.scores = _scores(model, entries)
    for i, token in enumerate(entries.tokens):
        if _BYTE.fullmatch(token) and entries.kinds[i] == NORMAL:
            entries.kinds[i] = BYTE
        elif token == model.get("unk_token"):
            entries.kinds[i] = UNKNOWN
    return {"model": "llama", "pre": "default", "add_space_prefix": prefix, **entries.around()}


def _prefix(pipeline: Any, notes: list[str]) -> bool:
    """Whether a text gets a space at its beginning. Raises UserError for other changes to it."""
    normalizer, words = pipeline.get("normalizer"), pipeline.get("pre_tokenizer")
    parts = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
    steps = [(part["type"], part.get("prepend"), (part.get("pattern") or {}).get("String")) for part in parts]
    replace = ("Replace", None, " ")
    if words is None and steps == [("Prepend", SPACE, None), replace]:
        return True
    if words is None and steps == [replace]:
        return False
    if not steps and words is not None and words["type"] == "Metaspace" and not words.get("split", True):
        if words["prepend_scheme"] == "never":
            return False
        where = {
            "first": "after special tokens inside a text and before one that begins with a space",
            "always": "before a text that begins with a space",
        }
        notes.append(f"llama.cpp puts a space {where[words['prepend_scheme']]}; this tokenizer puts none there.")
        return True
    raise UserError("llama.cpp can't prepare text as this tokenizer does (its normalizer and pre_tokenizer).")


def _scores(model: Any, entries: Entries) -> list[float]:
    """Minus the place of a token's first merge. Raises UserError where scores can't stand for these merges."""
    pairs = [cast("tuple[str, str]", tuple(p.split(" ") if isinstance(p, str) else p)) for p in model["merges"]]
    first: dict[str, int] = {}
    last = ""
    for place, (left, right) in enumerate(pairs):
        token = left + right
        if token != last and token in first:
            raise _not_scores()
        first.setdefault(token, place)
        last = token
    known, made = set(model["vocab"]), set(pairs)
    for token in first:
        for cut in range(1, len(token)):
            if token[:cut] in known and token[cut:] in known and (token[:cut], token[cut:]) not in made:
                raise _not_scores()
    # A token that nothing makes is a single character, or one that is found before any merging.
    return [float(-first[token]) if token in first else float(-len(pairs)) for token in entries.tokens]


def _not_scores() -> UserError:
    return UserError(
        "llama.cpp can't follow this tokenizer: it joins any two neighbors that make a token, best score first, and "
        "these merges are not in such an order."
    )
