"""SentencePiece's unigram model, llama.cpp's `t5` (Kudo 2018)."""

import base64
from typing import Any, cast

from anyformer.checkpoint.gguf.vocabulary.byte_bpe import COMPOSED
from anyformer.checkpoint.gguf.vocabulary.entries import Entries
from anyformer.errors import UserError
from anyformer.tokenizer.gguf import UNKNOWN
from anyformer.tokenizer.sentencepiece import SPACE


def describe(pipeline: Any, entries: Entries, notes: list[str]) -> dict[str, Any]:
    """The metadata. Raises UserError for what llama.cpp's algorithm can't follow."""
    model = pipeline["model"]
    if model.get("byte_fallback"):
        raise UserError("llama.cpp's unigram tokenizer does not write unknown characters as bytes; this one does.")
    pieces = cast("list[tuple[str, float]]", model["vocab"])
    entries.scores = [float(pieces[i][1]) if i < len(pieces) else 0.0 for i in range(len(entries.tokens))]
    if model.get("unk_id") is None:
        raise UserError("llama.cpp's unigram tokenizer needs a token for what is unknown, which this one lacks.")
    entries.kinds[model["unk_id"]] = UNKNOWN
    return {
        "model": "t5",
        "pre": "default",
        "unknown_token_id": model["unk_id"],
        **_spaces(pipeline.get("pre_tokenizer"), notes),
        **_characters(pipeline.get("normalizer"), notes),
        **entries.around(),
    }


def _characters(normalizer: Any, notes: list[str]) -> dict[str, Any]:
    """SentencePiece's table of characters, where there is one. Raises UserError for other changes to the text."""
    parts = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
    said: dict[str, Any] = {}
    for part in parts:
        if part["type"] == "Precompiled" and not said:
            said["precompiled_charsmap"] = base64.b64decode(part["precompiled_charsmap"])
        elif part["type"] in COMPOSED:
            notes.append(
                f"llama.cpp does not bring text into the form {part['type']} first, as this tokenizer does: text that "
                "is in another form gets other tokens."
            )
        elif part["type"] not in ("Strip", "Replace") or not said:
            raise UserError(f"llama.cpp can't prepare text as this tokenizer does ({part['type']}).")
    return said


def _spaces(words: Any, notes: list[str]) -> dict[str, Any]:
    """Whether runs of spaces count as one. Raises UserError for a way of cutting words that llama.cpp can't follow."""
    parts = [] if words is None else words.get("pretokenizers", [words])
    kinds = [part["type"] for part in parts]
    space = parts[-1] if kinds and kinds[-1] == "Metaspace" else None
    if space is None or space["replacement"] != SPACE or space["prepend_scheme"] == "never":
        raise UserError("llama.cpp can't cut words as this tokenizer does (its pre_tokenizer).")
    if kinds == ["WhitespaceSplit", "Metaspace"]:
        return {"add_space_prefix": True, "remove_extra_whitespaces": True}
    if kinds != ["Metaspace"] and not (kinds == ["Split", "Metaspace"] and parts[0]["pattern"] == {"String": "\n"}):
        raise UserError("llama.cpp can't cut words as this tokenizer does (its pre_tokenizer).")
    notes.append(
        "llama.cpp puts a space before a text, or the rest of one after a special token, that begins with a space; "
        "this tokenizer puts none there."
    )
    return {"add_space_prefix": True, "remove_extra_whitespaces": False}
