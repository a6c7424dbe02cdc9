"""Errors of the API, as OpenAI's: a status, and a body with a message, a type, the field and a code."""

import secrets
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from anyformer.errors import UserError

_TYPES = {
    400: ("invalid_request_error", None),
    401: ("authentication_error", "invalid_api_key"),
    403: ("permission_error", "forbidden"),
    404: ("invalid_request_error", "not_found"),
    405: ("invalid_request_error", "method_not_allowed"),
    411: ("invalid_request_error", "length_required"),
    413: ("invalid_request_error", "request_too_large"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
    500: ("server_error", "internal_error"),
    503: ("server_error", "shutting_down"),
    504: ("server_error", "timeout"),
}
_ANTHROPIC_TYPES = {
    404: "not_found_error",
    413: "request_too_large",
    500: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class ApiError(Exception):
    """An error that a client is told about.

    Attributes:
        code: A word for programs; None: that of the status.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param = status, message, param
        self.type, usual = _TYPES.get(status, _TYPES[400])
        self.code = code or usual
        self.headers = headers or {}

    @property
    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"type": "error", "error": error}  # the outer type is Anthropic's

    @property
    def anthropic_body(self) -> dict[str, Any]:
        """The JSON of an answer in Anthropic's types."""
        body = self.body
        body["error"]["type"] = _ANTHROPIC_TYPES.get(self.status, self.type)
        return body


@contextmanager
def blaming(param: str) -> Generator[None]:
    """Answer a UserError in this context as the fault of a field."""
    try:
        yield
    except UserError as error:
        raise ApiError(400, str(error), param) from None


_STRING: dict[str, Any] = {"type": "string"}
_STRING_OR_NULL: dict[str, Any] = {"type": ["string", "null"]}
_FIELDS = {"message": _STRING, "type": _STRING, "param": _STRING_OR_NULL, "code": _STRING_OR_NULL}
_ERROR = {"type": "object", "properties": _FIELDS, "required": list(_FIELDS)}
ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {
        "description": "The request can't be honored, and why.",
        "content": {
            "application/json": {"schema": {"type": "object", "properties": {"error": _ERROR}, "required": ["error"]}}
        },
    }
}
"""Errors in OpenAPI's words."""


request_id: ContextVar[str] = ContextVar("request_id", default="of nobody")
"""The id of the request that is answered, as its header `X-Request-Id` and the log have it."""


def new_request_id() -> str:
    """Begin a request."""
    request_id.set(f"req_{secrets.token_hex(8)}")
    return request_id.get()


def crashed() -> ApiError:
    """The answer to a request that failed for a reason that is not the client's; the server's log has it."""
    return ApiError(500, f"The request {request_id.get()} failed in the server; its log says why.")
