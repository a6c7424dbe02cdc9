"""Chat templates: Jinja written by strangers, rendered in a sandbox with what `transformers` offers them."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2

from anyformer.errors import UserError, quote
from anyformer.limits import DEPTH
from anyformer.terminal import shorten
from anyformer.tokenizer import template_budget as budget
from anyformer.tokenizer import template_sandbox

Message = Mapping[str, Any]

_REASON = 500
"""Characters of a template's own words that a message repeats."""


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


@lru_cache(maxsize=16)
def _compiled(template: str) -> jinja2.Template:
    environment = template_sandbox.Sandbox()
    environment.filters["tojson"] = _to_json
    offered = {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    return environment.from_string(template, globals=offered)


def render(
    template: str,
    messages: Sequence[Message],
    add_generation_prompt: bool,
    variables: Mapping[str, Any],
    tools: Sequence[Any] | None = None,
) -> tuple[str, list[tuple[int, int]]]:
    """Render a conversation.

    Returns:
        The text, and begin and end in it of each block that the template marks with ``{% generation %}``.

    Raises:
        UserError: the template is faulty, refuses the messages or doesn't end.
    """
    # As in `transformers`: what a message doesn't have may be written as null.
    messages = [{name: value for name, value in message.items() if value is not None} for message in messages]
    offered = {"messages": messages, "tools": tools, "documents": None, "add_generation_prompt": add_generation_prompt}
    try:
        return template_sandbox.render(_compiled(template), {**offered, **variables})
    except jinja2.TemplateSyntaxError as error:
        reason = _reason(error, str(error.message))
        raise UserError(f"The chat template has a mistake in line {error.lineno}: {reason}.") from error
    except Exception as error:  # a stranger's program can fail in any way
        raise UserError(f"The chat template refuses these messages: {_reason(error, str(error))}.") from error


_SPEAKERS = {"system": "", "user": "User: ", "assistant": "Assistant: "}
NEXT_TURN = "\nUser:"
"""Beginning of the next turn, which a model without a chat template writes if it doesn't end the text."""


def render_plain(messages: Sequence[Message], add_generation_prompt: bool) -> str:
    """Render a conversation for a model without a chat template, as lines that begin with ``User:`` and ``Assistant:``.

    Raises:
        UserError: a message of somebody else, or one that is no text.
    """
    lines: list[str] = []
    for number, message in enumerate(messages, 1):
        role, content = message.get("role"), message.get("content")
        if role not in _SPEAKERS or not isinstance(content, str):
            what = f"of {quote(role)}" if role not in _SPEAKERS else "without text"
            raise UserError(
                f"Message {number} is {what}, and without a chat template only texts of 'system', 'user' and "
                "'assistant' can be shown to the model."
            )
        lines.append(f"{_SPEAKERS[role]}{content.strip()}\n")
    return "".join(lines) + "Assistant:" * add_generation_prompt


def _reason(error: Exception, text: str) -> str:
    return shorten(text or type(error).__name__, _REASON).rstrip(".")
