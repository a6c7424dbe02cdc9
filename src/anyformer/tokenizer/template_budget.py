"""Cost of the operations of a chat template: an estimate of their time and memory from the operands.

A rendering has a budget, and every operation is paid for before it is done. What is not named here costs the whole size
of all its operands; filters and methods whose cost does not follow from their operands are not offered to templates.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from functools import partial, wraps
from math import log2
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
TURN, CALL, OPERATION, NODE = 50, 500, 100, 2
"""Cost of a loop iteration, a call, a filter (or test, or comparison), and a node of the program that is repeated."""
_ITEM, _SHORT_TEXT, _VISIT = 2, 16, 60
"""An item of a list; a text of its own, such as a word; looking at a value that is inside another."""
_ESCAPED = 3
"""A character where it may be written as an escape sequence: ten of one byte."""
_BITS = 2**14
"""The largest integer, in bits: arithmetic with larger ones takes long."""

_VIEWS = (type({}.keys()), type({}.values()), type({}.items()))
_SEQUENCES = (list, tuple)
_SIZED = (*_SEQUENCES, dict, range, *_VIEWS)
_TEXTS = (str, bytes)
_SCALARS = (str, int, float)

_spent: ContextVar[int] = ContextVar("spent", default=0)

Cost = Callable[..., object]
"""Takes the arguments of an operation and pays for it."""


def begin() -> None:
    """Start a rendering, with the whole budget."""
    _spent.set(0)


def spend(cost: float) -> None:
    """Take from the budget. Raises TemplateRuntimeError where there is too little left."""
    spent = _spent.get() + cost
    if cost > _LARGEST or spent > _BUDGET:
        raise too_much()
    _spent.set(int(spent))


def too_much() -> jinja2.TemplateRuntimeError:
    """The error of a template that costs too much."""
    return jinja2.TemplateRuntimeError("it takes too long, or makes too much text")


def size(value: object) -> int:
    """The size of a value, without what is inside it. Raises TemplateRuntimeError for an integer that is too large."""
    if isinstance(value, _TEXTS):
        return len(value)
    if isinstance(value, _SIZED):
        return 1 + _ITEM * len(cast("Sequence[Any]", value))
    if isinstance(value, int) and value.bit_length() > _BITS:
        raise too_much()
    return 1


def weigh(*values: object, indent: int = 0, separators: int = 0) -> int:
    """Pay for looking through values, at each as often as it is inside them, and return their size when printed.

    Args:
        indent: Characters before each value, for each level that it is inside of others.
        separators: Characters between two values.

    Raises:
        TemplateRuntimeError: the budget is too small, or they are nested more than `DEPTH` levels deep.
    """
    total, level = 0, list(values)
    for depth in range(DEPTH):
        total += (separators + depth * indent) * len(level)
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
    if isinstance(value, _VIEWS):
        return [*cast("Iterable[Any]", value)]
    return cast("Sequence[Any]", value) if isinstance(value, _SEQUENCES) else ()


def turns(values: Iterable[Any], cost: float = TURN) -> Iterator[Any]:
    """The values, each of which is paid for."""
    for value in values:
        spend(cost)
        yield value


def compare(name: str, left: Any, right: Any) -> None:
    """Pay for a comparison, which goes by the name that jinja2 has for it."""
    texts = isinstance(left, str) and isinstance(right, str)
    if name in ("in", "notin"):
        if isinstance(right, LoopContext):
            raise jinja2.TemplateRuntimeError("it looks for a value in a loop")
        if texts:
            spend(_search(right, left))
        else:
            weigh(left, None if isinstance(right, dict) else right)
    elif texts:
        spend(min(len(left), len(right)))
    elif isinstance(left, int) or isinstance(right, int):
        weigh(left if isinstance(left, int) else right)
    elif not isinstance(left, str | float | None) and not isinstance(right, str | float | None):
        weigh(left, right)


def percent_format(text: str, values: Any) -> None:
    """Pay for ``text % values``: a value may be printed for each conversion, and these may say how wide."""
    conversions = _CONVERSION.findall(text)
    times = 1 if isinstance(values, tuple) else max(1, text.count("%"))
    spend(len(text) + weigh(values) * times)
    widths = [width for pair in conversions for width in pair if width]
    spend(sum(int(width) for width in widths if width != "*"))
    if "*" in widths and isinstance(values, tuple):
        spend(sum(abs(value) for value in cast("tuple[Any, ...]", values) if isinstance(value, int)))


# A key in parentheses comes first, so that a width may follow them.
_CONVERSION = re.compile(r"[%)][#0\- +]*(\*|\d+)?(?:\.(\*|\d+))?")
DIGITS = re.compile(r"\d+")


def _search(text: str, part: str) -> int:
    """Finding a part in a text from its beginning: Python takes another algorithm for long parts."""
    return len(text) * (1 + min(len(part), 100) // 8)


def _finding(text: str, *arguments: Any, **more: Any) -> None:
    weigh(*arguments, *more.values())
    spend(sum(_search(text, part) for part in arguments if isinstance(part, str)) or len(text))


def _finding_from_end(text: str, *arguments: Any, **more: Any) -> None:
    weigh(*arguments, *more.values())
    spend(len(text) * (1 + sum(len(part) for part in arguments if isinstance(part, str))))


def _splitting(text: str, *arguments: Any, **more: Any) -> None:
    separator = arguments[0] if arguments else more.get("sep")
    _finding_from_end(text, *arguments, *more.values())
    pieces = text.count(separator) if isinstance(separator, str) and separator else len(text) // 2
    spend(_SHORT_TEXT * (1 + pieces))


def _stripping(text: str, characters: Any = None) -> None:
    spend(len(text))
    if isinstance(characters, str) and len(characters) > 64:
        spend(len(text) * len(characters))


def _trimming(text: Any, chars: Any = None) -> None:
    weigh(text, chars)
    _stripping(str(text), chars)


def _formatting(text: Any, *arguments: Any, **more: Any) -> None:
    weigh(text)
    percent_format(str(text), more or arguments)


def _looking_up(values: Any, key: Any, default: Any = None) -> None:
    weigh(key)


def _replacing(text: Any, old: Any, new: Any, count: Any = None) -> None:
    weigh(text, old, new, count)
    text, old, new = map(str, (text, old, new))
    spend(_search(text, old))
    spend((text.count(old) if old else len(text) + 1) * len(new))


def _joining(separator: str, values: Any) -> None:
    spend(weigh(values) + len(separator) * _length(values))


def _padding(*arguments: Any, **more: Any) -> None:
    values = [*arguments, *more.values()]
    weigh(*values)
    spend(_SHORT_TEXT * sum(abs(value) for value in values if isinstance(value, int)))


def _indenting(text: Any, *arguments: Any, **more: Any) -> None:
    values = [*arguments, *more.values()]
    weigh(text, *values)
    widths = [len(value) if isinstance(value, str) else value for value in values if isinstance(value, str | int)]
    spend((1 + size(text)) * (1 + max(4, *widths, 0)))


def _rounding(value: Any, precision: Any = 0, method: Any = None) -> None:
    weigh(value, precision, method)
    if isinstance(precision, int) and abs(precision) > 1000:
        raise too_much()


def _joining_items(values: Any, *arguments: Any, **more: Any) -> None:
    strings = sum(len(each) for each in [*arguments, *more.values()] if isinstance(each, str))
    weigh(*arguments, *more.values())
    spend(weigh(values) + strings * _length(values))


def _ordering(values: Any, *arguments: Any, **more: Any) -> None:
    """Sorting, grouping, adding up ... by attributes whose names may be separated by dots and commas."""
    names = "".join(each for each in [*arguments, *more.values()] if isinstance(each, str))
    weigh(*arguments, *more.values())
    count = _length(values)
    spend(weigh(values) * (1 + log2(count + 1)) * (1 + names.count(",")) + count * len(names))


def _adding_up(values: Any, *arguments: Any, **more: Any) -> None:
    _ordering(values, *arguments, **more)
    start = arguments[1] if len(arguments) > 1 else more.get("start", 0)
    if not isinstance(start, int | float):  # each sum of lists is a new one
        spend(weigh(values, start) * _length(values))


def _listing(values: Any) -> None:
    spend(len(values) * _SHORT_TEXT if isinstance(values, str) else size(values))


def _words(text: Any, *arguments: Any, **more: Any) -> None:
    spend(_SHORT_TEXT * weigh(text, *arguments, *more.values()))


def _whole(*arguments: Any, **more: Any) -> None:
    weigh(*arguments, *more.values())


def _nothing(*arguments: Any, **more: Any) -> None:
    pass


def _length(values: Any) -> int:
    return len(values) if hasattr(values, "__len__") else 1


def _table(costs: Mapping[str, Cost]) -> dict[str, Cost]:
    return {name: cost for names, cost in costs.items() for name in names.split()}


_METHODS: Mapping[type, Mapping[str, Cost]] = {
    str: _table(
        {
            "capitalize casefold isalnum isalpha isascii isdecimal isdigit isidentifier islower isnumeric isprintable "
            "isspace istitle isupper lower swapcase title upper startswith endswith removeprefix removesuffix": _whole,
            "count find index partition": _finding,
            "rfind rindex rpartition": _finding_from_end,
            "split rsplit splitlines": _splitting,
            "strip lstrip rstrip": _stripping,
            "replace": _replacing,
            "join": _joining,
            "center ljust rjust zfill": _padding,
        }
    ),
    list: _table({"count index": _whole, "copy": _listing}),
    tuple: _table({"count index": _whole}),
    dict: _table({"get": _looking_up, "items keys values": _nothing, "copy": _listing}),
    int: {},
    float: {},
    bytes: {},
    range: {},
}
"""The methods that templates may call, by the type whose they are."""


def pay_for_method(value: object, name: str, arguments: Sequence[Any], more: Mapping[str, Any]) -> bool:
    """Pay for a method of a value of Python's own types; whether it is one.

    Raises:
        TemplateRuntimeError: one that is not offered, or the budget is too small.
    """
    kind = next((kind for kind in _METHODS if isinstance(value, kind)), None)
    if kind is None:
        return False
    if name not in _METHODS[kind]:
        raise jinja2.TemplateRuntimeError(f"it calls {name!r} of a {kind.__name__}, which is not offered to templates")
    _METHODS[kind][name](value, *arguments, **more)
    return True


_FILTERS = _table(
    {
        "attr count d default first last length items random safe": _nothing,
        "list reverse": _listing,
        "abs capitalize e escape filesizeformat float int lower string upper": _whole,
        "dictsort groupby max min sort unique": _ordering,
        "sum": _adding_up,
        "join": _joining_items,
        "title wordcount urlencode": _words,
        "format": _formatting,
        "replace": _replacing,
        "trim": _trimming,
        "batch center slice truncate": _padding,
        "indent": _indenting,
        "round": _rounding,
    }
)
_LAZY = ("map", "select", "reject", "selectattr", "rejectattr")
_TESTS = _table(
    {
        "defined undefined none boolean false true integer float string mapping number sequence iterable callable "
        "sameas odd even filter test escaped": _nothing,
        "divisibleby lower upper": _whole,
    }
)
_EQUAL = ("==", "eq", "equalto", "!=", "ne")
_ORDER = (">", "gt", "greaterthan", ">=", "ge", "<", "lt", "lessthan", "<=", "le")


def filters() -> dict[str, Callable[..., Any]]:
    """jinja2's filters that are offered to templates, each of which is paid for."""
    made = {name: _metered(FILTERS[name], cost) for name, cost in _FILTERS.items()}
    return made | {name: _lazy(FILTERS[name]) for name in _LAZY}


def tests() -> dict[str, Callable[..., Any]]:
    """jinja2's tests, each of which is paid for."""
    made = {name: _metered(TESTS[name], cost) for name, cost in _TESTS.items()}
    made["in"] = _metered(TESTS["in"], partial(compare, "in"))
    return made | {name: _metered(TESTS[name], partial(compare, name)) for name in _EQUAL + _ORDER}


def _metered(function: Callable[..., Any], cost: Cost) -> Callable[..., Any]:
    first = _passed(function)

    @wraps(function)
    def paid(*arguments: Any, **more: Any) -> Any:
        spend(OPERATION)
        if cost is not _nothing:
            arguments = tuple(map(read, arguments))
        cost(*arguments[first:], **more)
        result = function(*arguments, **more)
        if isinstance(result, Iterator):
            return turns(cast("Iterator[Any]", result))
        spend(size(result))
        return result

    return paid


def _lazy(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that goes through values when they are asked for, calling other filters or tests for each."""
    first = _passed(function)

    @wraps(function)
    def paid(*arguments: Any, **more: Any) -> Any:
        before, values, rest = arguments[:first], arguments[first], arguments[first + 1 :]
        cost = TURN + sum(map(size, (*rest, *more.values())))
        return turns(function(*before, turns(values, cost) if values else values, *rest, **more))

    return paid


def _passed(function: Callable[..., Any]) -> int:
    """How many arguments come before the value: the environment or the context, where jinja2 passes one."""
    return int(hasattr(function, "jinja_pass_arg"))


def read(value: Any) -> Any:
    """A value to be looked through, which an iterator shows only when it is read."""
    iterates = isinstance(value, Iterator) and not isinstance(value, LoopContext)
    return list(turns(cast("Iterator[Any]", value))) if iterates else value
