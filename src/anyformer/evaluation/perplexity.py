"""Perplexity: how well a model predicts a text, and what quantizing it costs."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from anyformer.data.documents import documents
from anyformer.data.formats import utf8_length
from anyformer.data.input_files import Paths
from anyformer.errors import UserError
from anyformer.evaluation.scorer import Query, Scorer
from anyformer.generation import generate_ids
from anyformer.generation.inference import evaluating, require_generative, require_tokenizer
from anyformer.limits import RECORD_BYTES
from anyformer.model import Transformer
from anyformer.quantization import quantized_weights
from anyformer.runs.metrics import Evaluation
from anyformer.tokenizer import Tokenizer

_USUAL_CONTEXT = 1024
_DECODED = 48
_COMPARED = 4096
"""Predictions whose whole distributions are compared: a vocabulary's numbers each, in two models."""


@dataclass(frozen=True)
class Text:
    """The tokens of documents, separated as in training.

    Attributes:
        size: Bytes of their text in UTF-8.
        start: The token that every window begins with, where the tokenizer begins texts with one.
    """

    ids: Sequence[int]
    size: int
    start: int | None


@dataclass(frozen=True)
class Quality:
    """Quality of a model's predictions of a text, its size and speed.

    Attributes:
        bits_per_byte: The bits that a compressor with this model would need for a byte of the text.
        size: Bytes of the weights in memory.
        decode_tokens_per_second: Tokens a second that it generates, one text at a time.
        divergence: From the first model that is compared, see `divergence`; None: there is none.
    """

    evaluation: Evaluation
    bits_per_byte: float
    size: int
    decode_tokens_per_second: float
    divergence: float | None = None

    @property
    def perplexity(self) -> float:
        """The exponential of the mean loss of a token."""
        return math.exp(min(self.evaluation.loss, 700.0))

    @property
    def prompt_tokens_per_second(self) -> float:
        """Tokens a second of the forward passes."""
        return self.evaluation.predicted / max(self.evaluation.seconds, 1e-9)


def read_text(
    tokenizer: Tokenizer | None,
    paths: Paths,
    field: str = "text",
    limit: int | None = None,
    max_record_bytes: int = RECORD_BYTES,
) -> Text:
    """Read the tokens of files, at most `limit` of them. Raises UserError as `join_texts`, or if they can't be read."""
    tokenizer = require_tokenizer(tokenizer, "its text can't be read")
    read = documents(paths, field, max_record_bytes=max_record_bytes)
    return join_texts(tokenizer, ((document.text, document.last) for document in read), limit)


def join_texts(tokenizer: Tokenizer, pieces: Iterable[tuple[str, bool]], limit: int | None = None) -> Text:
    """Join the tokens of texts in pieces, each with whether it is the last one of its text, at most `limit` of them.

    Raises UserError for fewer than two tokens, and for a text that can't be encoded.
    """
    ids: list[int] = []
    size, waiting = 0, False
    for text, last in pieces:
        if waiting and tokenizer.separator is not None:
            ids.append(tokenizer.separator)
        ids += tokenizer.encode_batch([text], special=False)[0]
        size += utf8_length(text)
        waiting = last
        if limit is not None and len(ids) > limit:
            size = round(size * (limit + 1) / len(ids))
            ids = ids[: limit + 1]
            break
    if len(ids) < 2:
        raise UserError("The text has fewer than two tokens: there is nothing to predict.")
    start, _, _ = tokenizer.encode_parts("a")
    return Text(ids, size, start[0] if start else None)


def measure(
    model: Transformer,
    text: Text,
    context: int | None = None,
    batch_size: int = 4,
    progress: Callable[[int], None] = lambda count: None,
) -> Quality:
    """Predict each token of a text from those before it in its window, with a decoder-only model.

    Args:
        context: Tokens of a window; None: as many as the model has positions for, at most 1,024.
        progress: Called after each batch with the number of its predictions.

    Raises:
        UserError: a model that doesn't predict next tokens, or a window that it has no positions for.
    """
    begin = time.perf_counter()
    parts = list(losses(model, text, context, batch_size, progress))
    seconds = time.perf_counter() - begin
    evaluation = Evaluation(sum(nats for nats, _ in parts), sum(count for _, count in parts), seconds)
    bits = evaluation.bits_per_byte(predictions(text) + 1, text.size)
    size = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    speed = _decode_tokens_per_second(model, text, _window(model, context))
    return Quality(evaluation, bits, size, speed)


def losses(
    model: Transformer,
    text: Text,
    context: int | None = None,
    batch_size: int = 4,
    progress: Callable[[int], None] = lambda count: None,
) -> Iterator[tuple[float, int]]:
    """The summed loss in nats and the number of predictions of each batch of windows. Arguments as of `measure`."""
    context, scorer = _window(model, context), Scorer(model)
    for tokens, targets in _batches(text, context, batch_size):
        rows = zip(cast("list[list[int]]", tokens.tolist()), cast("list[list[int]]", targets.tolist()), strict=True)
        scores = scorer([Query(row, 0, expected) for row, expected in rows])
        yield -math.fsum(each.logprob for each in scores), targets.numel()
        progress(targets.numel())


def divergence(
    model: Transformer, reference: Transformer, text: Text, context: int | None = None, batch_size: int = 4
) -> float:
    """Mean Kullback-Leibler divergence of a model's predictions from a reference's, in nats a token.

    It is of the first 4,096 predictions of a text, and tells models apart whose perplexities luck makes equal.
    """
    context = _window(model, context)
    nats, predicted = 0.0, 0
    with evaluating(model), evaluating(reference), torch.inference_mode():
        for tokens, _ in _batches(text, context, batch_size):
            logits = [each(tokens.to(each.device)).logits.float().log_softmax(dim=-1) for each in (model, reference)]
            ours, theirs = (part.flatten(0, 1).cpu() for part in logits)
            nats += float(kl_div(ours, theirs, reduction="sum", log_target=True))
            predicted += len(ours)
            if predicted >= _COMPARED:
                break
    return nats / predicted


def predictions(text: Text) -> int:
    """Number of tokens of a text that are predicted."""
    return len(text.ids) - (text.start is None)


def weight_dtype(model: Transformer) -> str:
    """The dtype of its matrices, int8 or int4 for quantized ones."""
    bits = sorted({weight.bits for _, weight in quantized_weights(model)})
    return " and ".join(f"int{number}" for number in bits) or str(model.dtype).removeprefix("torch.")


def _window(model: Transformer, context: int | None) -> int:
    """The tokens of a window. Raises UserError as `measure`."""
    if model.config.is_encoder_only:
        raise UserError(
            "An encoder reads text and doesn't write it, so plain text measures nothing of it: if the data are "
            "examples, name their task, such as embed or classify."
        )
    require_generative(model)
    if not model.config.is_decoder_only:
        raise UserError("evaluate measures how well a decoder predicts a text, and this model reads a source first.")
    longest = model.config.context_length
    context = context or min(_USUAL_CONTEXT, model.config.max_length, longest or _USUAL_CONTEXT)
    if context < 2 or (longest is not None and context > longest):
        raise UserError(f"The context is a number of tokens from 2 to {longest or 'any'}, not {context}.")
    return context


def _batches(text: Text, context: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Tokens and targets [batch, time]: windows that begin where the last one ended, the short one at the end alone."""
    targets = torch.tensor(text.ids if text.start is not None else text.ids[1:])
    tokens = torch.tensor([0, *text.ids] if text.start is not None else text.ids)[: len(targets)]
    full = len(targets) - len(targets) % context
    windows = [*zip(*(ids[:full].view(-1, context).split(batch_size) for ids in (tokens, targets)), strict=True)]
    if full < len(targets):
        windows.append((tokens[full:][None], targets[full:][None]))
    for window, expected in windows if full else windows[1:]:
        if text.start is not None:
            window[:, 0] = text.start
        yield window, expected


def _decode_tokens_per_second(model: Transformer, text: Text, context: int) -> float:
    """Tokens a second of greedy decoding after a short prompt."""
    room = min(_DECODED, context - 8)
    if room < 2:
        return math.nan
    prompt = torch.tensor([text.ids[:8]])

    def seconds(count: int) -> float:
        begin = time.perf_counter()
        generate_ids(model, prompt, max_new_tokens=count, stop_at_eos=False)
        return time.perf_counter() - begin

    seconds(2)
    whole = seconds(room)
    beyond_prompt = whole - seconds(1)  # of a tiny model less than what other programs take at times
    return (room - 1) / beyond_prompt if beyond_prompt > 0 else room / whole
