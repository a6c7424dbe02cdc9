"""Kinds of characters as the library `tokenizers` tells them apart, whose Unicode is older than that of browsers."""

from collections.abc import Iterable
from functools import cache
from unicodedata import category

from tokenizers import normalizers, pre_tokenizers

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
