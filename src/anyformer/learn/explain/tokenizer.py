"""Description of a tokenizer for a page's script: the pipeline of its tokenizer.json, checked and completed."""

import json
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, cast
from unicodedata import category

from tokenizers import normalizers, pre_tokenizers

from anyformer.config import SpecialTokens
from anyformer.errors import UserError
from anyformer.learn.explain.regex import literal, to_javascript
from anyformer.tokenizer import Tokenizer
from anyformer.tokenizer.prompt import encode_decoder_prompt

Settings = Mapping[str, Any]

_BYTE_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""How byte-level BPE splits words where nothing else is said (GPT-2's code, encoder.py)."""
_NORMALIZERS = frozenset(
    {"Sequence", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents"}
    | {"Strip", "Replace", "Prepend", "ByteLevel", "BertNormalizer", "Precompiled"}
)
_PRE_TOKENIZERS = frozenset(
    {"Sequence", "ByteLevel", "Metaspace", "Split", "BertPreTokenizer"}
    | {"Whitespace", "WhitespaceSplit", "Punctuation", "Digits"}
)
_DECODERS = frozenset(
    {"Sequence", "ByteLevel", "WordPiece", "Metaspace", "Fuse"} | {"Replace", "ByteFallback", "Strip", "BPEDecoder"}
)
_SEQUENCES = ("normalizers", "pretokenizers", "decoders")
_UNKNOWN = "a page doesn't know it: train a tokenizer with anyformer, or take another model."


def describe_tokenizer(tokenizer: Tokenizer, tokens: SpecialTokens) -> dict[str, Any]:
    """The tokenizer as data, from which a page's script gets the ids that the tokenizer gives.

    Args:
        tokenizer: The model's.
        tokens: The model's own special tokens.

    Raises:
        UserError: it has a part that a page's script doesn't know.
    """
    pipeline: dict[str, Any] = json.loads(tokenizer.backend.to_str())
    if type(tokenizer) is not Tokenizer:
        raise UserError(f"The tokenizer is in the files of Marian's two SentencePiece models, and {_UNKNOWN}")
    model = pipeline["model"]
    if model["type"] not in _MODELS:
        raise UserError(f"The tokenizer's model is {model['type']}, and {_UNKNOWN}")
    vocabulary = _vocabulary(model)
    before, after = _around(tokenizer, vocabulary)
    return {
        "vocabulary": vocabulary,
        "added": pipeline["added_tokens"],
        "special": [token["id"] for token in pipeline["added_tokens"] if token["special"]],
        "normalizer": _part(pipeline["normalizer"], _NORMALIZERS, "normalizer"),
        "pre_tokenizer": _part(pipeline["pre_tokenizer"], _PRE_TOKENIZERS, "pre-tokenizer"),
        "model": {"type": model["type"], **_MODELS[model["type"]](model)},
        "decoder": _part(pipeline["decoder"], _DECODERS, "decoder"),
        "around": {"before": before, "after": after},
        "empty": encode_decoder_prompt(tokenizer, "", tokens),
        "closed": _refuses(tokenizer, "\U0010ffff"),
        "clean_up": tokenizer.cleans_up,
        "mask": None if tokenizer.mask_token is None else {"id": tokenizer.mask, "text": tokenizer.mask_token},
    }


def _vocabulary(model: Settings) -> list[str | None]:
    """The token of each id."""
    if model["type"] == "Unigram":
        return [piece for piece, _ in model["vocab"]]
    found: list[str | None] = [None] * (max(model["vocab"].values(), default=-1) + 1)
    if len(found) > 4 * len(model["vocab"]) + 1000:
        raise UserError(
            f"The tokenizer's ids go up to {len(found) - 1:,} for {len(model['vocab']):,} tokens, for which no page "
            "has room: number them from 0 on."
        )
    for token, index in model["vocab"].items():
        found[index] = token
    return found


def _around(tokenizer: Tokenizer, vocabulary: list[str | None]) -> tuple[list[int], list[int]]:
    """The ids that are put before and after a text."""
    known = next((token for token in vocabulary if token is not None and len(token) == 1 and token.isalnum()), "a")
    before, _, after = tokenizer.encode_parts(known)
    return before, after


def _refuses(tokenizer: Tokenizer, text: str) -> bool:
    """Whether the tokenizer knows no characters but those of its vocabulary."""
    try:
        tokenizer.require_encodable([text])
    except UserError:
        return True
    return False


def _part(settings: Settings | None, known: frozenset[str], what: str) -> dict[str, Any] | None:
    """A normalizer, pre-tokenizer or decoder; its patterns become JavaScript's."""
    if settings is None:
        return None
    kind = str(settings["type"])
    if kind not in known:
        raise UserError(f"The tokenizer has the {what} {kind[:40]}, and {_UNKNOWN}")
    found = dict(settings)
    for name in _SEQUENCES:
        if name in found:
            found[name] = [_part(part, known, what) for part in cast("list[Settings]", found[name])]
    if "pattern" in found:
        pattern: Any = found.pop("pattern")
        found["regex"] = to_javascript(pattern["Regex"]) if "Regex" in pattern else literal(pattern["String"])
    if kind == "ByteLevel":
        found["regex"] = to_javascript(_BYTE_WORDS) if found.get("use_regex", True) else None
    elif kind == "Precompiled":
        found["table"] = found.pop("precompiled_charsmap")
    elif kind in ("BertPreTokenizer", "Punctuation"):
        found["punctuation"] = punctuation()
    elif kind == "BertNormalizer":
        found |= {"controls": controls(), "accents": accents(bert=True)}
    elif kind == "StripAccents":
        found["accents"] = accents(bert=False)
    return found


def _byte_pairs(model: Settings) -> dict[str, Any]:
    if model.get("dropout"):
        raise UserError(f"The tokenizer leaves out merges at random (dropout {model['dropout']}), and {_UNKNOWN}")
    vocabulary: Mapping[str, int] = model["vocab"]
    prefix = model.get("continuing_subword_prefix") or ""
    merges: list[int] = []
    for merge in model["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        merges += [vocabulary[left], vocabulary[right], vocabulary[left + right.removeprefix(prefix)]]
    return {
        "merges": merges,
        "unk": vocabulary.get(model["unk_token"]) if model["unk_token"] is not None else None,
        "fuse_unk": model["fuse_unk"],
        "byte_fallback": model["byte_fallback"],
        "prefix": prefix,
        "suffix": model.get("end_of_word_suffix") or "",
        "ignore_merges": model["ignore_merges"],
    }


def _word_pieces(model: Settings) -> dict[str, Any]:
    return {
        "unk": model["vocab"][model["unk_token"]],
        "prefix": model["continuing_subword_prefix"],
        "longest": model["max_input_chars_per_word"],
    }


def _unigram(model: Settings) -> dict[str, Any]:
    pieces, scores = zip(*model["vocab"], strict=True)
    return {"pieces": pieces, "scores": scores, "unk": model["unk_id"], "byte_fallback": model["byte_fallback"]}


def _whole_words(model: Settings) -> dict[str, Any]:
    return {"unk": model["vocab"].get(model["unk_token"])}


_MODELS: dict[str, Callable[[Settings], dict[str, Any]]] = {
    "BPE": _byte_pairs,
    "WordPiece": _word_pieces,
    "Unigram": _unigram,
    "WordLevel": _whole_words,
}


_SEPARATOR = "a"
"""A letter that no kind of character here includes, and that no accent is put on."""


@cache
def punctuation() -> str:
    """Characters that split words in BERT's pre-tokenizer, as the inside of a character class of JavaScript's."""
    text = _SEPARATOR.join(["", *_characters("PSM"), ""])
    words = pre_tokenizers.Punctuation("isolated").pre_tokenize_str(text)
    return _ranges(ord(word) for word, _ in words if len(word) == 1 and word != _SEPARATOR)


@cache
def controls() -> str:
    """Characters that BERT's normalizer removes when it cleans a text; as `punctuation`."""
    clean = normalizers.BertNormalizer(handle_chinese_chars=False, strip_accents=False, lowercase=False)
    return _removed(clean, "CS")


@cache
def accents(*, bert: bool) -> str:
    """Characters removed as accents, by BERT's normalizer or by StripAccents; as `punctuation`."""
    if not bert:
        return _removed(normalizers.StripAccents(), "M")
    strip = normalizers.BertNormalizer(
        clean_text=False, handle_chinese_chars=False, strip_accents=True, lowercase=False
    )
    return _removed(strip, "M")


def _characters(kinds: str) -> list[str]:
    """The characters of some categories, by their first letters: to ask the library about all takes a second."""
    codes = (code for code in range(0x110000) if not 0xD800 <= code < 0xE000)
    return [
        character for character in map(chr, codes) if category(character)[0] in kinds and category(character) != "Cn"
    ]


def _removed(normalizer: normalizers.Normalizer, kinds: str) -> str:
    return _ranges(ord(character) for character in _characters(kinds) if not normalizer.normalize_str(character))


def _ranges(codes: Iterable[int]) -> str:
    """Code points in order as ranges."""
    found: list[tuple[int, int]] = []
    for code in codes:
        if found and found[-1][1] == code - 1:
            found[-1] = (found[-1][0], code)
        else:
            found.append((code, code))
    return "".join(f"\\u{{{first:x}}}" + ("" if first == last else f"-\\u{{{last:x}}}") for first, last in found)
