"""A server with small models that runs in a thread, and the command in a process of its own."""

import contextlib
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import httpx
import torch
import uvicorn

import anyformer as af
from anyformer.config import AttentionConfig, EmbeddingConfig, FeedForwardConfig, ModelConfig, SpecialTokens
from anyformer.generation.speculative_decoding import Draft
from anyformer.model import Transformer
from anyformer.serving.serve import Adapters, http_config, make_server
from anyformer.serving.settings import ServerSettings
from anyformer.serving.state import Server

TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def small_tokenizer(template: str | None = TEMPLATE) -> af.Tokenizer:
    """A byte-level tokenizer with an end-of-text token."""
    tokenizer = af.Tokenizer.train(["the cat sat on the mat", "<user><assistant><system>"] * 3, "bpe:300")
    tokenizer.chat_template = template
    return tokenizer


def small_models() -> dict[str, tuple[Transformer, af.Tokenizer | None]]:
    """A decoder that writes, and an encoder that fills masks, drawn at random."""
    tokenizer = small_tokenizer()
    words = af.Tokenizer.train(["the cat sat on the mat"], "wordpiece:60", special="masked")
    torch.manual_seed(0)
    blocks: dict[str, Any] = {
        "d_model": 32,
        "attention": AttentionConfig(heads=4),
        "feed_forward": FeedForwardConfig(width=48),
        "embedding": EmbeddingConfig(tied=False),
    }
    gpt = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        decoder_layers=2,
        max_length=256,
        special_tokens=SpecialTokens(eos=(0,)),
        **blocks,
    )
    bert = ModelConfig(vocab_size=words.vocab_size, encoder_layers=2, max_length=64, **blocks)
    return {"gpt": (Transformer(gpt).eval(), tokenizer), "bert": (Transformer(bert).eval(), words)}


@contextlib.contextmanager
def running(
    models: Mapping[str, tuple[Transformer, af.Tokenizer | None]],
    key: str | None = None,
    adapters: Mapping[str, Adapters] | None = None,
    draft: Draft | None = None,
    **settings: Any,
) -> Generator[tuple[httpx.Client, Server]]:
    """A client of a server with these models and settings, and the server."""
    server = make_server(models, ServerSettings(port=0, grace=5, **settings), adapters, draft)
    config = http_config(server, key)
    config.port = 0
    instance = uvicorn.Server(config)
    thread = threading.Thread(target=instance.run, daemon=True)
    thread.start()
    while not instance.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = instance.servers[0].sockets[0].getsockname()[1]
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield client, server
    finally:
        instance.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@contextlib.contextmanager
def command(models: Mapping[str, Path], *flags: str) -> Generator[tuple[subprocess.Popen[str], str]]:
    """The process of `anyformer serve` with saved models, and the address that it says; killed at the end."""
    given = [f"{name}={directory}" for name, directory in models.items()]
    argv = [sys.executable, "-P", "-m", "anyformer", "serve", *given, "--port", "0", *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        said = process.stderr.readline()
        found = re.search(r" at (http://127\.0\.0\.1:\d+)/v1, and a page at \1 \(Ctrl-C stops\)", said)
        assert found, said + process.stderr.read()
        assert all(name in said for name in models)
        try:
            yield process, found[1]
        finally:
            process.kill()
