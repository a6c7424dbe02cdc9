"""The models of a server, and what its endpoints share."""

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request
from starlette.types import Receive

from anyformer.errors import nearest, quote
from anyformer.serving.errors import ApiError
from anyformer.serving.metrics import Metrics
from anyformer.serving.served_model import ServedModel
from anyformer.serving.settings import ServerSettings
from anyformer.serving.worker import Stream


class ClientLeftError(Exception):
    """Nobody waits for the answer any more."""


@dataclass(eq=False)
class Server:
    """The models of a server by name, in the order in which they were given."""

    settings: ServerSettings
    models: Mapping[str, ServedModel]
    metrics: Metrics = field(default_factory=Metrics)

    def find(self, name: str) -> ServedModel:
        """A model. Raises ApiError for a name that there is not."""
        served = self.models.get(name)
        if served is None:
            message = f"There is no model {quote(name)} here: {nearest(name[:200], self.models)}"
            raise ApiError(404, message, "model", "model_not_found")
        return served

    def limit(self, count: int, param: str) -> None:
        """Raise ApiError for more texts in one request than the server takes."""
        if count > self.settings.max_n:
            most = self.settings.max_n
            raise ApiError(400, f"{param} makes {count:,} texts of this request, and {most} are allowed.", param)

    @asynccontextmanager
    async def running(
        self, receive: Receive, served: ServedModel, streams: Sequence[Stream] = ()
    ) -> AsyncGenerator[None]:
        """Texts, or other work, while the client waits: whatever happens, their slots are free afterwards.

        Raises:
            ApiError: They take longer than the server's timeout.
            ClientLeftError: The client left.
        """
        began, task, left = time.perf_counter(), asyncio.current_task(), False
        assert task is not None

        async def watch() -> None:
            nonlocal left
            while (await receive())["type"] != "http.disconnect":
                pass
            left = True
            task.cancel()

        watcher = asyncio.create_task(watch())
        try:
            async with asyncio.timeout(self.settings.timeout or None):
                yield
        except TimeoutError:
            raise ApiError(504, f"The request took longer than {self.settings.timeout:g} seconds.") from None
        except asyncio.CancelledError:
            if not left:
                raise
            task.uncancel()
            raise ClientLeftError from None
        finally:
            watcher.cancel()
            with suppress(asyncio.CancelledError):
                await watcher
            served.worker.release(streams)
            self.metrics.finished(served.name, streams, time.perf_counter() - began)


def _server_of(request: Request) -> Server:
    return request.app.state.server


ServerOf = Annotated[Server, Depends(_server_of)]
"""The server that a request is for."""
