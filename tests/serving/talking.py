"""A model that says what a test wants: its logits prefer a script, which the server's grammar may overrule."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

import anyformer as af
from anyformer.config import AttentionConfig, EmbeddingConfig, FeedForwardConfig, ModelConfig, SpecialTokens
from anyformer.model import Transformer
from anyformer.serving.state import Server

HERMES = (
    "{% if tools %}<system>tools {{ tools | tojson }} as <tool_call>\n{% endif %}"
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}"
    "{% for call in message.tool_calls or [] %}<tool_call>{{ call.function.arguments.city }}</tool_call>{% endfor %}"
    "{{ '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


CODER = HERMES.replace("<tool_call>\n", "<tool_call> <function= <parameter=\n")
GLM = HERMES.replace("<tool_call>\n", "<tool_call> <arg_key>\n")
HARMONY = HERMES.replace("<tool_call>", "<|channel|> <|message|>").replace(
    "{{ message.content }}", "{{ message.thinking }}"
)


def json_tokenizer(template: str | None = HERMES, *special: str) -> af.Tokenizer:
    """A byte-level tokenizer; `special` are special tokens of it."""
    tokenizer = af.Tokenizer.train(
        ['{"name": "the cat", "arguments": {"city": 1}}', "<user><assistant>"] * 3, "bpe:300"
    )
    if special:
        tokenizer.backend.add_special_tokens(list(special))
    tokenizer.chat_template = template
    return tokenizer


def small_model(tokenizer: af.Tokenizer, seed: int = 0, eos: tuple[int, ...] = (0,)) -> Transformer:
    """A decoder drawn at random."""
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size + 5,
        d_model=16,
        decoder_layers=1,
        max_length=1024,
        attention=AttentionConfig(heads=2),
        feed_forward=FeedForwardConfig(width=24),
        embedding=EmbeddingConfig(tied=False),
        special_tokens=SpecialTokens(eos=eos),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Transformer(config).eval()


@contextmanager
def saying(server: Server, text: str, name: str = "gpt") -> Generator[None]:
    """Let a served model write a text, and then end it, as far as it may."""
    served = server.models[name]
    engine = served.worker.engine
    assert engine is not None
    assert served.tokenizer is not None
    script, step = [*served.tokenizer.encode(text, special=False), 0], engine._step

    def scripted(tokens: Any, cache: Any, **options: Any) -> Any:
        logits = step(tokens, cache, **options)
        running = engine._running
        rows = [running[row] for row in range(len(running))] if "last_only" not in options else [None]
        for row, request in enumerate(rows):
            done = 0 if request is None else len(request.tokens)
            logits[row, -1, script[min(done, len(script) - 1)]] += 1000
        return logits

    engine._step = scripted  # type: ignore[assignment]
    try:
        yield
    finally:
        engine._step = step


def models(tokenizer: af.Tokenizer | None = None) -> Mapping[str, tuple[Transformer, af.Tokenizer | None]]:
    """The model by the name of gpt."""
    tokenizer = tokenizer or json_tokenizer()
    return {"gpt": (small_model(tokenizer), tokenizer)}
