"""The repr of a result: one line, whatever it holds."""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, ClassVar, cast

from typing_extensions import override

_LONGEST, _LONGEST_VALUE, _ITEMS = 160, 40, 4


class OneLine:
    """A dataclass (with ``repr=False``) whose repr has at most 160 characters.

    Tensors are shown by their shape, collections by their first elements or their size, other objects by their class.
    """

    __slots__ = ()
    shown: ClassVar[tuple[str, ...] | None] = None
    """Names of the attributes in the repr; None: all fields."""

    @override
    def __repr__(self) -> str:
        names = self.shown or tuple(field.name for field in fields(cast("Any", self)))
        values = ", ".join(f"{name}={brief(getattr(self, name))}" for name in names)
        return _cut(f"{type(self).__name__}({values})", _LONGEST)


def brief(value: object) -> str:
    """A value in a few words of one line."""
    if isinstance(value, str):
        return repr(_cut(value, _LONGEST_VALUE))
    if value is None or isinstance(value, bool | int):
        return str(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        items = cast("Mapping[Any, object]", value).items()
        return f"{{{_some(f'{brief(key)}: {brief(each)}' for key, each in items)}}}"
    if isinstance(value, list | tuple):
        sequence = cast("list[object] | tuple[object, ...]", value)
        if all(each is None or isinstance(each, str | float | int) for each in sequence):
            return f"[{_some(map(brief, sequence))}]"
        return f"[{len(sequence)} {type(sequence[0]).__name__}]"
    if (shape := getattr(value, "shape", None)) is not None:
        return f"{type(value).__name__}{list(shape)}"
    text = str(value) if hasattr(value, "__fspath__") else repr(value)
    is_short = len(text) <= _LONGEST_VALUE and "\n" not in text and not text.startswith("<")
    return text if is_short else type(value).__name__


def _some(parts: Iterable[str]) -> str:
    listed = list(parts)
    return ", ".join([*listed[:_ITEMS], *(["..."] if len(listed) > _ITEMS else [])])


def _cut(text: str, longest: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= longest else f"{line[: longest - 3]}..."
