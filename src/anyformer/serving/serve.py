"""Run a server until it is told to stop."""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from statistics import mode
from typing import Any

import h11
import uvicorn
from typing_extensions import override
from uvicorn.protocols.http.h11_impl import H11Protocol

from anyformer.checkpoint.adapter_directory import find_adapter, load_adapter, path_and_weight
from anyformer.checkpoint.load import takes_model
from anyformer.errors import UserError, check_keywords, quote
from anyformer.generation.batching import BatchingEngine
from anyformer.generation.inference import generates
from anyformer.generation.speculative_decoding import Draft
from anyformer.model import Transformer
from anyformer.schema import change, hints
from anyformer.serving.app import create_app
from anyformer.serving.served_model import ServedModel
from anyformer.serving.settings import ServerSettings
from anyformer.serving.state import Server
from anyformer.serving.worker import Worker
from anyformer.tokenizer import Tokenizer

REQUEST_SECONDS = 60.0
"""Seconds in which a request has to arrive, from its first byte, or from the beginning of its connection."""
KEY_VARIABLE = "ANYFORMER_API_KEY"
_LONGEST_KEY = 4096
_LONGEST_HEAD = 64 << 10
"""Bytes of the head of a request."""


def api_key(settings: ServerSettings) -> str | None:
    """The key of the file that the settings name, else of the environment; None: there is none.

    Raises:
        UserError: the file can't be read, or is empty.
    """
    if settings.api_key_file is None:
        return os.environ.get(KEY_VARIABLE) or None
    try:
        with Path(settings.api_key_file).open(encoding="utf-8") as file:
            key = file.readline(_LONGEST_KEY).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The key can't be read from {settings.api_key_file}: {error}.") from error
    if not key:
        raise UserError(f"The first line of {settings.api_key_file} is empty: write the key into it.")
    return key


Loaded = tuple[Transformer, Tokenizer | None]
Adapters = Mapping[str, str | Path | Loaded]
"""The directories of adapters by the names that clients use, or models that have an adapter merged."""


def make_server(
    models: Mapping[str, Loaded],
    settings: ServerSettings | None = None,
    adapters: Mapping[str, Adapters] | None = None,
    draft: Draft | None = None,
) -> Server:
    """The server of these models, by the names that clients use. Arguments and errors are those of `serve_models`."""
    settings, served = settings or ServerSettings(), dict[str, ServedModel]()
    names = [*models, *(name for own in (adapters or {}).values() for name in own)]
    if len(set(names)) < len(names):
        raise UserError(f"An adapter has the name {quote(mode(names))} of another or of a model: give it its own.")

    def add(name: str, loaded: Loaded, keys: Sequence[str] = (), parent: str | None = None) -> ServedModel:
        slots, capacity, engine = settings.slots, settings.context, None
        if generates(loaded[0]):
            engine = BatchingEngine(*loaded, slots, capacity, prefixes=slots, adapters=keys, draft=draft)
        served[name] = ServedModel(name, *loaded, Worker(loaded[0], engine, settings.queue), parent=parent)
        return served[name]

    for parent, (model, tokenizer) in models.items():
        own, keys = (adapters or {}).get(parent, {}), dict[str, str]()
        for name, place in own.items():
            if not isinstance(place, tuple):
                keys[name] = f"served-{len(model.adapter_configs) + 1}"  # not every name can be a module's
                load_adapter(model, place, keys[name], beside=True)
        worker = add(parent, (model, tokenizer), list(keys.values())).worker
        for name, place in own.items():
            if isinstance(place, tuple):
                add(name, place, parent=parent)
            else:
                trained_with = Tokenizer.find(find_adapter(path_and_weight(place)[0]) or Path(place)) or tokenizer
                served[name] = ServedModel(name, model, trained_with, worker, adapter=keys[name], parent=parent)
    return Server(settings, served)


class _Http(h11.Connection):
    """HTTP whose streamed bodies are written without h11's checks, which take a fifth of the time of an event."""

    _is_chunked = False

    @override
    def send(self, event: Any) -> bytes | None:  # type: ignore[override]
        if self._is_chunked and isinstance(event, h11.Data) and event.data:
            return b"%x\r\n%b\r\n" % (len(event.data), event.data)
        written = super().send(event)
        if isinstance(event, h11.Response):
            self._is_chunked = b"transfer-encoding: chunked" in (written or b"").lower()
        return written


class Connection(H11Protocol):
    """A connection that is closed where a request doesn't arrive in time: clients that stall would keep it for ever.

    h11 limits the headers of a request, which uvicorn's other implementation of HTTP doesn't.
    """

    _deadline: asyncio.TimerHandle | None = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.conn = _Http(h11.SERVER, _LONGEST_HEAD)

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    @override
    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._wait()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait(self) -> None:
        """Begin to wait for the rest of a request; what arrives in between changes nothing."""
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY) or self.transport.is_closing():
            self._stop_waiting()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(REQUEST_SECONDS, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def http_config(server: Server, key: str | None = None) -> uvicorn.Config:
    """The settings of uvicorn with which a server answers."""
    return uvicorn.Config(
        create_app(server, key),
        http=Connection,
        ws="none",
        log_config=None,
        access_log=False,
        lifespan="on",
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=max(1, round(server.settings.grace)),
    )


@takes_model
def serve(
    model: Transformer,
    tokenizer: Tokenizer | None,
    *,
    name: str = "model",
    adapters: Adapters | None = None,
    draft: Draft | None = None,
    settings: ServerSettings | None = None,
    started: Callable[[str], None] = print,
    **options: Any,
) -> None:
    """Serve a model to clients of OpenAI's API, until Ctrl-C. See `serve_models`.

    Args:
        model, tokenizer: A model of any kind and its tokenizer, or the directory of both.
        name: The name by which clients ask for it.
        adapters: Directories of low-rank adapters by the names by which clients ask for them. The model keeps them.
        draft, settings, started: As for `serve_models`.
        **options: Fields of the settings that differ, such as ``port=8765``.

    Raises:
        UserError: as `serve_models`, and for a field of the settings that is misshapen.
    """
    check_keywords("serve", options, {*hints(ServerSettings), "name", "adapters", "draft", "settings", "started"})
    settings = change(settings or ServerSettings(), options)
    serve_models({name: (model, tokenizer)}, settings, {name: adapters or {}}, draft, started=started)


def serve_models(
    models: Mapping[str, Loaded],
    settings: ServerSettings | None = None,
    adapters: Mapping[str, Adapters] | None = None,
    draft: Draft | None = None,
    *,
    preparing: Callable[[str], None] = lambda name: None,
    started: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve models until SIGTERM or SIGINT; requests that run get `grace` seconds to finish, and a second SIGINT none.

    Args:
        models: Models and their tokenizers by the names that clients use.
        settings: Address, limits and keys; None: this machine only, on port 8000.
        adapters: Low-rank adapters by the names of their models: texts with several of them share a batch, and the
            weights of the model are in memory once.
        draft: Guesses tokens of all models that generate text while few texts run, as for `generate_ids`.
        preparing: Called with the name of each model before it computes for the first time.
        started: Called with the server's address once it listens.

    Raises:
        UserError: the address is taken, other machines could use the server without a key, an adapter is refused by
            `load_adapter` or replaces weights of its model, or the draft can't guess for a model.
    """
    settings = settings or ServerSettings()
    key = api_key(settings)
    settings.check(key)
    server = make_server(models, settings, adapters, draft)
    for served in server.models.values():
        preparing(served.name)
        served.warm_up()
    config = http_config(server, key)
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # what fails is in our own log, once
    with _listener(settings) as listener, _quiet_signals():
        host, port = listener.getsockname()[:2]
        started(f"http://{f'[{host}]' if ':' in host else host}:{port}")
        # Looking for garbage among all objects of torch would stop all texts for 0.2 s, once in some thousand requests.
        gc.freeze()
        try:
            uvicorn.Server(config).run(sockets=[listener])
        finally:
            gc.unfreeze()


def _listener(settings: ServerSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except OSError as error:
        raise UserError(
            f"Nothing can listen at {settings.host}, port {settings.port} ({error.strerror or error}): choose another "
            "port (--port 0 takes any that is free), or stop what listens there."
        ) from error


@contextlib.contextmanager
def _quiet_signals() -> Generator[None]:
    """uvicorn raises the signals that stopped it once more when it is done: here they have done what they should."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, lambda number, frame: None)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
