"""Attention on one's own text: the weights of every head, what heads do, and a page that shows both.

heads        how much of a head's attention follows a pattern, such as the previous token

Here are the weights of a model that reads a text, and attention.html, the weights of all heads on one page, which needs
no network.
"""

import base64
import html
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anyformer import atomic
from anyformer.blocks.block import TransformerBlock
from anyformer.blocks.stack import Stack
from anyformer.checkpoint.load import takes_model
from anyformer.config import ModelConfig
from anyformer.errors import UserError
from anyformer.generation import inference
from anyformer.generation.config import GenerationConfig
from anyformer.generation.decode import generate_ids
from anyformer.generation.prompt import decoder_start_id, eos_ids
from anyformer.learn.attention_maps.heads import names, patterns
from anyformer.model import Transformer
from anyformer.one_line import OneLine
from anyformer.pages.render import render, require_page
from anyformer.tokenizer import Tokenizer

__all__ = ["Attention", "attention"]

_MOST_GENERATED = 64
"""Tokens of a target that is generated, the one that starts it among them."""
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


@dataclass
class Recording:
    """Attention weights of each pass under `recording`: an entry for each layer, [batch, heads, queries, keys]."""

    encoder: list[Tensor] = field(default_factory=list[Tensor])
    decoder: list[Tensor] = field(default_factory=list[Tensor])
    cross: list[Tensor] = field(default_factory=list[Tensor])
    read: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    """The token ids that each stack read, [batch, time]."""


@contextmanager
def recording(model: Transformer) -> Generator[Recording, None, None]:
    """Record the attention weights of every pass without a cache.

    Hooks compute them a second time, apart from the pass itself, which stays as fast as it is elsewhere.
    """
    record = Recording()
    with ExitStack() as hooks:

        def before(module: nn.Module, hook: Callable[..., None]) -> None:
            hooks.enter_context(module.register_forward_pre_hook(hook, with_kwargs=True))

        for name, stack in (("encoder", model.encoder), ("decoder", model.decoder)):
            if stack is None:
                continue
            before(stack, partial(_record_tokens, record.read, name))
            for block in cast("list[TransformerBlock]", list(stack.blocks)):
                before(block.attention, partial(_record_weights, getattr(record, name)))
                if block.cross_attention is not None:
                    before(block.cross_attention, partial(_record_weights, record.cross))
        yield record


def _record_tokens(read: dict[str, Tensor], name: str, stack: Stack, args: tuple[Any, ...], _: dict[str, Any]) -> None:
    read[name] = args[1]


def _record_weights(weights: list[Tensor], attention: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    weights.append(attention.weights(*args, **{name: kwargs[name] for name in ("mask", "rotation") if name in kwargs}))


@takes_model
def attention(
    model: Transformer,
    tokenizer: Tokenizer | None,
    text: str,
    target: str | None = None,
    *,
    max_tokens: int | None = None,
) -> Attention:
    """The attention weights of every head while the model reads a text.

    Args:
        model, tokenizer: Any model, and its tokenizer.
        text: What the model reads; of an encoder-decoder the source. A decoder reads it without an end-of-text.
        target: What the decoder of an encoder-decoder reads; None: what it generates greedily from the text, or of a
            classifier the text itself.
        max_tokens: Truncate text and target to so many tokens, special tokens among them; None: they are read whole.

    Raises:
        UserError: an empty text or target, one beyond the model's context, a target for a model with a single stack or
            for a classifier, no target for an encoder-decoder that can't generate one, no tokenizer, a model whose
            attention is NaN.
    """
    tokenizer = inference.require_tokenizer(tokenizer, "only the weights of a text can be shown")
    if max_tokens is not None and max_tokens < 1:
        raise UserError(f"max_tokens is a number of tokens, at least 1, not {max_tokens}.")
    config = model.config
    classifies = config.head.kind == "classification"
    if target is not None and (not config.is_encoder_decoder or classifies):
        why = "classifies its text" if classifies else "has a single stack, which reads the text alone"
        raise UserError(f"A target is what an encoder-decoder writes, and this model {why}: leave out the target.")
    before, plain, after = _parts(tokenizer, text, "The text")
    after = after if config.encoder_layers else []
    # Special tokens around the text stay where it is truncated.
    room = None if max_tokens is None else max(1, max_tokens - len(before + after))
    ids = [*before, *plain[:room], *after]
    source_vocab = config.source_vocab_size if config.is_encoder_decoder else None
    _check(model, "The text", ids, source_vocab or config.vocab_size)
    inputs: dict[str, Tensor] = {"tokens": torch.tensor([ids], device=model.device)}
    target_tokens, writes = None, config.is_encoder_decoder and not classifies
    with inference.evaluating(model), torch.inference_mode():
        if writes:
            source = inputs["tokens"]
            if target is None:
                written = _generate(model, source, max_tokens)
            else:  # its end-of-text is only predicted
                before_target, plain_target, _ = _parts(tokenizer, target, "The target")
                written = before_target + plain_target
            read = [decoder_start_id(model), *written]
            target_tokens, read = len(read), read[:max_tokens]
            _check(model, "The target", read, config.vocab_size)
            inputs = {"tokens": torch.tensor([read], device=model.device), "source": source}
        with recording(model) as record:
            model(**inputs, return_logits=False)
    tokens = {
        name: tuple(_spelling(tokenizer, token) for token in ids[0].tolist()) for name, ids in record.read.items()
    }
    return Attention(
        text=text,
        tokens=tokens.get("decoder") or tokens["encoder"],
        source_tokens=tokens["encoder"] if config.is_encoder_decoder else None,
        encoder=_stacked(record.encoder),
        decoder=_stacked(record.decoder),
        cross=_stacked(record.cross),
        text_tokens=len(before + plain + after),
        target_tokens=target_tokens,
        generated=writes and target is None,
    )


def _parts(tokenizer: Tokenizer, text: str, what: str) -> tuple[list[int], list[int], list[int]]:
    """The ids before a text, its own, and those after it. Raises UserError for a text without any of its own."""
    before, plain, after = tokenizer.encode_parts(text)
    if not text.strip() or not plain:
        raise UserError(f"{what} is empty: give at least a word whose attention is to be shown.")
    return before, plain, after


def _generate(model: Transformer, source: Tensor, max_tokens: int | None) -> list[int]:
    if model.config.head.kind != "language_model":
        raise UserError(
            "This encoder-decoder has no language-model head, so it can't write a target itself: give it one."
        )
    # Greedily, whatever search the model's generation settings ask for; and behind the token that starts it.
    longest = min(limit for limit in (_MOST_GENERATED, model.config.context_length, max_tokens) if limit is not None)
    greedy = GenerationConfig(max_new_tokens=max(1, longest - 1))
    ids: list[int] = generate_ids(model, source, config=greedy)[0].tolist()
    return ids[:-1] if ids and ids[-1] in eos_ids(model, greedy) else ids


def _check(model: Transformer, what: str, ids: Sequence[int], vocab_size: int) -> None:
    inference.check_length(what, len(ids), model)
    inference.check_ids(torch.tensor(ids), vocab_size)


def _stacked(layers: Sequence[Tensor]) -> Tensor | None:
    """The weights of all layers of the only text of the batch."""
    if not layers:
        return None
    weights = torch.stack([layer[0].float().cpu() for layer in layers])
    if bool(weights.isnan().any()):
        raise inference.DamagedError
    return weights


def _spelling(tokenizer: Tokenizer, token: int) -> str:
    """The text of a token, with the space before it where the token includes one; else as the vocabulary has it."""
    spelled = tokenizer.token(token) or f"<{token}>"
    text = tokenizer.decode([token], skip_special=False)
    if not text or "\ufffd" in text:
        return spelled
    # Decoded alone, a token of SentencePiece loses its space.
    return f" {text}" if spelled.startswith("\u2581") and not text.startswith(" ") else text


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
