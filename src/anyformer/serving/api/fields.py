"""Fields that several requests have. One that can't be honored is refused by its name, never ignored."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from typing_extensions import override

from anyformer.generation.config import GenerationOptions
from anyformer.serving.errors import ApiError, blaming
from anyformer.serving.grammar import json_rule, regex_rule
from anyformer.serving.tool_formats import Function

T = TypeVar("T")

_SEED = Field(ge=-(2**63), lt=2**63)
Temperature = Annotated[float, Field(ge=0, le=100)]
Probability = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Count = Annotated[int, Field(ge=1, le=1 << 24)]
PrefixIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, fail_fast=True)]
_TokenId = Annotated[str, Field(pattern=r"^\d{1,9}$")]
Schema = Annotated[dict[str, Any], Field(alias="schema")]
MOST_TOOLS = 128
ToolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
Choice = Literal["none", "auto", "required"]
Unused = Annotated[T | None, "changes nothing"]
"""A field that clients send, and that has no effect here."""
LONGEST_STOP = 1024
"""Characters of a stop string."""
MOST_MESSAGES = 4096
Stop = Annotated[str, Field(max_length=LONGEST_STOP)]
Stops = Annotated[list[Annotated[Stop, Field(min_length=1)]], Field(max_length=16, fail_fast=True)]
MOST_BIASES = 1 << 12


Bias = Annotated[float, Field(ge=-100, le=100)]


def _few(biases: Any) -> Any:
    """Raise ValueError for more biases than there may be, before each is checked."""
    if isinstance(biases, dict) and len(cast("dict[str, Any]", biases)) > MOST_BIASES:
        raise ValueError(f"at most {MOST_BIASES:,} tokens can have one")
    return biases


class Strict(BaseModel):
    """A part of a request. Fields that it doesn't have are refused unless they are null, and numbers that are none."""

    model_config = ConfigDict(
        extra="forbid",
        allow_inf_nan=False,
        protected_namespaces=(),
        json_schema_extra={"additionalProperties": {"type": "null"}},
    )

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        """Leave out fields that are null and that it doesn't have: many clients name all fields that they know."""
        if not isinstance(given, dict):
            return given
        fields = cast("dict[str, Any]", given)
        names = {field.alias or name for name, field in cls.model_fields.items()}
        unknown = [name for name, value in fields.items() if value is not None and name not in names]
        # One fault is told, and to gather a million would hold the server.
        return {name: fields[name] for name in [*names & fields.keys(), *unknown[:1]]}


def joined(content: str | Sequence[Any] | None) -> str:
    """The text of a message: as it is, or that of its parts."""
    return content or "" if content is None or isinstance(content, str) else "".join(part.text for part in content)


class RequestBody(Strict):
    """A request."""

    model: str
    """Name of a model of `/v1/models`."""


class Ignored(Strict):
    """Fields of OpenAI's that change nothing here: prefixes that were read before are always reused."""

    user: str | None = None
    service_tier: Literal["auto", "default"] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None


class StreamOptions(Strict):
    """Options of a streamed answer."""

    include_obfuscation: Literal[False] | None = None


class ChunkOptions(StreamOptions):
    """Options of an answer that is streamed in chunks."""

    include_usage: bool | None = False
    """Send the numbers of tokens in a last chunk."""


class PlainText(Strict):
    """Any text."""

    type: Literal["text"]


class JsonObject(Strict):
    """A JSON object."""

    type: Literal["json_object"]


class NamedSchema(Strict):
    """A JSON schema with a name. It is enforced, whether `strict` or not."""

    name: Unused[str] = None
    description: Unused[str] = None
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


def form_rules(schema: dict[str, Any] | None, regex: str | None, param: str) -> str:
    """Lark rules of an answer that obeys a JSON schema, or else a regex. Raises ApiError for one that is too large."""
    with blaming(param):
        return f"text: {json_rule(schema) if schema is not None else regex_rule(regex or '')}"


def schema_of(form: PlainText | JsonObject | NamedSchema | None) -> dict[str, Any] | None:
    """The schema that an answer obeys; None: any text will do."""
    if isinstance(form, NamedSchema):
        return form.schema_
    return {"type": "object"} if isinstance(form, JsonObject) else None


class FunctionBody(Strict):
    """A function that the model may call."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """JSON schema of its arguments."""
    strict: bool | None = None
    """Enforce the schema."""

    def made(self) -> Function:
        """The function."""
        return Function(self.name, self.description, self.parameters, bool(self.strict))


class TextBody(RequestBody):
    """A request for text."""

    temperature: Temperature | None = None
    """0: always the likeliest token."""
    top_p: Probability | None = None
    stream: bool | None = False

    def options(self) -> GenerationOptions:
        """The fields that were given, as options of generation."""
        options = GenerationOptions()
        if self.temperature is not None:
            options["temperature"] = self.temperature if self.temperature >= 1e-6 else 0.0
        if self.top_p is not None:
            options["top_p"] = max(self.top_p, 1e-9)  # the likeliest token is always kept
        return options


class SamplingBody(Ignored, TextBody):
    """A request for text with all that OpenAI's older endpoints have."""

    top_k: Annotated[int, Field(ge=-1)] | None = None
    """0 or -1: all tokens."""
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[dict[_TokenId, Bias], BeforeValidator(_few), Field(max_length=MOST_BIASES)] | None = None
    """By token id, as a string; -100 bans a token."""
    seed: Annotated[int, _SEED] | None = None
    stop: Stop | Stops | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    stream_options: ChunkOptions | None = None
    response_format: ResponseFormat | None = None
    """JSON, or JSON by a schema."""
    grammar: Regex | None = None
    """A regex that the text matches."""
    ignore_eos: bool | None = False
    """Go on behind the end of the text."""
    metadata: Unused[dict[str, Any]] = None
    min_tokens: Literal[0] | None = None
    stop_token_ids: Annotated[list[int], Field(max_length=0)] | None = None
    skip_special_tokens: Literal[True] | None = None
    cache_prompt: bool | None = None
    """Changes nothing: prefixes that were read before are always reused."""

    def rules(self) -> str | None:
        """Lark rules of what the text may be; None: anything. Raises ApiError for a grammar that is too large."""
        form = self.response_format
        schema = schema_of(form.json_schema if isinstance(form, JsonBySchema) else form)
        if self.grammar is not None and schema is not None:
            raise ApiError(400, "grammar and response_format both say what the text may be: leave out one.", "grammar")
        if self.grammar is None and schema is None:
            return None
        return form_rules(schema, self.grammar and self.grammar.value, self.rules_param)

    @property
    def rules_param(self) -> str:
        """The field that `rules` come from."""
        return "response_format" if self.grammar is None else "grammar"

    @override
    def options(self) -> GenerationOptions:
        plain = {"min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed"}
        given = self.model_dump(include=plain, exclude_none=True)
        if self.top_k is not None:
            given["top_k"] = self.top_k if self.top_k > 0 else None
        if self.stop:
            given["stop"] = self.stop if isinstance(self.stop, str) else tuple(self.stop)
        if self.logit_bias:
            given["logit_bias"] = {
                int(token): -float("inf") if bias <= -100 else bias for token, bias in self.logit_bias.items()
            }
        if self.ignore_eos:
            given["stop_at_eos"] = False
        return GenerationOptions(**super().options(), **given)
