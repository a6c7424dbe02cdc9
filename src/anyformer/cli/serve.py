"""`anyformer serve MODEL ...`: an OpenAI-compatible server."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

from anyformer.cli.options import LoadOptions, Positional, parse
from anyformer.errors import UserError
from anyformer.serving.settings import ServerSettings
from anyformer.terminal import message


@dataclass(frozen=True, kw_only=True)
class ServeOptions(ServerSettings, LoadOptions):
    """Serve models to any client of OpenAI's API, and a page to talk to them.

    Clients ask for a model by the last part of its path, or by the name before "=" where there is one. Ctrl-C stops.

    Examples:
        anyformer serve HuggingFaceTB/SmolLM2-135M-Instruct --quantize int4
        anyformer serve chat=runs/chat-1 vectors=sentence-transformers/all-MiniLM-L6-v2 --port 9000
        anyformer serve openai-community/gpt2 --host 0.0.0.0 --api-key-file key.txt
    """

    models: Annotated[Positional[tuple[str, ...]], "[NAME=]MODEL"]
    """Model directories, run directories, GGUF files or hub ids."""


def run(argv: list[str]) -> int:
    """Load the models, and serve them."""
    options = parse(ServeOptions, argv, "serve")
    try:
        from anyformer.serving.serve import api_key, serve_models
    except ModuleNotFoundError as error:
        raise UserError(f"A server takes {error.name}: pip install 'anyformer[serve]'.") from error

    settings = ServerSettings(**{field.name: getattr(options, field.name) for field in fields(ServerSettings)})
    settings.check(api_key(settings))
    models = {}
    for name, path in map(_named, options.models):
        if name in models:
            raise UserError(f"Two models have the name {name}: write NAME=MODEL for one of them.")
        models[name] = options.load(path)
    listed = ", ".join(models)

    def started(url: str) -> None:
        message(f"anyformer: {listed} at {url}/v1, and a page at {url} (Ctrl-C stops).")

    serve_models(models, settings, started=started)
    return 0


def _named(argument: str) -> tuple[str, str]:
    """The name of a model, and where it is."""
    name, equals, path = argument.partition("=")
    if equals and name and "/" not in name:
        return name, path
    return Path(argument.rstrip("/")).name, argument
