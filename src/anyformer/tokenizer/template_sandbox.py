"""Chat templates: Jinja written by strangers, rendered in a sandbox with what `transformers` offers them.

jinja2's sandbox keeps a template from everything but its values. Here it has a budget for what it does with them:
loops, operators, slices, comparisons and text become calls that pay (`template_budget`) before anything is done.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from types import BuiltinMethodType
from typing import Any, cast

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.parser import Parser
from jinja2.runtime import BlockReference, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEscapeFormatter, SandboxedFormatter
from jinja2.visitor import NodeTransformer
from markupsafe import Markup
from typing_extensions import override

from anyformer.errors import UserError
from anyformer.limits import DEPTH
from anyformer.terminal import shorten
from anyformer.tokenizer import template_budget as budget

_LONGEST = 50_000
"""Characters of a template; jinja2 compiles it in a time that can grow with the square of its length."""
_REASON = 500
"""Characters of a template's own words that a message repeats."""


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    add_generation_prompt: bool,
    variables: Mapping[str, Any],
    tools: Sequence[Any] | None = None,
) -> tuple[str, list[tuple[int, int]]]:
    """Render a conversation, with a new budget.

    Returns:
        The text, and begin and end in it of each block that the template marks with ``{% generation %}``; none where
        one is not written as it is, as in a macro.

    Raises:
        UserError: the template is faulty, refuses the messages or doesn't end.
    """
    # As in `transformers`: what a message doesn't have may be written as null.
    messages = [{name: value for name, value in message.items() if value is not None} for message in messages]
    offered = {"messages": messages, "tools": tools, "documents": None, "add_generation_prompt": add_generation_prompt}
    token = budget.current.set(rendering := budget.Rendering())
    try:
        for piece in _compiled(template).generate({**offered, **variables}):
            rendering.pieces.append(piece)
            rendering.length += len(piece)
    except jinja2.TemplateSyntaxError as error:
        reason = _reason(error, str(error.message))
        raise UserError(f"The chat template has a mistake in line {error.lineno}: {reason}.") from error
    except Exception as error:  # a stranger's program can fail in any way
        raise UserError(f"The chat template refuses these messages: {_reason(error, str(error))}.") from error
    finally:
        budget.current.reset(token)
    text, blocks = "".join(rendering.pieces), rendering.blocks
    is_verbatim = all(text.startswith(body, begin) for begin, body in blocks)
    return text, [(begin, begin + len(body)) for begin, body in blocks if is_verbatim]


def _reason(error: Exception, text: str) -> str:
    return shorten(text or type(error).__name__, _REASON).rstrip(".")


@lru_cache(maxsize=16)
def _compiled(template: str) -> jinja2.Template:
    return _Sandbox().from_string(template)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    budget.spend(256 * len(pattern))  # what a conversion may grow to
    return datetime.now().strftime(pattern)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML, which would change the prompt."""
    budget.spend(DEPTH * (len(indent) if isinstance(indent, str) else abs(indent or 0)))
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    pieces: list[str] = []
    for piece in encoder.iterencode(budget.listed(value)):
        budget.spend(budget.CALL + len(piece))
        pieces.append(piece)
    return "".join(pieces)


class _Sandbox(ImmutableSandboxedEnvironment):
    """An environment whose templates pay for what they do."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self) -> None:
        # The optimizer would compute constant expressions when a template is compiled.
        extensions = [_Generation, jinja2.ext.loopcontrols]
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=extensions, optimized=False)
        del self.globals["lipsum"]
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        compiled = (_repeated, _iterated, _written, _sliced, _compared)
        self.filters = {**budget.filters(), **{each.__name__: each for each in compiled}, "tojson": _to_json}
        self.tests = budget.tests()

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        if len(source) > _LONGEST:
            raise jinja2.TemplateSyntaxError(f"it has more than {_LONGEST:,} characters", 1)
        return _Meter().visit(super()._parse(source, name, filename))

    @override
    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        sequence, times = (right, left) if isinstance(left, int) else (left, right)
        budget.spend(budget.size(left) + budget.size(right))
        if operator == "%" and isinstance(left, str):
            budget.formatting(left, *(cast("tuple[Any, ...]", right) if isinstance(right, tuple) else (right,)))
        elif operator == "*" and isinstance(sequence, str | list | tuple) and isinstance(times, int):
            budget.spend(budget.size(sequence) * max(0, times))
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            budget.size(1 << max(0, min(left.bit_length() * right, 2**20)))
        return super().call_binop(context, operator, left, right)

    @override
    def getitem(self, obj: Any, argument: Any) -> Any:
        if not isinstance(argument, str | int):
            budget.scan(argument)
        return super().getitem(obj, argument)

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a function, a method or a macro of a template."""
        budget.spend(budget.CALL)
        if not isinstance(function, Macro | LoopContext | BlockReference):  # these only pass values on
            options = {name: value for name, value in kwargs.items() if name not in ("_loop_vars", "_block_vars")}
            budget.scan(*args, *options.values())
            owner = getattr(function, "__self__", None)
            own = isinstance(owner, str | bytes | int | float | list | tuple | dict | range)
            if own and (isinstance(function, BuiltinMethodType) or isinstance(owner, Markup)):
                args = tuple(budget.method_arguments(owner, function.__name__, args, options))
        result = super().call(context, function, *args, **kwargs)
        budget.spend(budget.size(result))
        return result

    @override
    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if super().wrap_str_format(value) is None:
            return None
        text = cast("str", value.__self__)
        if value.__name__ == "format_map":
            raise jinja2.TemplateRuntimeError("it calls 'format_map', which is not offered to templates")
        formatter = _EscapeFormatter(self, escape=text.escape) if isinstance(text, Markup) else _Formatter(self)
        return lambda *args, **kwargs: type(text)(formatter.vformat(text, args, kwargs))


class _Formatter(SandboxedFormatter):
    """`str.format`, which pays for each field."""

    @override
    def convert_field(self, value: Any, conversion: Any) -> Any:
        budget.scan(value)
        return super().convert_field(value, conversion)

    @override
    def format_field(self, value: Any, format_spec: str) -> Any:
        budget.scan(value)
        budget.spend(sum(map(int, budget.DIGITS.findall(format_spec))))
        return super().format_field(value, format_spec)


class _EscapeFormatter(_Formatter, SandboxedEscapeFormatter):
    """The formatter of text that is marked as HTML."""


# Filters that templates are compiled to. The context comes first, so that none is called when a template is compiled.


@jinja2.pass_context
def _repeated(context: object, cost: int) -> bool:
    budget.spend(cost)
    return True


@jinja2.pass_context
def _iterated(context: object, values: Iterable[Any]) -> Iterator[Any]:
    return budget.turns(values)


@jinja2.pass_context
def _written(context: object, value: Any) -> Any:
    budget.scan(value, value)  # it is copied once more when a text is put together
    return value


@jinja2.pass_context
def _sliced(context: object, value: Any, *bounds: Any) -> Any:
    if isinstance(value, str | list | tuple):
        budget.spend(budget.size(range(*slice(*bounds).indices(len(cast("list[Any]", value))))))
    return value[slice(*bounds)]


_TESTS = {"gteq": "ge", "lteq": "le", "notin": "in"}
"""Tests by operators that have another name, or none."""


@jinja2.pass_context
def _compared(context: jinja2.runtime.Context, left: Any, *rest: Any) -> Any:
    """``left < b <= c``, where the names of the operators and the other operands take turns."""
    result: Any = True
    for name, right in zip(cast("tuple[str, ...]", rest[::2]), map(budget.listed, rest[1::2]), strict=True):
        test: Any = context.environment.tests[_TESTS.get(name, name)]
        result = test(left, right) if name != "notin" else not test(left, right)
        if not result:
            break
        left = right
    return result


class _Meter(NodeTransformer):
    """Puts what pays into a program."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        node = self._visit_repeated(node)
        node.iter = _call("_iterated", node.iter)
        if node.test is not None:
            cost = nodes.Const(budget.TURN + budget.NODE * _count(node.test))
            node.test = nodes.And(_call("_repeated", cost), node.test, lineno=node.lineno, environment=node.environment)
        return node

    def _visit_repeated(self, node: Any) -> Any:
        cost = nodes.Const(budget.TURN + budget.NODE * sum(map(_count, node.body)))
        self.generic_visit(node)
        pay = nodes.ExprStmt(_call("_repeated", cost), lineno=node.lineno, environment=node.environment)
        node.body = [pay, *node.body]
        return node

    visit_Macro = visit_CallBlock = visit_Block = _visit_repeated  # noqa: N815

    def visit_Output(self, node: nodes.Output) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.nodes = [_call("_written", part) for part in node.nodes]
        return node

    visit_Concat = visit_Output  # noqa: N815

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        operands = [part for each in node.ops for part in (nodes.Const(each.op), each.expr)]
        return _call("_compared", node.expr, *operands)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        part = node.arg
        return _call("_sliced", node.node, *(each or nodes.Const(None) for each in (part.start, part.stop, part.step)))

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.key = _call("_written", node.key)  # a key is hashed
        return node

    def visit_ScopedEvalContextModifier(self, node: nodes.Node) -> nodes.Node:  # noqa: N802
        raise jinja2.TemplateSyntaxError("'autoescape' is not offered to templates", node.lineno)


def _count(node: nodes.Node) -> int:
    return 1 + sum(map(_count, node.iter_child_nodes()))


def _call(name: str, value: Any, *arguments: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(
        value, name, list(arguments), [], None, None, lineno=value.lineno, environment=value.environment
    )


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's words for training. As in `transformers`, it has a scope of its own."""

    def __init__(self, environment: jinja2.Environment) -> None:
        super().__init__(environment)
        self.tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Callable[[], str]) -> str:
        rendering, body = budget.current.get(), caller()
        rendering.blocks.append((rendering.length, body))
        return body
