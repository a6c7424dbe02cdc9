"""One vector a text."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from anyformer.errors import UserError
from anyformer.generation.inference import check_ids, check_nan, evaluating, require_tokenizer
from anyformer.generation.prepacked import PrepackedLinear
from anyformer.generation.prompt import pad
from anyformer.generation.special_ids import input_pad_id
from anyformer.model import Transformer
from anyformer.tokenizer import Tokenizer

_ENOUGH, _MOST = 512, 4096
"""Tokens of a batch that keep the cores busy, and tokens whose activations still fit the cache of a CPU."""


def embed(
    model: Transformer,
    tokenizer: Tokenizer | None,
    texts: str | Sequence[str],
    batch_size: int | None = None,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "n d_model"]:
    """Turn texts into vectors, as the model's `pooling` says.

    The last hidden states of a text's tokens, special ones included, are pooled and, if the model says so,
    normalized to length 1. Longer texts than the model takes are cut; the special tokens at their ends stay.

    Args:
        model: Any model; of an encoder-decoder the encoder is used.
        tokenizer: Its tokenizer.
        texts: Texts of any lengths; one string is a list of one.
        batch_size: The most texts that are read at once; None: as many as pay. Texts of the same length go together,
            which changes no vector and leaves next to no padding.
        dtype: The format in which products are computed, such as bfloat16, while the residual stream and the norms stay
            in the model's (which is closer to float32 than a model loaded in that format, and about as fast); None:
            the model's.

    Returns:
        A vector a text in the order of the texts, where the model is, in float32.

    Raises:
        UserError: no tokenizer, a text without any token, an id that the model doesn't know, a model that answers with
            NaN.
    """
    tokenizer = require_tokenizer(tokenizer, "give the model token ids and pool its hidden states")
    if batch_size is not None and batch_size < 1:
        raise UserError(f"batch_size is at least 1, not {batch_size}.")
    texts = [texts] if isinstance(texts, str) else list(texts)
    rows = _encode(tokenizer, texts, longest_text(model))
    pooling = model.config.pooling
    vectors = torch.empty((len(rows), model.config.d_model), device=model.device)
    with evaluating(model), torch.inference_mode(), _products(vectors.device, dtype):
        for chosen in _batches([len(row) for row in rows], batch_size or len(rows)):
            ids, mask = (
                part.to(vectors.device) for part in pad([rows[i] for i in chosen], input_pad_id(model, tokenizer))
            )
            check_ids(ids, model.config.source_vocab_size or model.config.vocab_size)
            pooled = POOLINGS[pooling.kind](last_hidden(model, ids, mask).float(), mask)
            vectors[chosen] = F.normalize(check_nan(pooled), dim=-1) if pooling.normalize else check_nan(pooled)
    return vectors


def _products(device: torch.device, dtype: torch.dtype | None) -> ExitStack:
    """Lets products be computed in this format."""
    stack = ExitStack()
    if dtype is not None:
        stack.enter_context(torch.autocast(device.type, dtype=dtype))
        if PrepackedLinear.supports(device, dtype):
            stack.enter_context(PrepackedLinear(dtype))
    return stack


def _batches(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Numbers of texts to read together, the longest first: if those fit into memory, so do all others.

    A batch that has enough tokens goes on with texts of the same length only.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index], reverse=True):
        longest = lengths[batch[0]] if batch else 0
        tokens = longest * len(batch)
        if len(batch) == batch_size or tokens >= _MOST or (tokens >= _ENOUGH and lengths[index] < longest):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def longest_text(model: Transformer) -> int:
    """Tokens to which a text is cut."""
    config = model.config
    wanted = config.pooling.max_tokens or config.max_length
    return wanted if config.context_length is None else min(wanted, config.context_length)


def last_hidden(
    model: Transformer, ids: Int[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, "batch time d_model"]:
    """The last hidden states, without the cost of a head over the vocabulary."""
    real = None if bool(mask.all()) else mask
    if model.encoder is not None:
        return model.encode(ids, real)
    if model.decoder is None:
        raise ValueError("a model has at least one stack")
    return model.decoder(model.token_embedding(ids), ids, mask=real)


def _encode(tokenizer: Tokenizer, texts: Sequence[str], longest: int) -> list[list[int]]:
    rows = tokenizer.encode_batch(texts) if texts else []
    for index, row in enumerate(rows):
        if not row:
            raise UserError(f"Text {index + 1} of {len(rows)} is empty, and has no vector: leave it out.")
        if len(row) > longest:
            before, text, after = tokenizer.encode_parts(texts[index])
            room = longest - len(before) - len(after)
            if room < 1:
                raise UserError(
                    f"The model takes {longest} tokens, which the special ones around a text fill up: "
                    "raise pooling.max_tokens."
                )
            rows[index] = before + text[:room] + after
    return rows


def _mean(
    hidden: Float[Tensor, "batch time d_model"], mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, "batch d_model"]:
    return (hidden * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)


def _first(
    hidden: Float[Tensor, "batch time d_model"], mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, "batch d_model"]:
    return hidden[:, 0]


def _last(
    hidden: Float[Tensor, "batch time d_model"], mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, "batch d_model"]:
    return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(dim=1) - 1]


def _max(
    hidden: Float[Tensor, "batch time d_model"], mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, "batch d_model"]:
    return hidden.masked_fill(~mask[..., None], -torch.inf).amax(dim=1)


POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": _mean,
    "first": _first,
    "last": _last,
    "max": _max,
}
"""From hidden states of texts that are padded on the right to a vector each."""
