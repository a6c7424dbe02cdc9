"""The attention weights of a model that reads a text."""

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from anyformer.blocks.block import TransformerBlock
from anyformer.blocks.stack import Stack
from anyformer.checkpoint.load import takes_model
from anyformer.errors import UserError
from anyformer.generation import inference
from anyformer.generation.config import GenerationConfig
from anyformer.generation.decode import generate_ids
from anyformer.generation.prompt import decoder_start_id, eos_ids
from anyformer.learn.attention_maps.page import Attention
from anyformer.model import Transformer
from anyformer.tokenizer import Tokenizer

_MOST_GENERATED = 64
"""Tokens of a target that is generated, the one that starts it among them."""


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
