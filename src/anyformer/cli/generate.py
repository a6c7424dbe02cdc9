"""`anyformer generate MODEL "text"`: continue a prompt, or rewrite a source."""

import sys
from dataclasses import dataclass
from typing import Literal

from tyro.conf import Positional

from anyformer.cli.parsing import parse

_USUAL = 200


@dataclass(frozen=True)
class GenerateOptions:
    """Continue a prompt, token by token; an encoder-decoder rewrites it instead."""

    model: Positional[str]
    """A model directory, a run directory, or a hub id."""
    prompt: Positional[str] = ""
    """The text to go on from; for an encoder-decoder the source."""
    max_new_tokens: int | None = None
    """Stop after this many tokens, sooner at end-of-text; default: 200, or as many as the context has room for."""
    temperature: float = 0.0
    """0: always the likeliest token; above: draw, the bolder the higher."""
    top_k: int | None = None
    """Draw from the k likeliest tokens only."""
    top_p: float | None = None
    """Draw from the likeliest tokens that have this probability together."""
    seed: int | None = None
    """Makes drawing repeatable."""
    device: str | None = None
    """Where to compute, such as cuda; default: the CPU."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Number format of the weights; default: as stored."""
    allow_pickle: bool = False
    """Read pytorch_model.bin where there is no safetensors file."""


def run(argv: list[str]) -> int:
    """Write the continuation as it comes."""
    options = parse(GenerateOptions, argv, prog="anyformer generate")

    from anyformer.checkpoint import load
    from anyformer.generation import generate_stream, room

    model, tokenizer = load(options.model, options.dtype, options.device, allow_pickle=options.allow_pickle)
    wanted = options.max_new_tokens
    if wanted is None:
        left = room(model, tokenizer, options.prompt)
        # A prompt that leaves no room is refused in the same words as one that leaves too little.
        wanted = _USUAL if left is None else max(1, min(_USUAL, left))
    pieces = generate_stream(
        model,
        tokenizer,
        options.prompt,
        max_new_tokens=wanted,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        seed=options.seed,
    )
    if model.config.is_decoder_only:
        _say(options.prompt)
    for piece in pieces:
        _say(piece)
    _say("\n")
    return 0


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
