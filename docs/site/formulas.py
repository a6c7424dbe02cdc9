"""Formulas of docstrings, typeset: ``softmax(q k^T / sqrt(head_dim)) v`` becomes MathML, which browsers draw.

In the sources formulas are written so that they can be read there. What stands between double backticks and isn't one
stays code.
"""

import re
from xml.etree.ElementTree import Element

from markdown import Markdown
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor

_TOKEN = re.compile(
    r"\s*(?P<number>\d+(?:\.\d+)?)|\s*(?P<name>[A-Za-z]\w*)|\s*(?P<operator>\*\*|<-|<=|>=|[-+*/@^=<>,()\[\]|])"
)
_TRANSPOSED = re.compile(r"\.T\b")
_SHOWN = {"*": "⋅", "@": "", "<-": "←", "-": "−", "<=": "≤", ">=": "≥"}
_RELATIONS = ("=", "<-", "<", ">", "<=", ">=", ",")
_OPERATORS = {"*", "**", "/", "^", "@", "<-"}
"""One of these, or a call of one of the functions below, makes a formula of a text."""
_FUNCTIONS = {"softmax", "sqrt", "mean", "var", "log", "exp", "sin", "cos", "max", "min"}
_FUNCTIONS |= {"act", "up", "down", "norm", "dropout", "N", "p"}
_WORDS = {"theta": "θ", "alpha": "α", "beta": "β", "sigma": "σ"}


class NotAFormulaError(ValueError):
    """The text is something else."""


def mathml(text: str) -> Element:
    """A formula as a `math` element. Raises NotAFormulaError for text that isn't one."""
    formula = _Formula(text)
    inner = formula.relation()
    if formula.tokens:
        raise NotAFormulaError(text)
    math = Element("math", {"class": "formula"})
    math.append(inner)
    return math


def _tokens(text: str) -> list[str]:
    found: list[str] = []
    place, text = 0, _TRANSPOSED.sub("^T", text.rstrip())
    while place < len(text):
        token = _TOKEN.match(text, place)
        if token is None:
            raise NotAFormulaError(text)
        # f(x) is a call, f (x) a product.
        called = token["name"] and text[token.end() : token.end() + 1] == "("
        found.append(token[0].strip() + ("(" if called else ""))
        place = token.end() + bool(called)
    calls = {token[:-1] for token in found if token.endswith("(")}
    if not ((_OPERATORS & {*found} and (" " in text or calls)) or _FUNCTIONS & calls):
        raise NotAFormulaError(text)
    return found


class _Formula:
    """A formula, read from left to right: a method a level of precedence."""

    def __init__(self, text: str) -> None:
        self.tokens = _tokens(text)

    def relation(self) -> Element:
        row = [self.sum()]
        while self.next() in _RELATIONS:
            row += [_operator(self.take()), self.sum()]
        return _row(row)

    def sum(self) -> Element:
        row = [_operator(self.take())] if self.next() == "-" else []
        row.append(self.product())
        while self.next() in ("+", "-"):
            row += [_operator(self.take()), self.product()]
        return _row(row)

    def product(self) -> Element:
        row = [self.power()]
        while (token := self.next()) and (token in ("*", "@", "/", "(", "[") or token[0].isalnum()):
            if token == "/":
                self.take()
                fraction = Element("mfrac")
                fraction.extend([_without_parentheses(_row(row)), _without_parentheses(self.power())])
                row = [fraction]
                continue
            row += [_operator(self.take() if token in ("*", "@") else "@"), self.power()]
        return _row(row)

    def power(self) -> Element:
        base = self.operand()
        while self.next() in ("^", "**"):
            self.take()
            raised = Element("msup")
            raised.extend([base, _without_parentheses(self.operand())])
            base = raised
        return base

    def operand(self) -> Element:
        token = self.take()
        if token == "|":
            return _row([_operator("|"), self.sum(), self.closing("|")])
        if token in ("(", "["):
            return _row([_operator(token), self.relation(), self.closing(")" if token == "(" else "]")])
        if token.endswith("("):
            inner, closing = self.relation(), self.closing(")")
            if token == "sqrt(":
                root = Element("msqrt")
                root.append(inner)
                return root
            return _row([_name(token[:-1]), _row([_operator("("), inner, closing])])
        if token[:1].isdigit():
            number = Element("mn")
            number.text = token
            return number
        if token[:1].isalpha():
            return _name(token)
        raise NotAFormulaError(token)

    def closing(self, bracket: str) -> Element:
        if self.take() != bracket:
            raise NotAFormulaError(bracket)
        return _operator(bracket)

    def next(self) -> str:
        return self.tokens[0] if self.tokens else ""

    def take(self) -> str:
        if not self.tokens:
            raise NotAFormulaError("It ends too early.")
        return self.tokens.pop(0)


def _name(name: str) -> Element:
    element = Element("mi")
    element.text = _WORDS.get(name, name)
    return element


def _operator(token: str) -> Element:
    element = Element("mo" if _SHOWN.get(token, token) else "mspace")
    if element.tag == "mspace":
        element.set("width", "0.2em")
    else:
        element.text = _SHOWN.get(token, token)
    return element


def _row(parts: list[Element]) -> Element:
    if len(parts) == 1:
        return parts[0]
    row = Element("mrow")
    row.extend(parts)
    return row


def _without_parentheses(part: Element) -> Element:
    """What a fraction or an exponent groups by itself."""
    if part.tag == "mrow" and len(part) == 3 and part[0].text == "(":
        return part[1]
    return part


class _FormulaProcessor(InlineProcessor):
    def handleMatch(self, m: re.Match[str], data: str) -> tuple[Element | None, int | None, int | None]:  # noqa: N802
        try:
            return mathml(m[1]), m.start(), m.end()
        except NotAFormulaError:
            return None, None, None


class FormulaExtension(Extension):
    """Markdown with formulas."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
        """Reads double backticks before they are read as code."""
        md.inlinePatterns.register(_FormulaProcessor(r"(?<!`)``(?!`)([^`\n]+?)``(?!`)", md), "formula", 195)
