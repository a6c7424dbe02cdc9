"""`anyformer generate MODEL "text" --logprobs N`: each token, how likely it was, and what else was likely."""

from __future__ import annotations

import math
from typing import Unpack

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from anyformer.generation.batching import BatchingEngine
from anyformer.generation.config import GenerationOptions
from anyformer.generation.inference import require_tokenizer
from anyformer.generation.prompt import encode_prompt, make_prompt
from anyformer.model import Transformer
from anyformer.tokenizer import Tokenizer


def show_logprobs(
    model: Transformer,
    tokenizer: Tokenizer | None,
    prompt: str,
    top: int,
    **options: Unpack[GenerationOptions],
) -> None:
    """Generate a text and show its tokens.

    Args:
        model, tokenizer, prompt, options: As for `BatchingEngine.submit`.
        top: How many of the likeliest tokens are shown in the place of each.
    """
    tokenizer = require_tokenizer(tokenizer, "give BatchingEngine.submit token ids")
    ids = encode_prompt(model, tokenizer, prompt)
    capacity = make_prompt(model, torch.tensor([ids]), None, options.get("max_new_tokens")).capacity
    engine = BatchingEngine(model, tokenizer, slots=1, capacity=capacity)
    request = engine.submit(ids, logprobs=top, **options)
    engine.run()
    table = Table(box=None, pad_edge=False)
    table.add_column("token")
    table.add_column("probability", justify="right")
    if top:
        table.add_column("likeliest")
    for one in request.logprobs:
        others = [f"{_shown(tokenizer, token)} {_percent(logprob)}" for token, logprob in one.top.items()]
        cells = [_shown(tokenizer, one.token), _percent(one.logprob), "  ".join(others)]
        table.add_row(*(Text(cell) for cell in cells[: len(table.columns)]))
    console = Console(soft_wrap=True)
    print(f"{prompt if model.config.is_decoder_only else ''}{request.text}\n")
    console.print(table)
    print(f"\nlog-probability {sum(one.logprob for one in request.logprobs):.3f} nats, {len(request.tokens)} tokens")


def _shown(tokenizer: Tokenizer, token: int) -> str:
    return repr(tokenizer.decode([token], skip_special=False))


def _percent(logprob: float) -> str:
    return f"{100 * math.exp(logprob):.1f}%"
