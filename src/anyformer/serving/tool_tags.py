"""Arguments of a call as texts between tags, and the JSON that they stand for."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from anyformer.errors import UserError, quote
from anyformer.serving.grammar import json_rule


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


class TaggedArguments:
    """Keys and values between tags, which become JSON as the schema says: a text stays one, even if it looks like JSON.

    Args:
        tags: How they are written.
        schema: The JSON schema of the arguments.
    """

    def __init__(self, tags: Tags, schema: Mapping[str, Any]) -> None:
        self._tags, self._schema = tags, schema
        self._held, self._begun = "", False

    def push(self, text: str) -> tuple[str, str | None]:
        """Append; returns as `JsonArguments.push`. A value is certain at its end."""
        tags, made = self._tags, ""
        self._held += text
        while tags.close in self._held and (pair := re.match(tags.pair, self._held, re.DOTALL)):
            value = _json(pair["value"], property_of(self._schema, pair["key"]))
            made += f"{', ' if self._begun else '{'}{json.dumps(pair['key'], ensure_ascii=False)}: {value}"
            self._begun, self._held = True, self._held[pair.end() :]
        rest = self._held.lstrip()
        if rest.startswith(tags.open) or any(mark != rest and mark.startswith(rest) for mark in (tags.open, tags.end)):
            return made, None
        return made + ("}" if self._begun else "{}"), rest.removeprefix(tags.end)


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


def _json(text: str, schema: Mapping[str, Any]) -> str:
    """A value that was written without quotes, as JSON."""
    types, bare = types_of(schema), text.strip()
    if not types or types - {"string", "null"} or (bare == "null" and "null" in types):
        for spelled in (bare, bare.lower()):
            try:
                json.loads(spelled, parse_constant=_refuse)
            except (ValueError, RecursionError):
                continue
            return spelled
    return json.dumps(text, ensure_ascii=False)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON.")


_KNOWN = {"type", "properties", "required", "additionalProperties", "$schema", "$defs", "title", "description"}
_KNOWN_OF_TEXT = {"type", "enum", "const", "title", "description", "default", "examples"}


def tagged_rules(name: str, tags: Tags, schema: Mapping[str, Any] | None, literal: Callable[[str], str]) -> list[str]:
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
