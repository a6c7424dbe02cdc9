"""Description of a tokenizer for a page's script: the pipeline of its tokenizer.json, checked and completed.

Its regular expressions, which are Oniguruma's, become JavaScript's.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from typing import Any, cast
from unicodedata import category

from tokenizers import normalizers, pre_tokenizers

from anyformer.config import SpecialTokens
from anyformer.errors import UserError, quote
from anyformer.terminal import shorten
from anyformer.tokenizer import Tokenizer
from anyformer.tokenizer.prompt import encode_decoder_prompt

Settings = Mapping[str, Any]

_BYTE_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""Words as byte-level BPE splits them by default (GPT-2's code, encoder.py)."""
_KINDS = {
    "normalizer": "NFC NFD NFKC NFKD Lowercase StripAccents Strip Replace Prepend ByteLevel BertNormalizer Precompiled",
    "pre-tokenizer": "ByteLevel Metaspace Split BertPreTokenizer Whitespace WhitespaceSplit Punctuation Digits",
    "decoder": "ByteLevel WordPiece Metaspace Fuse Replace ByteFallback Strip BPEDecoder",
}
"""The kinds of each part of a pipeline that a page's script knows, beside sequences of them."""
_SEQUENCES = ("normalizers", "pretokenizers", "decoders")
_UNKNOWN = "a page doesn't know it: train a tokenizer with anyformer, or take another model."


def describe_tokenizer(tokenizer: Tokenizer, tokens: SpecialTokens) -> dict[str, Any]:
    """The tokenizer as data, from which a page's script gets the ids that the tokenizer gives.

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
    letter = next((token for token in vocabulary if token is not None and len(token) == 1 and token.isalnum()), "a")
    before, _, after = tokenizer.encode_parts(letter)
    return {
        "vocabulary": vocabulary,
        "added": pipeline["added_tokens"],
        "special": [token["id"] for token in pipeline["added_tokens"] if token["special"]],
        "normalizer": _part(pipeline["normalizer"], "normalizer"),
        "pre_tokenizer": _part(pipeline["pre_tokenizer"], "pre-tokenizer"),
        "model": {"type": model["type"], **_MODELS[model["type"]](model)},
        "decoder": _part(pipeline["decoder"], "decoder"),
        "around": {"before": before, "after": after},
        "empty": encode_decoder_prompt(tokenizer, "", tokens),
        "closed": not can_encode(tokenizer, "\U0010ffff"),
        "clean_up": tokenizer.cleans_up,
        "mask": None if tokenizer.mask_token is None else {"id": tokenizer.mask, "text": tokenizer.mask_token},
    }


def _vocabulary(model: Settings) -> list[str | None]:
    if model["type"] == "Unigram":
        return [piece for piece, _ in model["vocab"]]
    tokens: list[str | None] = [None] * (max(model["vocab"].values(), default=-1) + 1)
    if len(tokens) > 4 * len(model["vocab"]) + 1000:
        raise UserError(
            f"The tokenizer's ids go up to {len(tokens) - 1:,} for {len(model['vocab']):,} tokens, for which no page "
            "has room: number them from 0 on."
        )
    for token, index in model["vocab"].items():
        tokens[index] = token
    return tokens


def can_encode(tokenizer: Tokenizer, text: str) -> bool:
    """Whether the tokenizer has a token for every character of a text."""
    try:
        tokenizer.require_encodable([text])
    except UserError:
        return False
    return True


def _part(settings: Settings | None, what: str) -> dict[str, Any] | None:
    """A normalizer, pre-tokenizer or decoder; its patterns become JavaScript's."""
    if settings is None:
        return None
    kind = str(settings["type"])
    if kind not in ("Sequence", *_KINDS[what].split()):
        raise UserError(f"The tokenizer has the {what} {kind[:40]}, and {_UNKNOWN}")
    described = dict(settings)
    for name in _SEQUENCES:
        if name in described:
            described[name] = [_part(part, what) for part in cast("list[Settings]", described[name])]
    if "pattern" in described:
        pattern: Any = described.pop("pattern")
        described["regex"] = to_javascript(pattern["Regex"]) if "Regex" in pattern else literal(pattern["String"])
    if kind == "ByteLevel":
        described["regex"] = to_javascript(_BYTE_WORDS) if described.get("use_regex", True) else None
    elif kind == "Precompiled":
        described["table"] = described.pop("precompiled_charsmap")
    elif kind in ("BertPreTokenizer", "Punctuation"):
        described["punctuation"] = punctuation()
    elif kind == "BertNormalizer":
        described |= {"controls": removed_characters("controls"), "accents": removed_characters("BERT's accents")}
    elif kind == "StripAccents":
        described["accents"] = removed_characters("accents")
    return described


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


_MODELS: dict[str, Callable[[Settings], dict[str, Any]]] = {
    "BPE": _byte_pairs,
    "WordPiece": lambda model: {
        "unk": model["vocab"][model["unk_token"]],
        "prefix": model["continuing_subword_prefix"],
        "longest": model["max_input_chars_per_word"],
    },
    "Unigram": lambda model: {
        "pieces": [piece for piece, _ in model["vocab"]],
        "scores": [score for _, score in model["vocab"]],
        "unk": model["unk_id"],
        "byte_fallback": model["byte_fallback"],
    },
    "WordLevel": lambda model: {"unk": model["vocab"].get(model["unk_token"])},
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
def removed_characters(what: str) -> str:
    """Characters that a normalizer removes from a text; as `punctuation`.

    Args:
        what: "controls" or "BERT's accents", by BERT's normalizer, or "accents", by StripAccents.
    """
    bert = partial(normalizers.BertNormalizer, handle_chinese_chars=False, lowercase=False)
    normalizer, kinds = {
        "controls": (partial(bert, strip_accents=False), "CS"),
        "BERT's accents": (partial(bert, clean_text=False, strip_accents=True), "M"),
        "accents": (normalizers.StripAccents, "M"),
    }[what]
    remove = normalizer().normalize_str
    return _ranges(ord(character) for character in _characters(kinds) if not remove(character))


def _characters(kinds: str) -> list[str]:
    """The characters of some categories, by their first letters: to ask the library about all takes a second."""
    codes = (code for code in range(0x110000) if not 0xD800 <= code < 0xE000)
    return [
        character for character in map(chr, codes) if category(character)[0] in kinds and category(character) != "Cn"
    ]


def _ranges(codes: Iterable[int]) -> str:
    """Code points in order as ranges."""
    ranges: list[tuple[int, int]] = []
    for code in codes:
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1] = (ranges[-1][0], code)
        else:
            ranges.append((code, code))
    return "".join(f"\\u{{{first:x}}}" + ("" if first == last else f"-\\u{{{last:x}}}") for first, last in ranges)


_WHITE_SPACE = r"\t-\r \u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_WORD = r"\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\u00b2\u00b3\u00b9\u00bc-\u00be"
_SHORTHANDS = {"s": _WHITE_SPACE, "d": r"\p{Nd}", "w": _WORD}
_GROUPS = ("(?:", "(?=", "(?!", "(?<=", "(?<!", "(", "(?i:")
_SYNTAX = r"^$\.*+?()[]{}|/"
_CATEGORY = re.compile("L[ultmo]?|M[nce]?|N[dlo]?|P[cdseifo]?|S[mcko]?|Z[slp]?|C[cf]?")
_SCRIPT = re.compile("Han|Hiragana|Katakana|Hangul|Thai|Lao|Khmer|Myanmar|Cyrillic|Latin|Greek|Arabic|Hebrew")
_FOLDED = {"s": "\u017f", "k": "\u212a"}
"""Letters that differ from these in case alone, beside the capital."""
_TOKEN = re.compile(
    r"(?P<property>\\[pP]\{\^?\w+\})|(?P<escape>\\.)|(?P<group>\((?:\?(?:[a-z]*:|<[=!]|[=!]))?)"
    r"|(?P<quantifier>\{\d*,?\d*\}|[*+?])|(?P<other>.)",
    re.DOTALL,
)


def to_javascript(pattern: str) -> str:
    """A pattern that finds in JavaScript, with the flag u, what it finds in Oniguruma.

    Raises:
        UserError: it has something that is not known to mean the same in both.
    """
    out: list[str] = []
    case: list[bool] = [False]  # whether case is ignored, in each of the groups around a place
    in_class = quantified = False
    for match in _TOKEN.finditer(pattern):
        kind, text = match.lastgroup, match.group()
        if kind == "property":
            out.append(_property(text, pattern))
        elif kind == "escape":
            out.append(_escape(text[1], in_class, case[-1], pattern))
        elif in_class:
            if text in ("[", "&", "(?i:"):
                raise _unknown(pattern, text)
            in_class = text != "]"
            out.append(text)
        elif kind == "group":
            if text not in _GROUPS:
                raise _unknown(pattern, text)
            case.append(case[-1] or text == "(?i:")
            out.append("(?:" if text in ("(", "(?i:") else text)
        elif kind == "quantifier":
            # Possessive in Oniguruma, or a group of another kind.
            if (quantified and text != "?") or not out or out[-1][-1:] in "(|:":
                raise _unknown(pattern, f"{out[-1]}{text}")
            out.append(text)
        elif text == ")":
            if len(case) == 1:
                raise _unknown(pattern, text)
            case.pop()
            out.append(text)
        elif text == "[":
            in_class = True
            out.append(text)
        elif text in "^$":  # those of lines in Oniguruma
            raise _unknown(pattern, text)
        elif text == ".":
            out.append(r"[^\n]")
        elif text in "{}]/":
            out.append("\\" + text)
        else:
            out.append(_letter(text, case[-1]))
        quantified = kind == "quantifier" and not in_class
    if in_class or len(case) > 1:
        raise _unknown(pattern, "its end")
    return "".join(out)


def literal(text: str) -> str:
    """The pattern of a text."""
    return "".join("\\" + character if character in _SYNTAX else character for character in text)


def _letter(text: str, ignores_case: bool) -> str:
    lower, upper = text.lower(), text.upper()
    if not ignores_case or lower == upper:
        return text
    return f"[{lower}{upper}{_FOLDED.get(lower, '')}]"


def _property(text: str, pattern: str) -> str:
    name = text[3:-1]
    negated = (text[1] == "P") != name.startswith("^")
    name = name.removeprefix("^")
    if _SCRIPT.fullmatch(name):
        name = f"Script={name}"
    elif not _CATEGORY.fullmatch(name):
        raise _unknown(pattern, text)
    return rf"\{'P' if negated else 'p'}{{{name}}}"


def _escape(letter: str, in_class: bool, ignores_case: bool, pattern: str) -> str:
    if letter.lower() in _SHORTHANDS:
        inside = _SHORTHANDS[letter.lower()]
        if letter.islower():
            return inside if in_class else f"[{inside}]"
        if in_class:
            raise _unknown(pattern, f"\\{letter} in brackets")
        return f"[^{inside}]"
    if letter in "rntvf":
        return f"\\{letter}"
    if letter.isalnum():
        raise _unknown(pattern, f"\\{letter}")
    return f"\\{letter}" if letter in _SYNTAX or (letter == "-" and in_class) else letter


def _unknown(pattern: str, what: str) -> UserError:
    return UserError(
        f"The tokenizer splits text by the regular expression {quote(shorten(pattern, 80))}, and a page doesn't know "
        f"{quote(what)} in it: train a tokenizer with anyformer, or take another model."
    )
