"""What a model reads before it writes: texts as ids, ids as one batch without gaps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from anyformer.errors import UserError
from anyformer.generation.inference import check_ids, device_of, require_tokenizer
from anyformer.generation.rules import generation_settings
from anyformer.model import Transformer
from anyformer.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A batch of prompts where the model is."""

    start: Int[Tensor, "batch start"]
    """What the decoder has been given: the prompts with any padding on their left, or the token that starts
    it."""
    mask: Bool[Tensor, "batch start"] | None
    """False for padding; None: there is none."""
    source: Int[Tensor, "batch source"] | None = None
    """Encoder-decoders: what the encoder reads."""
    source_mask: Bool[Tensor, "batch source"] | None = None

    @property
    def padding(self) -> Int[Tensor, " batch"]:
        """Padding tokens before each text."""
        if self.mask is None:
            return self.start.new_zeros(self.start.shape[0])
        return (~self.mask).sum(dim=1)


def chosen(prompt: Prompt, rows: Int[Tensor, " kept"] | Bool[Tensor, " batch"]) -> Prompt:
    """These rows of a prompt, by number (repeated, perhaps) or by truth."""
    return Prompt(
        start=prompt.start[rows],
        mask=None if prompt.mask is None else prompt.mask[rows],
        source=None if prompt.source is None else prompt.source[rows],
        source_mask=None if prompt.source_mask is None else prompt.source_mask[rows],
    )


def repeated(prompt: Prompt, count: int) -> Prompt:
    """Each row so many times, one after the other."""
    if count == 1:
        return prompt
    return chosen(prompt, torch.arange(len(prompt.start), device=prompt.start.device).repeat_interleave(count))


def read_prompt(
    model: Transformer,
    ids: Int[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"] | None,
    max_new_tokens: int,
) -> Prompt:
    """Check a batch of prompts and lay it out as the model wants it.

    Args:
        model: What will read it.
        ids: Prompts, or sources of an encoder-decoder.
        mask: True for a real token, wherever the padding is; None: all are real.
        max_new_tokens: Tokens that are to follow.

    Raises:
        UserError: an empty prompt, an id outside the vocabulary, more tokens than the model's context, no token
            to start the decoder with.
    """
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens is at least 1, not {max_new_tokens}.")
    if ids.numel() == 0:
        raise UserError("The prompt is empty: give the model at least one token to go on from.")
    if mask is not None and mask.shape != ids.shape:
        raise UserError(f"The mask has the shape {list(mask.shape)}, and the ids {list(ids.shape)}: they must agree.")
    ids, mask = ids.to(device_of(model)), None if mask is None else mask.to(device_of(model))
    counts = torch.full((len(ids),), ids.shape[1]) if mask is None else mask.sum(dim=1)
    lengths: list[int] = cast("Any", counts).tolist()
    if 0 in lengths:
        raise UserError(f"Prompt {lengths.index(0) + 1} of {len(lengths)} is empty: give it at least one real token.")
    longest = max(lengths)
    if min(lengths) == ids.shape[1]:
        mask = None
    config = model.config
    if config.is_encoder_decoder:
        check_ids(ids, config.source_vocab_size or config.vocab_size)
        _check_source(longest, config.context_length)
        _check_length(1, max_new_tokens, config.context_length, "The token that starts the decoder")
        start = ids.new_full((ids.shape[0], 1), decoder_start(model))
        return Prompt(start=start, mask=None, source=ids, source_mask=mask)
    check_ids(ids, config.vocab_size)
    _check_length(longest, max_new_tokens, config.context_length, "The prompt")
    if mask is None:
        return Prompt(start=ids, mask=None)
    ids, mask = align_right(ids, mask)
    ids, mask = ids[:, -longest:], mask[:, -longest:]
    return Prompt(start=ids, mask=None if min(lengths) == longest else mask)


def align_right(
    ids: Int[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]
) -> tuple[Int[Tensor, "batch time"], Bool[Tensor, "batch time"]]:
    """Move all padding to the left, so that the last token of every text is the last of its row."""
    order = mask.to(torch.uint8).argsort(dim=1, stable=True)
    return ids.gather(1, order), mask.gather(1, order)


def decoder_start(model: Transformer) -> int:
    """The token that an encoder-decoder's decoder reads first. Raises UserError where none is known."""
    settings, tokens = generation_settings(model), model.config.tokens
    known = (
        settings.get("decoder_start_token_id"),
        tokens.decoder_start,
        settings.get("bos_token_id"),
        tokens.bos,
    )
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


def _check_source(length: int, context: int | None) -> None:
    if context is not None and length > context:
        raise UserError(f"The source has {length} tokens, and the model can read {context}: shorten it.")


def _check_length(length: int, new: int, context: int | None, what: str) -> None:
    if context is None or length + new <= context:
        return
    advice = (
        f"ask for at most {context - length} new tokens"
        if length < context
        else f"shorten it to fewer than {context} tokens"
    )
    raise UserError(
        f"{what} has {length} token{'s' if length > 1 else ''}, and with {new} new ones (max_new_tokens) that is "
        f"more than the model's context of {context}: {advice}."
    )


def room(model: Transformer, tokenizer: Tokenizer | None, text: str) -> int | None:
    """How many tokens the context has left after this prompt; None where nothing limits it.

    Raises:
        UserError: as `encode_prompt`, and where there is no tokenizer.
    """
    context = model.config.context_length
    if context is None:
        return None
    if model.config.is_encoder_decoder:
        return context - 1
    tokenizer = require_tokenizer(tokenizer, "give generate_ids token ids")
    return context - len(encode_prompt(model, tokenizer, text))


def split_special(tokenizer: Tokenizer, text: str) -> tuple[list[int], list[int], list[int]]:
    """The ids of a text, and those that the tokenizer puts before and after it: ``(before, text, after)``."""
    whole, plain = tokenizer.encode(text), tokenizer.encode(text, special=False)
    for first in range(len(whole) - len(plain) + 1 if plain else 0):
        if whole[first : first + len(plain)] == plain:
            return whole[:first], plain, whole[first + len(plain) :]
    return [], whole, []


def encode_prompt(model: Transformer, tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a prompt.

    An encoder-decoder's source gets all that the tokenizer puts around a text. A text that is to be continued
    gets what comes before it only: an end-of-text after it would say that there is nothing to continue. An empty
    one begins with the beginning-of-text token.

    Raises:
        UserError: the text is empty, and there is no token to begin with.
    """
    if model.config.is_encoder_decoder:
        ids = tokenizer.encode(text)
    else:
        before, plain, _ = split_special(tokenizer, text)
        ids = before + plain
        if not tokenizer.encode(text, special=False):
            bos = model.config.tokens.bos if model.config.tokens.bos is not None else tokenizer.bos
            ends = {tokenizer.eos, tokenizer.sep, *model.config.tokens.eos} - {bos}
            while ids and ids[-1] in ends:
                ids.pop()
            ids = ids or ([] if bos is None else [bos])
    if not ids:
        raise UserError(
            "The prompt is empty, and the model has no beginning-of-text token: write a few words to start from."
        )
    return ids


def pad(rows: Sequence[Sequence[int]], fill: int) -> tuple[Int[Tensor, "batch time"], Bool[Tensor, "batch time"]]:
    """Rows of different lengths as one tensor, padded on the right; and which of its tokens are real."""
    lengths = torch.tensor([len(row) for row in rows])
    longest = int(lengths.max())
    ids = torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows], dtype=torch.long)
    return ids, torch.arange(longest)[None] < lengths[:, None]


def padding_id(model: Transformer, tokenizer: Tokenizer) -> int:
    """A token to fill a batch up with: the one whose embedding is no position's, else any (its text is
    masked)."""
    known = (model.config.embedding.padding, model.config.tokens.pad, tokenizer.pad)
    return next((token for token in known if token is not None and 0 <= token < model.config.vocab_size), 0)
