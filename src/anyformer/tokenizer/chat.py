"""Chat templates: Jinja written by strangers, so rendered in a sandbox, with what `transformers` offers them, and with
a budget: each turn of a loop, each call and each character that is made costs."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime
from functools import lru_cache
from math import prod
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from anyformer.errors import UserError

Message = Mapping[str, Any]

_BUDGET, _TURN, _CALL = 10**8, 30, 200
"""Characters that a rendering may make on its way, and how many of them a turn of a loop and a call are worth: a few
seconds, and many times what a long conversation needs."""
_spent: ContextVar[int] = ContextVar("spent", default=0)


def _spend(cost: float) -> None:
    spent = _spent.get() + cost
    if spent > _BUDGET:
        raise jinja2.TemplateRuntimeError("it takes too long, or makes too much text")
    _spent.set(int(spent))


@jinja2.pass_context  # so that it isn't called when the template is compiled
def _turns(context: object, values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        _spend(_TURN)
        yield value


@jinja2.pass_context
def _made(context: object, value: Any) -> Any:
    _spend(_size(value))
    return value


def _size(value: object) -> int:
    return len(value) if isinstance(value, str | bytes | list | tuple) else 1


class _Meter(NodeTransformer):
    """Lets the template pay for its loops, and for the text that it puts together or writes."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "_turns")
        return node

    def visit_Concat(self, node: nodes.Expr) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(node, "_made")

    visit_Filter = visit_Concat  # noqa: N815

    def visit_Output(self, node: nodes.Output) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.nodes = [part if isinstance(part, nodes.TemplateData) else _filtered(part, "_made") for part in node.nodes]
        return node


def _filtered(node: Any, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno, environment=node.environment)


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("+", "*", "**"))

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _Meter().visit(super()._parse(source, name, filename))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "+":
            _spend(_size(left) + _size(right))
        elif isinstance(left, int) and isinstance(right, int):
            _spend(left.bit_length() * (abs(right) if operator == "**" else 1))
        elif operator == "*":
            _spend(max(0, prod(value if isinstance(value, int) else _size(value) for value in (left, right))))
        return super().call_binop(context, operator, left, right)

    def call(self, *args: Any, **kwargs: Any) -> Any:
        _spend(_CALL)
        result = super().call(*args, **kwargs)
        _spend(_size(result))
        return result


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's words for training; in rendering it is only its body."""

    def __init__(self, environment: jinja2.Environment) -> None:
        super().__init__(environment)
        self.tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML, which would change the prompt."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@lru_cache(maxsize=16)
def _compiled(template: str) -> jinja2.Template:
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
    del environment.globals["lipsum"]
    filters: dict[str, Any] = {"tojson": _to_json, "_turns": _turns, "_made": _made}
    environment.filters.update(filters)
    offered = {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    return environment.from_string(template, globals=offered)


def render(
    template: str, messages: Sequence[Message], add_generation_prompt: bool, variables: Mapping[str, Any]
) -> str:
    """Render a conversation; raises UserError when the template is faulty, refuses the messages or doesn't end."""
    _spent.set(0)
    try:
        return _compiled(template).render(
            messages=messages, tools=None, documents=None, add_generation_prompt=add_generation_prompt, **variables
        )
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"The chat template has a mistake in line {error.lineno}: {error.message}.") from error
    except Exception as error:  # a stranger's program can fail in any way
        raise UserError(f"The chat template refuses these messages: {str(error) or type(error).__name__}.") from error
