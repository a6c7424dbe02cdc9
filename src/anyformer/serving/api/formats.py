"""The form of an answer: JSON, JSON by a schema, or a text that matches a regex."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from anyformer.errors import UserError
from anyformer.serving.api.strict import Strict
from anyformer.serving.errors import ApiError
from anyformer.serving.grammar import json_rule, regex_rule

Schema = Annotated[dict[str, Any], Field(alias="schema")]


class PlainText(Strict):
    """Any text."""

    type: Literal["text"]


class JsonObject(Strict):
    """A JSON object."""

    type: Literal["json_object"]


class NamedSchema(Strict):
    """A JSON schema with a name. It is enforced, whether `strict` or not."""

    name: str | None = None
    """Changes nothing."""
    description: str | None = None
    """Changes nothing."""
    schema_: Schema
    strict: bool | None = None


class JsonBySchema(Strict):
    """JSON that obeys a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[PlainText | JsonObject | JsonBySchema, Field(discriminator="type")]


class Regex(Strict):
    """A text that a regex matches from its beginning to its end."""

    type: Literal["regex"]
    value: Annotated[str, Field(min_length=1)]


ANY_OBJECT: dict[str, Any] = {"type": "object"}


def form_rules(schema: dict[str, Any] | None, regex: str | None, param: str) -> str:
    """Lark rules of an answer that obeys a JSON schema, or else a regex. Raises ApiError for one that is too large."""
    try:
        rule = json_rule(schema) if schema is not None else regex_rule(regex or "")
    except UserError as error:
        raise ApiError(400, str(error), param) from None
    return f"text: {rule}"


def schema_of(form: PlainText | JsonObject | JsonBySchema | None) -> dict[str, Any] | None:
    """The schema that an answer obeys; None: any text will do."""
    if isinstance(form, JsonBySchema):
        return form.json_schema.schema_
    return ANY_OBJECT if isinstance(form, JsonObject) else None
