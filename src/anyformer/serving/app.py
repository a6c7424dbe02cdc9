"""The application: checks of requests, endpoints, errors and the life of the models' threads.

Its own endpoints are `/health`, `/metrics`, `/v1/models`, `/tokenize` and `/detokenize`.
"""

import asyncio
import hmac
import ipaddress
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, Response
from pydantic import Field
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from anyformer import __version__
from anyformer.errors import UserError
from anyformer.serving import page
from anyformer.serving.answers import JsonAnswer
from anyformer.serving.api import chat, completions, encoders, messages, responses
from anyformer.serving.api.fields import RequestBody
from anyformer.serving.errors import ERRORS, ApiError, blaming, crashed, new_request_id, request_id
from anyformer.serving.served_model import ServedModel
from anyformer.serving.settings import LOOPBACK, ServerSettings
from anyformer.serving.state import ClientLeftError, Metrics, Server, ServerOf

log = logging.getLogger("anyformer.serving")
router = APIRouter()

_LONGEST_VALUE = 200
_MOST_DISCARDED = 64 << 20
"""Bytes of a refused request that are read before it is answered."""


def create_app(server: Server, key: str | None = None) -> FastAPI:
    """The application of a server."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        workers = {served.worker for served in server.models.values()}
        for worker in workers:
            worker.start(asyncio.get_running_loop())
        yield
        for worker in workers:
            worker.stop()

    app = FastAPI(title="anyformer", version=__version__, lifespan=lifespan, redoc_url=None, responses=ERRORS)
    app.state.server = server
    for module in (chat, completions, messages, responses, encoders, page):
        app.include_router(module.router)
    app.include_router(router)
    app.add_middleware(Gate, settings=server.settings, key=key, metrics=server.metrics)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(UserError, _user_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(ClientLeftError, _left)
    app.add_exception_handler(Exception, _crash)
    return app


@router.head("/health", include_in_schema=False)
@router.get("/health")
async def health() -> dict[str, str]:
    """Say that the server is there."""
    return {"status": "ok"}


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(server: ServerOf) -> Response:
    """Counts and durations, in Prometheus's format."""
    return Response(server.metrics.render(server.models.values()), media_type="text/plain; version=0.0.4")


@router.get("/v1/models")
async def models(server: ServerOf) -> dict[str, Any]:
    """The models that are served."""
    return {"object": "list", "data": [_described(served) for served in server.models.values()]}


@router.get("/v1/models/{name:path}")
async def model(name: str, server: ServerOf) -> dict[str, Any]:
    """One of them."""
    return _described(server.find(name))


def _described(served: ServedModel) -> dict[str, Any]:
    engine, tokenizer = served.worker.engine, served.tokenizer
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "anyformer",
        **({} if served.parent is None else {"parent": served.parent}),
        "model_type": served.model.config.model_type,
        "max_model_len": served.model.config.context_length if engine is None else engine.capacity,
        "capabilities": served.capabilities,
        "is_encoder_decoder": served.model.config.is_encoder_decoder,
        "eos_token_ids": served.ends,
        "chat_template": tokenizer is not None and tokenizer.chat_template is not None,
    }


class TokenizeRequest(RequestBody):
    """A text that becomes token ids."""

    prompt: str
    add_special_tokens: bool | None = True


@router.post("/tokenize")
async def tokenize(body: TokenizeRequest, server: ServerOf) -> dict[str, Any]:
    """Token ids of a text."""
    served = server.find(body.model)
    served.check_length(body.prompt, "prompt")
    tokenizer, special = served.require_tokenizer(), body.add_special_tokens is not False
    with blaming("prompt"):
        ids = await asyncio.to_thread(tokenizer.encode, body.prompt, special=special)
    return {"tokens": ids, "count": len(ids), "max_model_len": _described(served)["max_model_len"]}


class DetokenizeRequest(RequestBody):
    """Token ids that become a text."""

    tokens: Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(max_length=1 << 17, fail_fast=True)]


@router.post("/detokenize")
async def detokenize(body: DetokenizeRequest, server: ServerOf) -> dict[str, str]:
    """The text of token ids."""
    with blaming("tokens"):
        tokenizer = server.find(body.model).require_tokenizer()
        return {"prompt": await asyncio.to_thread(tokenizer.decode, body.tokens, skip_special=False)}


async def _api_error(request: Request, error: Any) -> Response:
    is_anthropic = request.url.path.startswith("/v1/messages")
    return JsonAnswer(error.anthropic_body if is_anthropic else error.body, error.status, headers=error.headers)


async def _user_error(request: Request, error: Any) -> Response:
    return await _api_error(request, ApiError(400, str(error)))


async def _invalid(request: Request, error: Any) -> Response:
    """A field that is missing, unknown or of another type, by its name."""
    # Of a union, the form that fits best: deepest, or else at least of the type.
    first = max(error.errors(), key=lambda each: (len(each["loc"]), not each["type"].endswith("_type")))
    name = ".".join(_place(first["loc"][1:], error.body, first["type"] == "missing"))[:_LONGEST_VALUE] or None
    if first["type"] == "extra_forbidden":
        message = f"There is no field {name!r} here, or this server can't honor it: leave it out."
    elif first["type"] == "json_invalid":
        message = f"The request is no JSON: {first.get('ctx', {}).get('error', 'it ends too early')}."
    elif name is None:
        message = "The request is no JSON object, or lacks the header Content-Type: application/json."
    else:
        message = f"{name}: {first['msg'][:_LONGEST_VALUE]}."
    return await _api_error(request, ApiError(400, message, name))


def _place(location: Sequence[str | int], body: Any, is_missing: bool) -> list[str]:
    """The path of a field in a request, without the names of the forms that a union has."""
    if not location:
        return []
    part, *rest = location
    paths = [_place(rest, body, is_missing)]
    inside: Any = body
    if (isinstance(body, dict) and part in body) or (isinstance(body, list) and part in range(len(body))):
        paths.append([str(part), *_place(rest, inside[part], is_missing)])
    elif is_missing and not rest:
        paths.append([str(part)])
    return max(paths, key=lambda path: (path[-1:] == [str(location[-1])], len(path)))


async def _http(request: Request, error: Any) -> Response:
    messages = {404: "There is no such path here: /docs lists them.", 400: "The request can't be read as JSON."}
    message = messages.get(error.status_code, f"{error.detail}.")
    return await _api_error(request, ApiError(error.status_code, message, headers=dict(error.headers or {})))


async def _left(request: Request, error: Any) -> Response:
    return Response(status_code=499)


async def _crash(request: Request, error: Exception) -> Response:
    log.error("the request %s failed", request_id.get(), exc_info=error)
    return await _api_error(request, crashed())


OPEN_PATHS = ("/", "/health")
"""Paths that need no key: they show nothing of the models."""


class Gate:
    """Refuses requests of strangers. In the browser, only pages of this server and of allowed origins may use it."""

    def __init__(self, app: ASGIApp, settings: ServerSettings, key: str | None, metrics: Metrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics
        self._key = None if key is None else key.encode()
        self._hosts = {host.lower() for host in (*LOOPBACK, settings.host, *settings.allow_host)}
        self._checks_host = settings.host in LOOPBACK or bool(settings.allow_host)
        self._origins = set(settings.allow_origin)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, status, name = Headers(scope=scope), 500, new_request_id()
        origin = headers.get("origin")
        allowed = origin if origin in self._origins else None

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status, sent = message["status"], MutableHeaders(scope=message)
                sent["X-Request-Id"] = name
                sent["X-Content-Type-Options"] = "nosniff"
                sent["Referrer-Policy"] = "no-referrer"
                if allowed is not None:
                    sent["Access-Control-Allow-Origin"] = allowed
                    sent.add_vary_header("Origin")
            await send(message)

        try:
            try:
                self._check(scope, headers, origin)
            except ApiError:
                if "expect" not in headers:  # else the client waits for the answer before it sends the rest
                    await _discard(receive)
                raise
            if allowed is not None and scope["method"] == "OPTIONS":
                await JsonAnswer({}, headers=_PREFLIGHT)(scope, receive, answer)
            else:
                await self._app(scope, receive, answer)
        except ApiError as error:
            await JsonAnswer(error.body, error.status, headers=error.headers)(scope, receive, answer)
        finally:
            route = scope.get("route")
            self._metrics.answered(getattr(route, "path", "other"), status)

    def _check(self, scope: Scope, headers: Headers, origin: str | None) -> None:
        host = headers.get("host", "")
        if self._checks_host and _name(host) not in self._hosts and not _is_loopback(_name(host)):
            raise ApiError(
                403, "This server is not known by that name: start it with --allow-host NAME.", code="unknown_host"
            )
        if origin is not None and origin not in self._origins and origin.partition("://")[2] != host:
            raise ApiError(
                403, "Pages of other sites may not use this server: start it with --allow-origin ORIGIN.", code="origin"
            )
        preflight = scope["method"] == "OPTIONS" and origin in self._origins
        if self._key is not None and scope["path"] not in OPEN_PATHS and not preflight:
            bearer = headers.get("authorization", "")
            given = headers.get("x-api-key") or (bearer[7:] if bearer[:7].lower() == "bearer " else bearer).strip()
            if not hmac.compare_digest(given.encode("utf-8", "replace"), self._key):
                raise ApiError(401, "The key is missing or wrong: send it as Authorization: Bearer KEY.")
        if "transfer-encoding" in headers:
            raise ApiError(411, "The request does not say how long it is: send it with a Content-Length.")
        if int(headers.get("content-length", "0")) > self._settings.max_body:
            raise ApiError(413, f"The request has more than {self._settings.max_body:,} bytes.")


async def _discard(receive: Receive) -> None:
    """Read the rest of a request: many clients read no answer before they have sent it."""
    size = 0
    while size < _MOST_DISCARDED:
        message = await receive()
        if not message.get("more_body", False):
            return
        size += len(message.get("body", b""))


_PREFLIGHT = {"Access-Control-Allow-Methods": "GET, POST", "Access-Control-Allow-Headers": "*"}


def _name(host: str) -> str:
    """The name in a Host header, without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
