"""`anyformer chat MODEL`: talk with a model in the terminal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from anyformer.cli.loading import LoadOptions
from anyformer.cli.options import Positional, generation_options, parse

_SECTIONS: dict[str, tuple[str, ...]] = {
    "sampling": (
        *("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"),
        "seed",
    )
}
"""Fields of ChatOptions by section of the help."""


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
    max_new_tokens: int = 1024
    """Stop an answer after this many tokens."""
    loading: LoadOptions = LoadOptions()


def run(argv: list[str]) -> int:
    """Load the model and talk."""
    options = parse(ChatOptions, argv, "chat", _SECTIONS)

    from anyformer.cli.terminal import Terminal
    from anyformer.generation import Conversation

    model, tokenizer = options.loading.load(options.model)
    terminal = Terminal(Conversation(model, tokenizer, options.system, **generation_options(options)))
    terminal.greet(options.model, model)
    return terminal.talk()
