"""Models that read text: a vector of each text, and the likeliest tokens for its masks."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anyformer.blocks.linear import Linear
from anyformer.checkpoint.load import takes_model, torch_dtype
from anyformer.errors import UserError, quote
from anyformer.fastest_dtype import fastest, product_seconds, products
from anyformer.generation.compiled_encoder import CompiledEncoder
from anyformer.generation.compiled_layers import UnsupportedModelError
from anyformer.generation.inference import (
    check_ids,
    check_length,
    check_nan,
    evaluating,
    head_logits,
    require_tokenizer,
)
from anyformer.generation.prompt import input_pad_id, pad
from anyformer.kernels.linear import DtypeCast, prepack, supports_prepacking
from anyformer.model import Transformer
from anyformer.one_line import OneLine
from anyformer.quantization import bits_of
from anyformer.tokenizer import Tokenizer
from anyformer.tokenizer.texts import check_text, texts_of

_MIN_TOKENS, _MAX_TOKENS = 512, 4096
"""Tokens of a batch that keep the cores busy, and tokens whose activations still fit the cache of a CPU."""
_COMPILED_TOKENS = 2048
"""Tokens of a batch of compiled code, which leaves padding out, and keeps activations of blocks in the cache itself."""


@takes_model
def embed(
    model: Transformer,
    tokenizer: Tokenizer | None,
    texts: str | Iterable[str | Sequence[int]],
    batch_size: int | None = None,
    dtype: torch.dtype | str | None = None,
    prompt: str | None = None,
) -> Float[Tensor, "n width"]:
    """Embed texts as the model's `pooling` says.

    The last hidden states of a text's tokens, special ones included, are pooled and, if the model says so, go through
    linear layers and are normalized to length 1. Texts longer than the model takes are truncated; the special tokens
    at their ends stay.

    Args:
        model, tokenizer: Any model, and its tokenizer; of an encoder-decoder the encoder is used.
        texts: Texts of any lengths, or their token ids with special ones; one string is a list of one.
        batch_size: The most texts of a batch; None: chosen by their lengths. Texts of the same length share a batch,
            which changes no vector and leaves next to no padding.
        dtype: The dtype of matrix products or its name, such as bfloat16, while the residual stream and the norms stay
            in the model's (which is closer to float32 than a model loaded in that dtype, and about as fast); "fastest":
            for a model in float32 on a CPU, what is faster there for its layers (see `fastest_dtype`); None: the
            model's.
        prompt: The name of the words that the model wants before each of such texts, as in its `pooling.prompt_names`:
            query and document, say. None: its default ones. Nothing is put before token ids.

    Returns:
        A vector for each text, on the model's device, in float32.

    Raises:
        UserError: no tokenizer, a prompt that the model does not have, rows or what else is no text, a text without any
            token, an id outside the vocabulary, a model whose output is NaN.
    """
    tokenizer = require_tokenizer(tokenizer, "give the model token ids and pool its hidden states")
    if batch_size is not None and batch_size < 1:
        raise UserError(f"batch_size is at least 1, not {batch_size}.")
    config, device = model.config, model.device
    rows = encode_texts(model, tokenizer, texts_of(texts, lists=True), prompt)
    vectors = torch.empty((len(rows), vector_size(model)), device=device)
    dtype = _fastest(model) if dtype == "fastest" else torch_dtype(dtype)
    with evaluating(model), torch.inference_mode(), _matmuls_in(model, dtype):
        encode = _encoder(model)
        enough = _COMPILED_TOKENS if isinstance(encode, CompiledEncoder) else _MIN_TOKENS
        for indices in _batches([len(row) for row in rows], batch_size or len(rows), enough):
            ids, mask = pad([rows[index] for index in indices], input_pad_id(model, tokenizer), device)
            check_ids(ids, config.source_vocab_size or config.vocab_size)
            mask = None if bool(mask.all()) else mask
            vectors[indices] = check_nan(model.pooling(encode(ids, mask), mask))
    return vectors


def _encoder(model: Transformer) -> Callable[[Tensor, Tensor | None], Tensor]:
    """Last hidden states of token ids and their mask: by compiled code, where the weights are quantized."""
    if bits_of(model) is not None:
        with suppress(UnsupportedModelError):
            return CompiledEncoder(model)
    return model.encode_text


def _fastest(model: Transformer) -> torch.dtype | None:
    """bfloat16 where the products of a batch are faster in it than in the model's float32; None elsewhere."""
    if model.device.type != "cpu" or model.dtype != torch.float32 or bits_of(model) is not None:
        return None
    of_layers = products(model.config.replace(head={"kind": "none"}), _MIN_TOKENS)
    return torch.bfloat16 if fastest(product_seconds(of_layers, training=False)) == "bfloat16" else None


@contextmanager
def _matmuls_in(model: Transformer, dtype: torch.dtype | None) -> Generator[None]:
    if dtype is None:
        yield
        return
    stack, layers = model.encoder or model.decoder, list[Linear]()
    if stack is not None and supports_prepacking(model.device, dtype):
        linear = (module for module in stack.modules() if isinstance(module, Linear))
        layers = [layer for layer in linear if isinstance(layer.weight, nn.Parameter)]
    cast = DtypeCast(dtype)
    try:
        for layer in layers:
            layer.prepacked = prepack(layer.weight, layer.bias, cast)
        with torch.autocast(model.device.type, dtype=dtype):
            yield
    finally:
        for layer in layers:
            layer.prepacked = None


def _batches(lengths: Sequence[int], batch_size: int, enough: int) -> Iterator[list[int]]:
    """Indices of texts that share a batch, the longest first: if those fit into memory, so do all others.

    A batch that has enough tokens goes on with texts of the same length only.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index], reverse=True):
        longest = lengths[batch[0]] if batch else 0
        tokens = longest * len(batch)
        if len(batch) == batch_size or tokens >= _MAX_TOKENS or (tokens >= enough and lengths[index] < longest):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def vector_size(model: Transformer) -> int:
    """The size of the vectors of `embed`."""
    return (model.config.d_model, *model.config.pooling.dense)[-1]


def encode_texts(
    model: Transformer, tokenizer: Tokenizer, texts: Sequence[str | Sequence[int]], prompt: str | None = None
) -> list[list[int]]:
    """The ids of texts, or those given, as `embed` reads them. Raises UserError for a text that it refuses."""
    config = model.config
    longest = config.pooling.max_tokens or config.max_length
    longest = longest if config.context_length is None else min(longest, config.context_length)
    words = config.pooling.prompt(prompt)
    texts = [words + text if isinstance(text, str) else text for text in texts]
    strings = [text for text in texts if isinstance(text, str)]
    encoded = iter(tokenizer.encode_batch(strings) if strings else ())
    rows = [next(encoded) if isinstance(text, str) else list(text) for text in texts]
    for index, (text, row) in enumerate(zip(texts, rows, strict=True)):
        if not row:
            raise UserError(f"Text {index + 1} of {len(rows)} is empty, and has no vector: leave it out.")
        if len(row) > longest:
            if not isinstance(text, str):
                raise UserError(
                    f"Text {index + 1} of {len(rows)} has {len(row)} tokens, and the model takes {longest}: shorten it."
                )
            before, middle, after = tokenizer.encode_parts(text)
            room = longest - len(before) - len(after)
            if room < 1:
                raise UserError(
                    f"The model takes {longest} tokens, which the special ones around a text fill up: "
                    "raise pooling.max_tokens."
                )
            rows[index] = before + middle[:room] + after
    return rows


@dataclass(frozen=True, repr=False)
class Candidate(OneLine):
    """A token for a mask."""

    token: int
    text: str
    """With the space before it where the token includes one."""
    probability: float


@takes_model
def fill(model: Transformer, tokenizer: Tokenizer | None, text: str, top: int = 5) -> list[list[Candidate]]:
    """Predict the masked tokens of a text, each independently of the others.

    Args:
        model, tokenizer: An encoder with a masked-LM head, and its tokenizer.
        text: A text with the tokenizer's mask token in it, such as ``Paris is the [MASK] of France.``
        top: Candidates for each mask.

    Returns:
        For each mask from left to right its candidates, the likeliest first.

    Raises:
        UserError: no text or several, a text without a mask, a model or tokenizer without masks, a text beyond the
            context, a model whose output is NaN.
    """
    tokenizer = require_tokenizer(tokenizer, "give the model token ids")
    check_text(text, "fill", "call it for each of several")
    config = model.config
    if not config.is_encoder_only:
        raise UserError("Filling masks takes an encoder such as BERT, and this model writes text: use `generate`.")
    if config.head.kind != "language_model":
        raise UserError(
            f"This encoder has no masked-language-model head (its head is {quote(config.head.kind)}), so it can't "
            "fill masks: load one that was saved with it, or use `embed`."
        )
    if tokenizer.mask is None or tokenizer.mask_token is None:
        raise UserError("This model's tokenizer has no mask token, so there is nothing to fill.")
    if top < 1:
        raise UserError(f"top is a number of candidates, at least 1, not {top}.")
    ids = torch.tensor([tokenizer.encode(text)], device=model.device)
    masks = ids[0] == tokenizer.mask
    if not masks.any():
        raise UserError(f"There is no mask in the text: write {tokenizer.mask_token} for the word to be filled in.")
    check_length("The text", ids.shape[1], model)
    check_ids(ids, config.vocab_size)
    with evaluating(model), torch.inference_mode():
        logits = check_nan(head_logits(model, model(ids, return_logits=False).hidden[0, masks]))
        best = logits.softmax(dim=-1).topk(min(top, logits.shape[-1]), dim=-1)
    return [
        [Candidate(token, tokenizer.decode([token], skip_special=False), p) for token, p in zip(*row, strict=True)]
        for row in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
