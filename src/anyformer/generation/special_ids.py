"""Ids of special tokens that generation needs: those of the model's generation settings, else those of its config."""

from collections.abc import Sequence
from typing import cast

from anyformer.errors import UserError
from anyformer.generation.config import generation_settings
from anyformer.model import Transformer
from anyformer.tokenizer import Tokenizer


def eos_ids(model: Transformer) -> tuple[int, ...]:
    """The tokens that end a text."""
    eos = cast("int | list[int] | None", generation_settings(model).get("eos_token_id"))
    known = model.config.special_tokens.eos if eos is None else [eos] if isinstance(eos, int) else eos
    return tuple(token for token in known if 0 <= token < model.config.vocab_size)


def pad_id(model: Transformer, eos: Sequence[int] = ()) -> int:
    """The token behind the end of a text that is shorter than others of its batch: padding, else end-of-text."""
    return _first_valid(model, generation_settings(model).get("pad_token_id"), model.config.special_tokens.pad, *eos)


def input_pad_id(model: Transformer, tokenizer: Tokenizer) -> int:
    """The token that pads a batch of prompts: the one whose embedding is no position's, else any (it is masked)."""
    return _first_valid(model, model.config.embedding.padding, model.config.special_tokens.pad, tokenizer.pad)


def _first_valid(model: Transformer, *ids: int | None) -> int:
    return next((token for token in ids if token is not None and 0 <= token < model.config.vocab_size), 0)


def decoder_start_id(model: Transformer) -> int:
    """The token that an encoder-decoder's decoder reads first. Raises UserError where none is known."""
    settings, tokens = generation_settings(model), model.config.special_tokens
    known = (settings.get("decoder_start_token_id"), tokens.decoder_start, settings.get("bos_token_id"), tokens.bos)
    start = next((int(token) for token in known if token is not None), None)
    if start is None:
        raise UserError(
            "This encoder-decoder doesn't say which token its decoder starts with: set tokens.decoder_start in its "
            "config (decoder_start_token_id in config.json)."
        )
    if not 0 <= start < model.config.vocab_size:
        raise UserError(
            f"The decoder's first token, {start}, is outside the vocabulary of {model.config.vocab_size}: "
            "correct decoder_start_token_id in config.json."
        )
    return start
