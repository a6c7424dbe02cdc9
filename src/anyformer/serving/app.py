"""The application: endpoints, errors and the life of the models' threads."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from anyformer import __version__
from anyformer.errors import UserError
from anyformer.serving import page
from anyformer.serving.answers import JsonAnswer
from anyformer.serving.api import chat, completions, encoders, messages, responses, status
from anyformer.serving.errors import ERRORS, ApiError, crashed
from anyformer.serving.gate import Gate
from anyformer.serving.state import ClientLeftError, Server

log = logging.getLogger("anyformer.serving")

_LONGEST_VALUE = 200


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
    for module in (chat, completions, messages, responses, encoders, page, status):
        app.include_router(module.router)
    app.add_middleware(Gate, settings=server.settings, key=key, metrics=server.metrics)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(UserError, _user_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(ClientLeftError, _left)
    app.add_exception_handler(Exception, _crash)
    return app


async def _api_error(request: Request, error: Any) -> Response:
    return JsonAnswer(error.body, error.status, headers=error.headers)


async def _user_error(request: Request, error: Any) -> Response:
    return await _api_error(request, ApiError(400, str(error)))


async def _invalid(request: Request, error: Any) -> Response:
    """A field that is missing, unknown or of another type, by its name."""
    first = max(error.errors(), key=lambda each: len(each["loc"]))  # of a union, the form that fits best
    name = ".".join(_place(first["loc"][1:], error.body, first["type"] == "missing"))[:_LONGEST_VALUE] or None
    if first["type"] == "extra_forbidden":
        message = f"There is no field {name!r} here, or this server can't honor it: leave it out."
    elif first["type"] == "json_invalid":
        message = f"The request is no JSON: {first.get('ctx', {}).get('error', 'it ends too early')}."
    else:
        message = f"{name or 'The request'}: {first['msg'][:_LONGEST_VALUE]}."
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
    log.error("a request failed", exc_info=error)
    return await _api_error(request, crashed())
