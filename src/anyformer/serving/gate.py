"""Checks of a request before it is read: the host that it names, its origin, its key and its size."""

import hmac
import ipaddress

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from anyformer.serving.answers import JsonAnswer
from anyformer.serving.errors import ApiError
from anyformer.serving.metrics import Metrics
from anyformer.serving.settings import LOOPBACK, ServerSettings

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
        headers, status = Headers(scope=scope), 500
        origin = headers.get("origin")
        allowed = origin if origin in self._origins else None

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _harden(MutableHeaders(scope=message), allowed)
            await send(message)

        try:
            self._check(scope, headers, origin)
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
            given = headers.get("x-api-key") or headers.get("authorization", "").removeprefix("Bearer ").strip()
            if not hmac.compare_digest(given.encode("utf-8", "replace"), self._key):
                raise ApiError(401, "The key is missing or wrong: send it as Authorization: Bearer KEY.")
        if "transfer-encoding" in headers:
            raise ApiError(411, "The request does not say how long it is: send it with a Content-Length.")
        if int(headers.get("content-length", "0")) > self._settings.max_body:
            raise ApiError(413, f"The request has more than {self._settings.max_body:,} bytes.")


_PREFLIGHT = {"Access-Control-Allow-Methods": "GET, POST", "Access-Control-Allow-Headers": "*"}


def _harden(headers: MutableHeaders, origin: str | None) -> None:
    headers["X-Content-Type-Options"] = "nosniff"
    headers["Referrer-Policy"] = "no-referrer"
    if origin is not None:
        headers["Access-Control-Allow-Origin"] = origin
        headers.add_vary_header("Origin")


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
