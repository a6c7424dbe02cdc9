"""`anyformer serve MODEL ...`: an OpenAI-compatible server."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from anyformer.cli.options import LoadOptions, Positional, make, parse
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
        anyformer serve base=Qwen/Qwen3-0.6B --adapter poet=runs/poems lawyer=runs/contracts

    clients, once it runs:
        curl http://127.0.0.1:8000/v1/models
        OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=none openai api models.list
        OPENAI_API_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=none open-webui serve
        lm_eval --model local-completions --tasks lambada_openai --model_args \\
            base_url=http://127.0.0.1:8000/v1/completions,model=NAME,tokenizer=MODEL
    """

    models: Annotated[Positional[tuple[str, ...]], "[NAME=]MODEL"]
    """Model directories, run directories, GGUF files or hub ids."""
    adapter: Annotated[tuple[str, ...], "[NAME=]DIR"] = ()
    """Low-rank adapters of the first model, in PEFT's format or in mlx-lm's, each served under its own name."""
    draft: str | None = None
    """Guess tokens ahead while few texts run, for the same texts: "prompt" looks for what followed the same words
    before; or name a smaller model of the same vocabulary."""


def run(argv: list[str]) -> int:
    """Load the models, and serve them."""
    options = parse(ServeOptions, argv, "serve")
    try:
        from anyformer.checkpoint.adapter_directory import replaces_weights
        from anyformer.console import Console
        from anyformer.generation.inference import generates
        from anyformer.serving.serve import api_key, serve_models
    except ModuleNotFoundError as error:
        raise UserError(f"A server takes {error.name}: pip install 'anyformer[serve]'.") from error

    settings = make(ServerSettings, vars(options))
    settings.check(api_key(settings))
    models, adapters = ([*map(_named, given)] for given in (options.models, options.adapter))
    names = [name for name, _ in (*models, *adapters)]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"Two models have the name {name}: write NAME=MODEL for one of them.")
    plain, (first, path) = replace(options, adapter=()), models[0]
    loaded = {name: plain.load(path) for name, path in models}
    beside = dict[str, Any]()
    for name, place in adapters:
        # One that replaces weights, such as a classifier's, gets a copy of the model.
        is_alone = replaces_weights(place) or not generates(loaded[first][0])
        beside[name] = replace(options, adapter=(place,)).load(path) if is_alone else place
    draft = options.draft
    if draft is not None and draft != "prompt":
        draft = replace(plain, quantize=None).load(draft)[0]
    listed = ", ".join(names)
    with Console(stderr=True).status("warming up") as status:

        def started(url: str) -> None:
            status.stop()
            message(f"anyformer: {listed} at {url}/v1, and a page at {url} (Ctrl-C stops).")

        serve_models(
            loaded,
            settings,
            {first: beside},
            draft,
            preparing=lambda name: status.update(f"warming up {name}"),
            started=started,
        )
    return 0


def _named(argument: str) -> tuple[str, str]:
    """The name of a model, and where it is."""
    name, equals, path = argument.partition("=")
    if equals and name and "/" not in name:
        return name, path
    return Path(argument.rstrip("/")).name, argument
