"""`anyformer chat MODEL`: talk with a model in the terminal."""

from dataclasses import dataclass
from typing import Annotated

from anyformer.cli.generate import SamplingOptions, generation_options
from anyformer.cli.options import ModelOptions, Text, parse


@dataclass(frozen=True, kw_only=True)
class ChatOptions(SamplingOptions, ModelOptions):
    """Talk with a model, in the words of its own chat template.

    Ctrl-C stops an answer; at the prompt, Ctrl-D leaves. Questions can also be piped in, one a line. Sampling is the
    model's own where flags don't say otherwise.

    Examples:
        anyformer chat HuggingFaceTB/SmolLM2-135M-Instruct --quantize int4
        anyformer chat runs/llama-nano-1 --system "Answer in one sentence." --temperature 0
    """

    system: Text[str | None] = None
    """How the model is to behave (default: what its template says)."""
    stop: Annotated[Text[tuple[str, ...]], "STRING"] = ()
    """Strings that end an answer, and are no part of it."""
    max_new_tokens: int = 1024
    """Stop an answer after this many tokens."""


def run(argv: list[str]) -> int:
    """Load the model and talk."""
    options = parse(ChatOptions, argv, "chat")

    from anyformer.cli.terminal import Terminal
    from anyformer.generation import Conversation

    model, tokenizer = options.load_model()
    terminal = Terminal(Conversation(model, tokenizer, options.system, **generation_options(options)))
    terminal.greet(options.model, model)
    return terminal.talk()
