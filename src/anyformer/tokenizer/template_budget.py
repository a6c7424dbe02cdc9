"""Cost of the operations of a chat template: an estimate of their time and memory from the operands.

A rendering has a budget, and every operation is paid for before it is done. What is not named here costs the whole size
of all its operands; filters and methods whose cost does not follow from their operands are not offered to templates.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import Any, cast

import jinja2
from jinja2.filters import FILTERS
from jinja2.runtime import LoopContext
from jinja2.tests import TESTS
from jinja2.utils import Namespace

from anyformer.limits import DEPTH

_BUDGET = 10**8
"""Budget of a rendering, in characters of 4 bytes, or some 10 ns: many times what a long conversation needs."""
_LARGEST = 2 * 10**7
"""Largest cost of one operation."""
_BITS = 2**14
"""The largest integer, in bits: arithmetic with larger ones takes long."""
TURN, CALL, OPERATION, NODE = 50, 500, 100, 2
"""Cost of a loop iteration, a call, a filter (or test, or comparison), and a node of the program that is repeated."""
_ITEM, _SHORT_TEXT, _VISIT = 2, 16, 60
"""An item of a list; a text of its own, such as a word; looking at a value that is inside another."""
_ESCAPED = 3
"""A character where it may be written as an escape sequence: ten of one byte."""
_COMPARISONS = 28
"""Comparisons of a value when the most values that there can be are sorted."""

_LISTS = (list, tuple, type({}.keys()), type({}.values()), type({}.items()))
_SCALARS = (str, int, float, bytes, type(None))
_CONVERSION = re.compile(r"[%)][-#0 +.*\d]*")
"""Flags and width in a conversion of the operator %, where they may follow a key in parentheses."""
DIGITS = re.compile(r"\d+")


@dataclass
class Rendering:
    """The cost and the text of a rendering so far, and begin and text of each block ``{% generation %}``."""

    spent: float = 0
    pieces: list[str] = field(default_factory=list[str])
    length: int = 0
    blocks: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])


current: ContextVar[Rendering] = ContextVar("current")
"""The rendering that pays."""


def spend(cost: float) -> None:
    """Take from the budget. Raises TemplateRuntimeError where there is too little left."""
    rendering = current.get()
    rendering.spent += cost
    if cost > _LARGEST or rendering.spent > _BUDGET:
        raise jinja2.TemplateRuntimeError("it takes too long, or makes too much text")


def size(value: object) -> int:
    """The size of a value, without what is inside it. Raises TemplateRuntimeError for an integer that is too large."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, (dict, range, *_LISTS)):
        return 1 + _ITEM * len(cast("Sequence[Any]", value))
    if isinstance(value, int) and value.bit_length() > _BITS:
        spend(_LARGEST + 1)
    return 1


def scan(*values: object) -> int:
    """Pay for looking through values, at each as often as it is inside them, and return their size when printed.

    Raises TemplateRuntimeError where they are nested more than `DEPTH` levels deep.
    """
    total, level = 0, list(values)
    for depth in range(DEPTH):
        inside: list[Any] = []
        for value in level:
            total += size(value) * (_ESCAPED if depth else 1)
            if not isinstance(value, _SCALARS):
                parts = _inside(value)
                spend(_VISIT * len(parts))
                inside += parts
        if not inside:
            spend(total)
            return total
        level = inside
    raise jinja2.TemplateRuntimeError(f"it nests values more than {DEPTH} levels deep")


def _inside(value: object) -> Sequence[Any]:
    """Values that are printed, compared or hashed together with a value."""
    if isinstance(value, Namespace):
        value = cast("Any", value)._Namespace__attrs
    if isinstance(value, Mapping):
        mapping = cast("Mapping[Any, Any]", value)
        return [*mapping, *mapping.values()]
    return [*cast("Iterable[Any]", value)] if isinstance(value, _LISTS) else ()


def turns(values: Iterable[Any], cost: float = TURN) -> Iterator[Any]:
    """The values, each of which is paid for."""
    for value in values:
        spend(cost)
        yield value


def listed(value: Any) -> Any:
    """A value to be looked through, which an iterator shows only when it is read."""
    iterates = isinstance(value, Iterator) and not isinstance(value, LoopContext)
    return list(turns(cast("Iterator[Any]", value))) if iterates else value


Cost = Callable[..., object]
"""Takes the operands of an operation and pays for it."""


def _nothing(*operands: Any, **more: Any) -> None:
    """The operation looks at nothing inside its operands."""


def _lazily(*operands: Any, **more: Any) -> None:
    """The operation goes through values when it is asked for them, and each is paid for then."""


def _linear(each: int, value: Any, *others: Any, **more: Any) -> None:
    """The operation takes or makes `each` for a character or item of any operand."""
    spend(each * (scan(value) + _amount(*others, *more.values())))


def _product(each: int, value: Any, *others: Any, **more: Any) -> None:
    """The operation takes or makes `each`, and all of the others, for a character or item of the first operand."""
    spend((1 + scan(value)) * (each + _amount(*others, *more.values())))


def _amount(*values: Any) -> int:
    """The size of values of which a number says how large, or how many, something becomes."""
    return scan(*values) + sum(abs(value) for value in values if isinstance(value, int))


def _sum(values: Any, attribute: Any = None, start: Any = 0) -> None:
    one = scan(values, attribute, start)
    if not isinstance(start, int | float):  # each sum of lists is a new one
        spend(one * len(values))


def _round(value: Any, precision: Any = 0, method: Any = None) -> None:
    size(10 ** min(abs(precision), _BITS))


def formatting(text: Any, *values: Any, **more: Any) -> None:
    """Pay for ``text % values``: a value may be printed for each conversion, and these may say how wide."""
    text = str(text)
    conversions = " ".join(_CONVERSION.findall(text))
    spend(scan(text) + scan(*values, *more.values()) * text.count("%"))
    spend(sum(map(int, DIGITS.findall(conversions))) + _amount(*values) * conversions.count("*"))


def _membership(value: Any, values: Any) -> None:
    if isinstance(values, LoopContext):
        raise jinja2.TemplateRuntimeError("it looks for a value in a loop")
    if isinstance(value, str) and isinstance(values, str):
        spend(len(values) * (1 + min(len(value), 100) // 8))  # Python takes another algorithm for long parts
    else:
        scan(value, None if isinstance(values, dict) else values)


def _comparison(left: Any, right: Any) -> None:
    if isinstance(left, _SCALARS) or isinstance(right, _SCALARS):
        spend(min(size(left), size(right)))
    else:
        scan(left, right)


def _table(costs: Mapping[str, Cost]) -> dict[str, Cost]:
    return {name: cost for names, cost in costs.items() for name in names.split()}


_COSTS = _table(
    {
        "attr d default first get items keys last length random safe values": _nothing,
        "list map reject rejectattr select selectattr": _lazily,
        "abs capitalize casefold copy e endswith escape filesizeformat float int isalnum isalpha isascii isdecimal "
        "isdigit isidentifier islower isnumeric isprintable isspace istitle isupper lower removeprefix removesuffix "
        "reverse startswith string swapcase upper": partial(_linear, 1),
        "batch center ljust rjust slice splitlines title truncate urlencode wordcount zfill": partial(
            _linear, _SHORT_TEXT
        ),
        "count find index join lstrip partition replace rfind rindex rpartition rstrip strip trim": partial(
            _product, 1
        ),
        "indent": partial(_product, 4),
        "rsplit split": partial(_product, _SHORT_TEXT // 2),
        "dictsort groupby max min sort unique": partial(_product, _COMPARISONS),
        "format": formatting,
        "round": _round,
        "sum": _sum,
    }
)
"""Filters of jinja2, and methods of Python's own types."""
_METHODS = {name: cost for name, cost in _COSTS.items() if any(hasattr(kind, name) for kind in (str, list, dict))}
del _METHODS["format"]  # for which the sandbox has a formatter that pays
_TESTS = _table(
    {
        "boolean callable defined escaped even false filter float integer iterable mapping none number odd sameas "
        "sequence string test true undefined": _nothing,
        "divisibleby lower upper": partial(_linear, 1),
        "in": _membership,
        "== eq equalto != ne > gt greaterthan >= ge < lt lessthan <= le": _comparison,
    }
)


def filters() -> dict[str, Callable[..., Any]]:
    """jinja2's filters that are offered to templates, each of which is paid for."""
    costs = {name: cost for name, cost in _COSTS.items() if name in FILTERS} | {"count": _nothing}
    return {name: _paid(FILTERS[name], cost) for name, cost in costs.items()}


def tests() -> dict[str, Callable[..., Any]]:
    """jinja2's tests, each of which is paid for."""
    return {name: _paid(TESTS[name], cost) for name, cost in _TESTS.items()}


def _paid(function: Callable[..., Any], cost: Cost) -> Callable[..., Any]:
    first = int(hasattr(function, "jinja_pass_arg"))  # the environment or the context comes before the value

    @wraps(function)
    def paid(*arguments: Any, **more: Any) -> Any:
        spend(OPERATION)
        before, (value, *others) = arguments[:first], arguments[first:]
        if cost is _lazily:
            value = turns(value, TURN + sum(map(size, (*others, *more.values())))) if value else value
        elif cost is not _nothing:
            value, *others = map(listed, (value, *others))
            cost(value, *others, **more)
        result = function(*before, value, *others, **more)
        if isinstance(result, Iterator):
            return turns(cast("Iterator[Any]", result))
        spend(size(result))
        return result

    return paid


def method_arguments(value: object, name: str, arguments: Sequence[Any], more: Mapping[str, Any]) -> Sequence[Any]:
    """Pay for a method of a value of Python's own types, and return its arguments with iterators read.

    Raises TemplateRuntimeError for one that is not offered.
    """
    if name not in _METHODS:
        kind = next(kind for kind in type(value).__mro__ if kind.__module__ == "builtins").__name__
        raise jinja2.TemplateRuntimeError(f"it calls {name!r} of a {kind}, which is not offered to templates")
    arguments = [*map(listed, arguments)]
    _METHODS[name](value, *arguments, **more)
    return arguments
