"""Regular expressions of a tokenizer.json, which are Oniguruma's, in JavaScript's words."""

import re

from anyformer.errors import UserError, quote
from anyformer.terminal import shorten

WHITE_SPACE = r"\t-\r \u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_WORD = r"\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\u00b2\u00b3\u00b9\u00bc-\u00be"
_SHORTHANDS = {"s": WHITE_SPACE, "d": r"\p{Nd}", "w": _WORD}
_GROUPS = ("(?:", "(?=", "(?!", "(?<=", "(?<!")
_SYNTAX = r"^$\.*+?()[]{}|/"
_CATEGORY = re.compile("L[ultmo]?|M[nce]?|N[dlo]?|P[cdseifo]?|S[mcko]?|Z[slp]?|C[cf]?")
_SCRIPT = re.compile("Han|Hiragana|Katakana|Hangul|Thai|Lao|Khmer|Myanmar|Cyrillic|Latin|Greek|Arabic|Hebrew")
_FOLDED = {"s": "\u017f", "k": "\u212a"}
"""Letters that differ from these in case alone, beside the capital."""
_TOKEN = re.compile(
    r"(?P<property>\\[pP]\{\^?\w+\})|(?P<escape>\\.)|(?P<group>\(\?(?:[a-z]*:|<[=!]|[=!]))"
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
            if text in ("[", "&") or (text == "(?i:"):
                raise _unknown(pattern, text)
            in_class = text != "]"
            out.append(text)
        elif kind == "group":
            if text not in (*_GROUPS, "(?i:"):
                raise _unknown(pattern, text)
            case.append(case[-1] or text == "(?i:")
            out.append("(?:" if text == "(?i:" else text)
        elif kind == "quantifier":
            # Possessive in Oniguruma, or a group of another kind.
            if (quantified and text != "?") or not out or out[-1][-1:] in "(|:":
                raise _unknown(pattern, f"{out[-1]}{text}")
            out.append(text)
        elif text == "(":
            case.append(case[-1])
            out.append("(?:")
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
