"""The attention of a text, and attention.html: the weights of all heads on one page, which needs no network."""

import base64
import html
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from anyformer import atomic
from anyformer.config import ModelConfig
from anyformer.learn.attention_maps.heads import names, patterns
from anyformer.one_line import OneLine
from anyformer.pages.render import render, require_page

_MOST_TOKENS = 64
"""Tokens of a text on a page: more can't be told apart on a screen."""
_FEWEST_TOKENS = 8
_MOST_CHARACTERS = 400
"""Characters of a text in the title, of which three lines are shown."""
_MOST_WEIGHTS = 4_000_000
"""Weights on a page, a byte each."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Attention(OneLine):
    """Attention from each token of a text to the others, in every head of every layer.

    ``decoder[layer, head, query, key]`` is the weight that the query's token puts on the key's; each row sums to 1.
    Weights are in float32 on the CPU.
    """

    text: str
    """As it was given."""
    tokens: tuple[str, ...]
    """Tokens of the decoder, or of an encoder that is alone: special tokens, and the text of each other token."""
    source_tokens: tuple[str, ...] | None = None
    """Tokens of the encoder of an encoder-decoder."""
    encoder: Float[Tensor, "layers heads keys keys"] | None = None
    decoder: Float[Tensor, "layers heads queries queries"] | None = None
    cross: Float[Tensor, "layers heads queries keys"] | None = None
    """From the decoder's tokens to the encoder's."""
    text_tokens: int
    """Tokens of the text before it was cut."""
    target_tokens: int | None = None
    """Tokens of an encoder-decoder's target before it was truncated."""
    generated: bool = False
    """Whether the target is the model's own, generated greedily."""

    @property
    def is_cut(self) -> bool:
        """Whether the text or the target is longer than what was read."""
        read, target = (self.tokens, ()) if self.source_tokens is None else (self.source_tokens, self.tokens)
        return self.text_tokens > len(read) or (self.target_tokens or 0) > len(target)

    def _repr_html_(self) -> str:
        """The page of `anyformer attention` in a frame of its own, for notebooks."""
        page = html.escape(text_of_page(self))
        return f'<iframe srcdoc="{page}" sandbox="allow-scripts" width="100%" height="720" style="border:0"></iframe>'


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
    """Notes on the text and the target."""
    said: list[str] = []
    read = len(found.source_tokens or found.tokens)
    if found.text_tokens > read:
        said.append(f"The text has {found.text_tokens:,} tokens; these are the first {read:,}.")
    if found.target_tokens is not None and found.target_tokens > len(found.tokens):
        said.append(f"The target has {found.target_tokens:,} tokens; these are the first {len(found.tokens):,}.")
    if found.generated:
        said.append("The target is the model's own: it was generated greedily, the likeliest token at each step.")
    return said
