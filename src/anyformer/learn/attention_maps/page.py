"""attention.html: the weights of all heads on one page, which needs no network."""

import base64
from pathlib import Path
from typing import Any

from torch import Tensor

from anyformer import atomic
from anyformer.config import ModelConfig
from anyformer.learn.attention_maps.heads import names, patterns
from anyformer.learn.attention_maps.weights import Attention
from anyformer.pages.render import render, require_page

_MOST_TOKENS = 64
"""Of a text on a page: more can't be told apart on a screen."""
_FEWEST_TOKENS = 8
_MOST_CHARACTERS = 400
"""Of a text in the title, of which three lines are shown."""
_MOST_WEIGHTS = 4_000_000
"""Of a page, a byte each."""


def most_tokens(config: ModelConfig) -> int:
    """Tokens of a text, and of a target, that fit on a page: 64, fewer of a model with many heads or few positions."""
    heads = config.attention.heads
    maps = config.encoder_layers * heads
    if config.decoder_layers:
        own = config.decoder_attention or config.attention
        maps += config.decoder_layers * own.heads * (2 if config.is_encoder_decoder else 1)
    fitting = max(_FEWEST_TOKENS, min(_MOST_TOKENS, int((_MOST_WEIGHTS / maps) ** 0.5)))
    return min(fitting, config.context_length or fitting)


def write_page(found: Attention, file: Path, *, model: str = "") -> Path:
    """Write the page.

    Args:
        found: What it shows.
        file: Where to.
        model: What the model is called.

    Raises:
        UserError: the file is there already and is no page of anyformer's, or the disk refuses.
    """
    require_page(file)
    atomic.write(file, text_of_page(found, model))
    return file


def text_of_page(found: Attention, model: str = "") -> str:
    """The page as HTML."""
    return render("page.html", page(found, model), __package__ or "")


def page(found: Attention, model: str) -> dict[str, Any]:
    """The values of page.html."""
    shown = stacks(found)
    return {
        "title": f"Attention · {model or 'anyformer'}",
        "state": "",
        "model": model,
        "text": " ".join(found.text[:_MOST_CHARACTERS].split()),
        "facts": [f"{stack['title']}: {stack['layers']} layers of {stack['heads']} heads" for stack in shown],
        "notes": notes(found),
        "stacks": shown,
        "data": {"stacks": shown},
    }


def stacks(found: Attention, *, ends: bool = False) -> list[dict[str, Any]]:
    """The weights of each stack as the page's script reads them: a byte each, 255 being 1, in base64.

    Args:
        found: The weights.
        ends: Leave out all layers but the first and the last.
    """
    source = found.source_tokens or found.tokens
    given = [
        ("encoder", "Encoder", found.encoder, source, None),
        ("decoder", "Decoder", found.decoder, found.tokens, None),
        ("cross", "Cross-attention", found.cross, found.tokens, source),
    ]
    return [
        _stack(name, title, weights, queries, keys, causal=name == "decoder", ends=ends)
        for name, title, weights, queries, keys in given
        if weights is not None
    ]


def _stack(
    name: str,
    title: str,
    weights: Tensor,
    queries: tuple[str, ...],
    keys: tuple[str, ...] | None,
    *,
    causal: bool,
    ends: bool,
) -> dict[str, Any]:
    numbers = list(range(len(weights)))
    numbers = sorted({numbers[0], numbers[-1]}) if ends else numbers
    weights = weights[numbers]
    layers, heads = weights.shape[:2]
    found = patterns(weights, queries, keys, causal=causal)
    kinds = [{"name": each.name, "scores": _hundredths(each.scores), "chance": round(each.chance, 2)} for each in found]
    return {
        "name": name,
        "title": title,
        "layers": layers,
        "numbers": [number + 1 for number in numbers],
        "heads": heads,
        "queries": list(queries),
        "keys": list(keys or queries),
        "crosses": keys is not None,
        "weights": base64.b64encode((weights * 255).round().byte().numpy().tobytes()).decode("ascii"),
        "patterns": kinds,
        "does": [does for row in names(found) for does in row],
    }


def _hundredths(scores: Tensor) -> list[float]:
    return [round(score, 2) for score in scores.flatten().tolist()]


def notes(found: Attention) -> list[str]:
    """What is to be known of the text and the target."""
    said: list[str] = []
    read = len(found.source_tokens or found.tokens)
    if found.text_tokens > read:
        said.append(f"The text has {found.text_tokens:,} tokens; these are the first {read:,}.")
    if found.target_tokens is not None and found.target_tokens > len(found.tokens):
        said.append(f"The target has {found.target_tokens:,} tokens; these are the first {len(found.tokens):,}.")
    if found.generated:
        said.append("The target is the model's own: it was generated greedily, the likeliest token at each step.")
    return said
