"""`anyformer chat MODEL`: talk with a model in the terminal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from anyformer.cli.loading import LoadOptions
from anyformer.cli.options import Positional, parse
from anyformer.errors import UserError

if TYPE_CHECKING:
    from anyformer.generation import Sampling
    from anyformer.model import Transformer

_USUAL_TOKENS = 1024
_USUAL_TEMPERATURE = 0.7


@dataclass(frozen=True)
class ChatOptions:
    """Talk with a model, in the words of its own chat template.

    Ctrl-C stops an answer; at the prompt, Ctrl-D leaves. Questions can also be piped in, one a line.

    Examples:
        anyformer chat HuggingFaceTB/SmolLM2-135M-Instruct --quantize int4
        anyformer chat runs/llama-nano-1 --system "Answer in one sentence." --temperature 0
    """

    model: Positional[str]
    """A model directory, a run directory, a GGUF file, or a hub id."""
    system: str | None = None
    """How the model is to behave (default: what its template says)."""
    temperature: Annotated[float | None, "T"] = None
    """0: always the likeliest token; above: draw, the bolder the higher (default: the model's own, or 0.7)."""
    top_p: Annotated[float | None, "P"] = None
    """Draw from the likeliest tokens that have this probability together (default: the model's own, or all)."""
    top_k: int | None = None
    """Draw from the k likeliest tokens only (default: the model's own, or all)."""
    min_p: Annotated[float | None, "P"] = None
    """Draw from tokens only that are at least this share as likely as the likeliest."""
    repetition_penalty: float = 1.0
    """Above 1: what the conversation has already becomes less likely."""
    presence_penalty: float = 0.0
    """Above 0: what the answer has already becomes less likely."""
    frequency_penalty: float = 0.0
    """Above 0: the more often the answer has something, the less likely it becomes."""
    stop: Annotated[tuple[str, ...], "STRING"] = ()
    """Strings that end an answer, and are no part of it."""
    seed: int | None = None
    """Makes the answers repeatable."""
    max_new_tokens: int = _USUAL_TOKENS
    """Stop an answer after this many tokens."""
    loading: LoadOptions = LoadOptions()


def run(argv: list[str]) -> int:
    """Load the model and talk."""
    options = parse(ChatOptions, argv, "chat")
    if options.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens is at least 1, not {options.max_new_tokens}.")

    from anyformer.cli.terminal import Terminal
    from anyformer.generation import Conversation
    from anyformer.generation.stop import StopStrings

    model, tokenizer = options.loading.load(options.model)
    sampling = _sampling(options, model)
    conversation = Conversation(model, tokenizer, options.system, options.seed)
    StopStrings(options.stop)  # refused before the first question
    terminal = Terminal(conversation, sampling, options.max_new_tokens, options.stop)
    terminal.greet(options.model, model)
    return terminal.talk()


def _sampling(options: ChatOptions, model: Transformer) -> Sampling:
    """What the user asks for, else what the model's generation_config.json recommends."""
    from anyformer.generation import Sampling

    own = model.origin.generation

    def chosen(given: float | None, name: str) -> Any:
        return own.get(name) if given is None else given

    temperature = chosen(options.temperature, "temperature")
    if temperature is None:
        temperature = 0.0 if own.get("do_sample") is False else _USUAL_TEMPERATURE
    # A model's own 0 tokens mean that none is left out.
    top_k = None if options.top_k is None and own.get("top_k") == 0 else chosen(options.top_k, "top_k")
    top_p = chosen(options.top_p, "top_p")
    return Sampling(
        temperature=float(temperature),
        top_k=top_k,
        top_p=None if top_p is None else float(top_p),
        min_p=options.min_p,
        repetition_penalty=options.repetition_penalty,
        presence_penalty=options.presence_penalty,
        frequency_penalty=options.frequency_penalty,
    )
