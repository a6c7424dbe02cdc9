"""The attention of a text, and attention.html: the weights of all heads on one page, which needs no network."""

import base64
import html
from dataclasses import dataclass
from itertools import chain
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

    ``decoder[layer, head, query, key]`` is the weight that the query's token puts on the key's; each row sums to 1,
    or to less where heads have sinks.
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
    """Tokens of the text before it was truncated."""
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


def write_page(attention: Attention, file: Path, *, model: str = "") -> Path:
    """Write the page to a file, in which the model has this name.

    Raises:
        UserError: the file is there already and is no page of anyformer's, or the disk refuses.
    """
    require_page(file)
    atomic.write(file, text_of_page(attention, model))
    return file


def text_of_page(attention: Attention, model: str = "") -> str:
    """The page as HTML."""
    shown = stacks(attention)
    values = {
        "title": f"Attention · {model or 'anyformer'}",
        "state": "",
        "model": model,
        "text": " ".join(attention.text[:_MOST_CHARACTERS].split()),
        "facts": [f"{stack['title']}: {stack['layers']} layers of {stack['heads']} heads" for stack in shown],
        "notes": notes(attention),
        "stacks": shown,
        "data": {"stacks": shown},
    }
    return render("page.html", values, __package__ or "")


def stacks(attention: Attention, *, ends: bool = False) -> list[dict[str, Any]]:
    """The weights of each stack as the page's script reads them: a byte each, 255 being 1, in base64.

    Args:
        ends: Leave out all layers but the first and the last.
    """
    source = attention.source_tokens or attention.tokens
    each_stack = [
        ("encoder", "Encoder", attention.encoder, source, None),
        ("decoder", "Decoder", attention.decoder, attention.tokens, None),
        ("cross", "Cross-attention", attention.cross, attention.tokens, source),
    ]
    described: list[dict[str, Any]] = []
    for name, title, weights, queries, keys in each_stack:
        if weights is None:
            continue
        numbers = sorted({0, len(weights) - 1}) if ends else list(range(len(weights)))
        weights = weights[numbers]
        scored = patterns(weights, queries, keys, causal=name == "decoder")
        described.append(
            {
                "name": name,
                "title": title,
                "layers": len(numbers),
                "numbers": [number + 1 for number in numbers],
                "heads": weights.shape[1],
                "queries": list(queries),
                "keys": list(keys or queries),
                "crosses": keys is not None,
                "weights": base64.b64encode((weights * 255).round().byte().numpy().tobytes()).decode("ascii"),
                "patterns": [
                    {
                        "name": pattern.name,
                        "scores": [round(score, 2) for score in pattern.scores.flatten().tolist()],
                        "chance": round(pattern.chance, 2),
                    }
                    for pattern in scored
                ],
                "does": list(chain(*names(scored))),
            }
        )
    return described


def notes(attention: Attention) -> list[str]:
    """Notes on the text and the target."""
    read, written = len(attention.source_tokens or attention.tokens), len(attention.tokens)
    lines: list[str] = []
    if attention.text_tokens > read:
        lines.append(f"The text has {attention.text_tokens:,} tokens; these are the first {read:,}.")
    if attention.target_tokens is not None and attention.target_tokens > written:
        lines.append(f"The target has {attention.target_tokens:,} tokens; these are the first {written:,}.")
    if attention.generated:
        lines.append("The target is the model's own: it was generated greedily, the likeliest token at each step.")
    return lines
