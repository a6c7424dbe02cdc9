"""Settings of a server."""

from dataclasses import dataclass
from typing import Annotated

from anyformer.errors import UserError
from anyformer.schema import Rule

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Addresses that only this machine reaches."""

_AT_LEAST_1 = Rule(lambda number: number >= 1, "is at least 1")
_PORT = Rule(lambda number: 0 <= number <= 65535, "is a port, 0 to 65535 (0: any that is free)")
_SECONDS = Rule(lambda number: number >= 0, "is a number of seconds, 0 or more")


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Serving."""

    host: str = "127.0.0.1"
    """Address to listen on; any other than this machine's own wants a key, or --no-auth."""
    port: Annotated[int, _PORT] = 8000
    """Port to listen on; 0: any that is free."""
    api_key_file: str | None = None
    """File whose first line is the key that clients send (default: ANYFORMER_API_KEY, if that is set)."""
    no_auth: bool = False
    """Serve other machines without a key."""
    allow_host: tuple[str, ...] = ()
    """Names by which clients reach this machine, beside its own (checked against DNS rebinding)."""
    allow_origin: tuple[str, ...] = ()
    """Origins of web pages that may use the server (CORS; default: its own page only)."""
    slots: Annotated[int, _AT_LEAST_1] = 16
    """Texts that are generated at a time."""
    context: Annotated[int | None, _AT_LEAST_1] = None
    """Longest text with its prompt, in tokens (default: the model's context, at most 2048)."""
    queue: Annotated[int, _AT_LEAST_1] = 64
    """Texts that wait for a slot; more are answered with 429."""
    max_body: Annotated[int, _AT_LEAST_1] = 4 << 20
    """Largest request in bytes."""
    max_n: Annotated[int, _AT_LEAST_1] = 16
    """Most texts and prompts of one request."""
    timeout: Annotated[float, _SECONDS] = 600.0
    """Seconds after which a request is ended."""
    grace: Annotated[float, _SECONDS] = 30.0
    """Seconds that running requests get to finish after SIGTERM."""

    def check(self, key: str | None) -> None:
        """Raise UserError where other machines could use the server without a key, and nobody said that they may."""
        if self.host not in LOOPBACK and key is None and not self.no_auth:
            raise UserError(
                f"Everybody who reaches {self.host} could use this server: give it a key (ANYFORMER_API_KEY, or "
                "--api-key-file FILE), or say --no-auth."
            )
