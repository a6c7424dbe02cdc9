"""Prompts: texts as ids, ids as one batch for the model; and the special tokens that start, end and pad a text."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from anyformer.errors import UserError
from anyformer.generation.config import DEFAULT_NEW_TOKENS, GenerationConfig, generation_settings
from anyformer.generation.inference import check_ids, check_length
from anyformer.model import Transformer
from anyformer.tokenizer import Tokenizer
from anyformer.tokenizer.prompt import encode_decoder_prompt


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A batch of prompts on the model's device."""

    ids: Int[Tensor, "batch start"]
    """First ids of the decoder: the prompts with any padding on their left, or an encoder-decoder's start token."""
    mask: Bool[Tensor, "batch start"] | None = None
    """False for padding; None: there is none."""
    source: Int[Tensor, "batch source"] | None = None
    """Encoder-decoders: what the encoder reads."""
    source_mask: Bool[Tensor, "batch source"] | None = None
    max_new_tokens: int
    """New tokens after which each text ends."""

    @property
    def padding(self) -> Int[Tensor, " batch"]:
        """Padding tokens before each prompt."""
        return self.ids.new_zeros(len(self.ids)) if self.mask is None else (~self.mask).sum(dim=1)

    @property
    def capacity(self) -> int:
        """Positions of the longest text that can become of it."""
        return self.ids.shape[1] + self.max_new_tokens

    def select(self, rows: Int[Tensor, " kept"] | Bool[Tensor, " batch"]) -> Prompt:
        """These rows, by index (repeated, perhaps) or by mask."""
        tensors = {name: value[rows] for name, value in vars(self).items() if isinstance(value, Tensor)}
        return dataclasses.replace(self, **tensors)

    def repeat(self, count: int) -> Prompt:
        """Each row `count` times, one after the other."""
        if count == 1:
            return self
        return self.select(torch.arange(len(self.ids), device=self.ids.device).repeat_interleave(count))


def make_prompt(
    model: Transformer,
    ids: Int[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"] | None = None,
    max_new_tokens: int | None = None,
) -> Prompt:
    """Check a batch of prompts, or of sources of an encoder-decoder, and pad it on the left.

    Raises:
        UserError: ids of another shape or type, an empty prompt, an id outside the vocabulary, more tokens than the
            model's context, no token to start the decoder with.
    """
    _check_tensor(ids)
    if ids.numel() == 0:
        raise UserError("The prompt is empty: give the model at least one token to go on from.")
    if mask is not None and mask.shape != ids.shape:
        raise UserError(f"The mask has the shape {list(mask.shape)}, and the ids {list(ids.shape)}: they must agree.")
    ids, mask = ids.to(model.device), None if mask is None else mask.to(model.device)
    lengths: list[int] = [ids.shape[1]] * len(ids) if mask is None else mask.sum(dim=1).tolist()
    if 0 in lengths:
        raise UserError(f"Prompt {lengths.index(0) + 1} of {len(lengths)} is empty: give it at least one real token.")
    longest = max(lengths)
    if min(lengths) == ids.shape[1]:
        mask = None
    config, context = model.config, model.config.context_length
    if max_new_tokens is None:
        left = room(model, longest)
        # A prompt that leaves no room is refused in the same words as one that leaves too little.
        max_new_tokens = DEFAULT_NEW_TOKENS if left is None else max(1, min(DEFAULT_NEW_TOKENS, left))
    has_source, vocab_size = config.is_encoder_decoder, config.vocab_size
    check_ids(ids, config.source_vocab_size or vocab_size if has_source else vocab_size)
    if has_source:
        check_length("The source", longest, model)
    length, what = (1, "The token that starts the decoder") if has_source else (longest, "The prompt")
    if context is not None and length + max_new_tokens > context:
        fewer, shorter = f"ask for at most {context - length} new tokens", f"shorten it to fewer than {context} tokens"
        raise UserError(
            f"{what} has {length} token{'s' if length > 1 else ''}, and with {max_new_tokens} new ones "
            f"(max_new_tokens) that is more than the model's context of {context}: "
            f"{fewer if length < context else shorter}."
        )
    if has_source:
        start = ids.new_full((len(ids), 1), decoder_start_id(model))
        return Prompt(ids=start, source=ids, source_mask=mask, max_new_tokens=max_new_tokens)
    if mask is not None:
        # All padding to the left, so that the last token of every text is the last of its row.
        order = mask.to(torch.uint8).argsort(dim=1, stable=True)[:, -longest:]
        ids, mask = ids.gather(1, order), mask.gather(1, order)
    return Prompt(ids=ids, mask=None if min(lengths) == longest else mask, max_new_tokens=max_new_tokens)


def _check_tensor(ids: object) -> None:
    """Raise UserError for ids that are no tensor of whole numbers [batch, time]."""
    kind = f"{ids.dtype} {[*ids.shape]}" if isinstance(ids, Tensor) else f"a {type(ids).__name__}"
    if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.is_floating_point() or ids.is_complex():
        raise UserError(f"ids are a tensor of whole numbers [batch, time], such as torch.tensor([[1, 2]]), not {kind}.")


def room(model: Transformer, length: int) -> int | None:
    """New tokens that the context has room for after a prompt of this length; None: any number."""
    context = model.config.context_length
    return None if context is None else context - (1 if model.config.is_encoder_decoder else length)


def encode_prompt(model: Transformer, tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a prompt.

    An encoder-decoder's source gets all special tokens that the tokenizer adds. A text that is to be continued gets
    only those before it, without an end-of-text; an empty one begins with the beginning-of-text token, and raises
    UserError where there is none.
    """
    if model.config.is_encoder_decoder:
        ids = tokenizer.encode(text)
    else:
        ids = encode_decoder_prompt(tokenizer, text, model.config.special_tokens)
    if not ids:
        raise UserError(
            "The prompt is empty, and the model has no beginning-of-text token: write a few words to start from."
        )
    return ids


def beginning(model: Transformer, tokenizer: Tokenizer | None, text: str) -> str | list[int]:
    """The text; of an empty one the end-of-text token, behind which texts begin in training, where a decoder has no
    beginning-of-text token."""
    tokens = model.config.special_tokens
    if text or tokenizer is None or not model.config.is_decoder_only or encode_decoder_prompt(tokenizer, "", tokens):
        return text
    ends = (token for token in (tokenizer.eos, *tokens.eos) if token is not None and token < model.config.vocab_size)
    return next(([token] for token in ends), text)


def pad(
    rows: Sequence[Sequence[int]], pad_id: int, device: torch.device | None = None
) -> tuple[Int[Tensor, "batch time"], Bool[Tensor, "batch time"]]:
    """Rows of different lengths as one tensor, padded on the right; and its mask, False for padding."""
    longest = max(map(len, rows))
    padded = [[*row, *[pad_id] * (longest - len(row))] for row in rows]
    try:
        ids = torch.tensor(padded, dtype=torch.long, device=device)
    except (TypeError, ValueError) as error:
        raise UserError("Token ids are whole numbers: give a text as a string, or as the list of its ids.") from error
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return ids, torch.arange(longest, device=device) < lengths[:, None]


def batches_by_length(lengths: Sequence[int], tokens: int | None, batch_size: int | None = None) -> Iterator[list[int]]:
    """Indices of rows that share a batch of at most so many tokens and rows; None: any number.

    The longest come first: if those fit into memory, so do all others.
    """
    batch = list[int]()
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        is_wide = tokens is not None and (len(batch) + 1) * lengths[batch[0] if batch else index] > tokens
        if batch and (is_wide or len(batch) == batch_size):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def eos_ids(model: Transformer, config: GenerationConfig) -> tuple[int, ...]:
    """The tokens that end a text."""
    if not config.stop_at_eos:
        return ()
    eos = cast("int | list[int] | None", generation_settings(model).get("eos_token_id"))
    tokens = model.config.special_tokens.eos if eos is None else [eos] if isinstance(eos, int) else eos
    return tuple(token for token in tokens if 0 <= token < model.config.vocab_size)


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
    named = (settings.get("decoder_start_token_id"), tokens.decoder_start, settings.get("bos_token_id"), tokens.bos)
    start = next((int(token) for token in named if token is not None), None)
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
