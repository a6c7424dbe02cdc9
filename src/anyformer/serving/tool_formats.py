"""How models write calls of tools, by the words of their chat templates."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from anyformer.errors import UserError, quote
from anyformer.serving.grammar import Grammars, json_rule

_OBJECT = r'\s*\{\s*"name"\s*:\s*"(?P<name>[^"\\]+)"\s*,\s*"(?:arguments|parameters)"\s*:\s*'
"""The beginning of a call as a JSON object, up to its arguments."""


@dataclass(frozen=True, kw_only=True)
class Tags:
    """Arguments as texts between tags, again and again a key and its value.

    Attributes:
        written: How an argument is written, with KEY and VALUE in their places.
        pair: A regex of one, with groups ``key`` and ``value``.
        open, close: The tags before a key, and behind a value.
        end: A text behind the last; "": none of its own.
    """

    written: str
    pair: str
    open: str
    close: str
    end: str


@dataclass(frozen=True, kw_only=True)
class ToolFormat:
    """The form in which a model calls tools.

    Attributes:
        marks: Texts of a chat template that has this form.
        trigger: The text with which calls begin; "": a call is all of the answer, and begins with a brace.
        open, call, between, close: How calls are written, with NAME and ARGUMENTS in their places.
        head: A regex of the beginning of a call behind the trigger, up to its arguments.
        end: A text behind a call, after which there may be other text; "": nothing but calls follows.
        tags: How arguments are written; None: as JSON.
        channels: The answer is made of messages, and a call is one of them, see `ChannelParser`.
    """

    marks: Sequence[str]
    trigger: str
    call: str
    open: str = ""
    between: str = ""
    close: str = ""
    head: str = _OBJECT
    end: str = ""
    tags: Tags | None = None
    channels: bool = False

    @property
    def written(self) -> str:
        """All texts between and around arguments."""
        return self.trigger + self.open + self.call + self.between + self.close

    def start_of_call(self, text: str) -> re.Match[str] | None:
        """The beginning of a call, up to its arguments."""
        return re.match(self.head, text)


FORMATS = (
    ToolFormat(  # gpt-oss
        marks=("<|channel|>", "<|message|>"),
        trigger="",
        call="<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>ARGUMENTS",
        between="<|end|><|start|>assistant",
        channels=True,
    ),
    ToolFormat(  # Qwen3-Coder
        marks=("<tool_call>", "<function=", "<parameter="),
        trigger="<tool_call>",
        call="<tool_call>\n<function=NAME>\nARGUMENTS</function>\n</tool_call>",
        between="\n",
        head=r"\s*<function=(?P<name>[^>]+)>\s*",
        end="</tool_call>",
        tags=Tags(
            written="<parameter=KEY>\nVALUE\n</parameter>\n",
            pair=r"\s*<parameter=(?P<key>[^>]*)>\n?(?P<value>.*?)\n?</parameter>",
            open="<parameter=",
            close="</parameter>",
            end="</function>",
        ),
    ),
    ToolFormat(  # GLM since 4.5
        marks=("<tool_call>", "<arg_key>"),
        trigger="<tool_call>",
        call="<tool_call>NAME\nARGUMENTS</tool_call>",
        between="\n",
        head=r"\s*(?P<name>[^\s<{]+)\s*(?=<)",
        end="</tool_call>",
        tags=Tags(
            written="<arg_key>KEY</arg_key>\n<arg_value>VALUE</arg_value>\n",
            pair=r"\s*<arg_key>(?P<key>.*?)</arg_key>\s*<arg_value>(?P<value>.*?)</arg_value>",
            open="<arg_key>",
            close="</arg_value>",
            end="",
        ),
    ),
    ToolFormat(  # Mistral since v11
        marks=("[TOOL_CALLS]", "[ARGS]"),
        trigger="[TOOL_CALLS]",
        call="[TOOL_CALLS]NAME[ARGS]ARGUMENTS",
        head=r"\s*(?P<name>[^\s\[{]+)(?:\[CALL_ID\]\w*)?\[ARGS\]\s*",
    ),
    ToolFormat(  # Mistral
        marks=("[TOOL_CALLS]",),
        trigger="[TOOL_CALLS]",
        open="[TOOL_CALLS][",
        call='{"name": "NAME", "arguments": ARGUMENTS}',
        between=", ",
        close="]",
        head=rf"\s*\[?{_OBJECT}",
    ),
    ToolFormat(  # Hermes, Qwen, SmolLM
        marks=("<tool_call>",),
        trigger="<tool_call>",
        call='<tool_call>\n{"name": "NAME", "arguments": ARGUMENTS}\n</tool_call>',
        between="\n",
        head=rf"\s*\[?{_OBJECT}",
        end="</tool_call>",
    ),
    ToolFormat(  # Granite
        marks=("<|tool_call|>",),
        trigger="<|tool_call|>",
        open="<|tool_call|>[",
        call='{"name": "NAME", "arguments": ARGUMENTS}',
        between=", ",
        close="]",
        head=rf"\s*\[?{_OBJECT}",
    ),
    ToolFormat(  # DeepSeek V3 and R1
        marks=("<｜tool▁sep｜>", "```json"),
        trigger="<｜tool▁calls▁begin｜>",
        open="<｜tool▁calls▁begin｜>",
        call="<｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME\n```json\nARGUMENTS\n```<｜tool▁call▁end｜>",
        between="\n",
        close="<｜tool▁calls▁end｜>",
        head=r"\s*<｜tool▁call▁begin｜>function<｜tool▁sep｜>(?P<name>[^\n]+)\n```json\s*",
    ),
    ToolFormat(  # DeepSeek V3.1
        marks=("<｜tool▁sep｜>",),
        trigger="<｜tool▁calls▁begin｜>",
        open="<｜tool▁calls▁begin｜>",
        call="<｜tool▁call▁begin｜>NAME<｜tool▁sep｜>ARGUMENTS<｜tool▁call▁end｜>",
        close="<｜tool▁calls▁end｜>",
        head=r"\s*<｜tool▁call▁begin｜>(?P<name>[^<]+)<｜tool▁sep｜>\s*",
    ),
    ToolFormat(  # Llama 3
        marks=('"parameters": ',),
        trigger="",
        call='{"name": "NAME", "parameters": ARGUMENTS}',
        between="; ",
        head=rf"\s*(?:<\|python_tag\|>)?{_OBJECT}",
    ),
)
"""The first whose marks a template has is its form."""


def format_of(template: str | None) -> ToolFormat | None:
    """The form in which the model of a chat template calls tools; None: it doesn't, or not in a form that is read."""
    if template is None or "tools" not in template:
        return None
    return next((form for form in FORMATS if all(mark in template for mark in form.marks)), None)


@dataclass(frozen=True)
class Function:
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: Mapping[str, Any] | None = None
    """JSON schema of its arguments; None: any."""
    strict: bool = False
    """Its arguments obey the schema in any case."""

    @property
    def described(self) -> dict[str, Any]:
        """As chat templates know it."""
        given = {"name": self.name, "description": self.description or "", "parameters": self.parameters or _ANY}
        return {"type": "function", "function": given}


_ANY: dict[str, Any] = {"type": "object", "properties": {}}


@dataclass(frozen=True, kw_only=True)
class Tools:
    """The functions of a request.

    Attributes:
        only: Name of the one that it has to call.
    """

    functions: Sequence[Function]
    form: ToolFormat
    required: bool = False
    only: str | None = None
    parallel: bool = True

    @property
    def is_enforced(self) -> bool:
        """Whether a grammar is needed."""
        alone = not self.parallel and not self.form.channels  # there a call ends the answer
        return self.required or alone or any(function.strict for function in self.functions)

    def rules(self, grammars: Grammars) -> str:
        """Lark rules of an answer: of calls alone, or of text with calls.

        Raises:
            UserError: a schema that is too large, or that can't be enforced in this form.
        """
        form, literal = self.form, grammars.literal
        if form.channels and not self.required:
            raise UserError(
                "No schema is enforced behind this model's reasoning: leave out strict, or set tool_choice required."
            )
        callable_ = [each for each in self.functions if self.only in (None, each.name)]
        lines = list[str]()
        for number, function in enumerate(callable_):
            before, after = form.call.split("ARGUMENTS")
            before = before.replace("NAME", function.name)
            if not self.required and form.trigger and not form.open:
                before = before.removeprefix(form.trigger)
            name = f"arguments_{number}"
            lines.append(f"call_{number}: {literal(before)} {name} {literal(after)}")
            enforced = self.required or function.strict
            schema = function.parameters if enforced and function.parameters else {}
            if form.tags is None:
                lines.append(f"{name}: {json_rule({'type': 'object', **schema})}")
            else:
                lines += _tagged_rules(name, form.tags, schema if enforced else None, literal)
        calls = " | ".join(f"call_{number}" for number in range(len(callable_)))
        lines.append(f"call: {calls}")
        if self.required or not form.trigger:
            more = f"({literal(form.between)} call)*" if self.parallel else ""
            lines.append(f"calls: {literal(form.open)} call {more} {literal(form.close)}")
            lines.append("text: calls" if self.required else "text: calls | FREE\nFREE: /([^{](.|\\n)*)?/")
            return "\n".join(lines)
        return "\n".join([*lines, *self._free(literal)])

    def _free(self, literal: Callable[[str], str]) -> list[str]:
        """Rules of text in which calls may stand behind the trigger."""
        form, trigger = self.form, literal(self.form.trigger)
        head = "head" if trigger.startswith("<[") else "head[lazy]"
        opened = literal(form.open.removeprefix(form.trigger))
        more = f"({literal(form.between)} call)*" if form.open and self.parallel else ""
        # Of one section, the end-of-text follows.
        text = "FREE | head section" if form.open or not self.parallel else "(head section)* FREE"
        section = f"section: {opened} call {more} {literal(form.close)}"
        return ["FREE: /(.|\\n)*/", f"{head}: FREE {trigger}", section, f"text: {text}"]


_KNOWN = {"type", "properties", "required", "additionalProperties", "$schema", "$defs", "title", "description"}
_KNOWN_OF_TEXT = {"type", "enum", "const", "title", "description", "default", "examples"}


def _tagged_rules(name: str, tags: Tags, schema: Mapping[str, Any] | None, literal: Callable[[str], str]) -> list[str]:
    """Lark rules of arguments, in the order of the schema's properties.

    Args:
        schema: The JSON schema that they obey; None: any.
        literal: Writes a fixed text as part of a rule.

    Raises:
        UserError: a keyword that can't be enforced between tags.
    """
    if schema is None:
        before, after = tags.written.replace("KEY", "\0").split("VALUE")
        opened, between = before.split("\0")
        return [
            f"{name}: {name}_pair*",
            f"{name}_pair: {literal(opened)} /[^<>\\n]+/ {literal(between)} {name}_value",
            f"{name}_value[suffix={json.dumps(after)}]: /(.|\\n)*/",
        ]
    _require(schema, _KNOWN, "the arguments")
    rules, pairs = list[str](), list[str]()
    properties: Any = schema.get("properties", {})
    for number, key in enumerate(properties):
        before, after = tags.written.replace("KEY", key).split("VALUE")
        value, own = f"{name}_{number}", property_of(schema, key)
        pairs.append(f"({literal(before)} {value})" + ("" if key in schema.get("required", ()) else "?"))
        if "string" not in types_of(own) or types_of(own) - {"string", "null"}:
            defs = {"$defs": schema["$defs"]} if "$defs" in schema else {}
            rules.append(f"{value}: {value}_json {literal(after)}")
            rules.append(f"{value}_json: {json_rule({**defs, **own})}")
            continue
        _require(own, _KNOWN_OF_TEXT, quote(key))
        values: Any = own.get("enum", [own["const"]] if "const" in own else None)
        if values is None:
            rules.append(f"{value}[suffix={json.dumps(after)}]: /(.|\\n)*/")
        else:
            spelled = " | ".join(literal(each if isinstance(each, str) else json.dumps(each)) for each in values)
            rules.append(f"{value}: ({spelled}) {literal(after)}")
    return [f"{name}: {' '.join(pairs)}", *rules]


def _require(schema: Mapping[str, Any], known: set[str], what: str) -> None:
    if unknown := sorted(set(schema) - known):
        raise UserError(f"{unknown[0]} of {what} can't be enforced in the form in which this model calls tools.")


def property_of(schema: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The JSON schema of an argument; empty where there is none."""
    properties: Any = schema.get("properties")
    found: Any = properties.get(key) if isinstance(properties, dict) else None
    return cast("Mapping[str, Any]", found) if isinstance(found, dict) else {}


def types_of(schema: Mapping[str, Any]) -> set[str]:
    """The types that a JSON schema names, or that the values have which it lists; empty: it doesn't say."""
    kinds: Any = schema.get("type", [])
    found = {str(kind) for kind in (kinds if isinstance(kinds, list) else [kinds])}
    for each in cast("list[Any]", schema.get("anyOf") if isinstance(schema.get("anyOf"), list) else []):
        found |= types_of(each) if isinstance(each, dict) else {"any"}
    values: Any = schema.get("enum", [schema["const"]] if "const" in schema else [])
    if not found and isinstance(values, list):
        found = {"string" if isinstance(value, str) else "any" for value in values}
    return found


def parsed_object(text: str) -> tuple[str, str] | None:
    """Name and arguments of a call that is written as one JSON object in any order; None: it is none."""
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    found = cast("dict[str, Any]", value)
    name, arguments = found.get("name"), found.get("arguments", found.get("parameters", {}))
    if not isinstance(name, str):
        return None
    return name, arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
