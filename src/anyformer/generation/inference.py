"""Evaluation mode, checks and the limits of a cache, which all ways of running a model share."""

import math
import os
import threading
from collections.abc import Generator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from anyformer.blocks.head import LanguageModelHead
from anyformer.errors import UserError, quote
from anyformer.model import Transformer
from anyformer.tokenizer import Tokenizer

DAMAGED = "The model answers with NaN: its weights are damaged, or its training diverged."


class DamagedError(UserError):
    """The model answers with NaN."""

    def __init__(self) -> None:
        super().__init__(DAMAGED)


@dataclass
class _Users:
    """Count of concurrent users of a model, and its modules that were in training mode before the first of them."""

    training: Sequence[torch.nn.Module]
    count: int = 0


found_likeliest: MutableMapping[Tensor, tuple[Tensor, int]] = WeakIdKeyDictionary()
"""The `likeliest` tokens of logits whose compiled code has found them on the way, and the version of these logits."""
_users: WeakKeyDictionary[Transformer, _Users] = WeakKeyDictionary()
_lock = threading.Lock()


@contextmanager
def evaluating(model: Transformer) -> Generator[None, None, None]:
    """Switch dropout off for a while; modules that were in training mode are put back into it.

    Threads may run a model side by side: the last one that ends puts it back.
    """
    _use_one_thread_after_fork()
    with _lock:
        users = _users.get(model)
        # Looking at every module takes as long as a small step: while others use the model, its own mode has to do.
        is_looked_at = users is None or users.count == 0 or model.training
        training = [module for module in modules_of(model) if module.training] if is_looked_at else []
        # Modules in training mode in spite of other users: somebody trains the model, and left a generator half read.
        if users is None or users.count == 0 or training:
            users = _users[model] = _Users(training)
        users.count += 1
        for module in training:
            module.training = False
    try:
        yield
    finally:
        with _lock:
            users.count -= 1
            if users.count == 0:
                for module in users.training:
                    module.training = True


def modules_of(module: torch.nn.Module) -> list[torch.nn.Module]:
    """The module and all in it, as `modules()` in half of its time; one that is in several comes as often."""
    found = [module]
    for each in found:  # which grows meanwhile
        children = each._modules.values()  # pyright: ignore[reportPrivateUsage]
        found += [child for child in children if child is not None]
    return found


@cache
def _use_one_thread_after_fork() -> None:
    """Let processes that are forked from now on compute with one thread: OpenMP's would be waited for forever there."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=partial(torch.set_num_threads, 1))


def head_logits(model: Transformer, hidden: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch vocab"]:
    """The logits of these hidden states of a model with a language-model head, in float32."""
    if not isinstance(model.head, LanguageModelHead):
        raise ValueError("a model without a language-model head has no logits")
    return model.head(hidden, model.token_embedding.weight).float()


def check_nan(logits: Float[Tensor, "rows vocab"]) -> Float[Tensor, "rows vocab"]:
    """Return the logits. Raises UserError where one is NaN."""
    if logits.numel():
        flat = logits.flatten()
        if math.isnan(float(flat[argmax(flat)])):
            raise DamagedError
    return logits


def likeliest(logits: Float[Tensor, "*rows vocab"]) -> Int[Tensor, "*rows"]:
    """The token with the largest logit of each row; -1 where one is NaN."""
    found = found_likeliest.get(logits)
    if found is not None and found[1] == logits._version:  # nobody has changed them
        return found[0]
    best = argmax(logits)
    return best.masked_fill(logits.gather(-1, best[..., None])[..., 0].isnan(), -1)


def argmax(logits: Float[Tensor, "*rows vocab"]) -> Int[Tensor, "*rows"]:
    """The token with the largest logit of each row, or with a NaN where there is one.

    On a CPU NumPy takes a tenth of torch's time, which wakes other threads for so many numbers, and waits for them.
    """
    if logits.device.type != "cpu" or logits.dtype == torch.bfloat16:
        return logits.argmax(-1)
    return torch.as_tensor(logits.detach().numpy().argmax(-1))


def check_ids(ids: Tensor, vocab_size: int) -> None:
    """Raise UserError where an id is not in the model's vocabulary."""
    smallest, largest = (int(value) for value in ids.aminmax())
    if smallest < 0 or largest >= vocab_size:
        wrong = smallest if smallest < 0 else largest
        raise UserError(
            f"Token id {wrong} is outside the model's vocabulary of {vocab_size}: use the tokenizer that the "
            "model was trained with."
        )


def check_length(text: str, length: int, model: Transformer) -> None:
    """Raise UserError where a text, or whatever it is called, has more tokens than the model can read."""
    context = model.config.context_length
    if context is not None and length > context:
        raise UserError(f"{text} has {length} tokens, and the model can read {context}: shorten it.")


def cache_limit(model: Transformer) -> int | None:
    """The longest text in tokens whose keys and values can be kept; None: any."""
    return model.config.settled_length or model.config.context_length


def cache_is_stale(model: Transformer, length: int, cached: int = 0) -> bool:
    """Whether the latest tokens change what earlier ones mean, as with dynamic scaling beyond the trained length.

    Args:
        length: Tokens of the text, the latest ones included.
        cached: Tokens whose keys and values are kept. LongRoPE's angles change once: where these are more, they stay.
    """
    settled, scaling = model.config.settled_length, model.config.position.scaling
    if settled is None or scaling is None or length <= settled:
        return False
    return scaling.kind != "longrope" or cached <= settled


def require_tokenizer(tokenizer: Tokenizer | None, instead: str) -> Tokenizer:
    """The tokenizer. Raises UserError where there is none; `instead` says what can be done without."""
    if tokenizer is None:
        file = "put its tokenizer.json beside its weights"
        raise UserError(f"This model came without a tokenizer ({file}), so it can't read text: {instead}.")
    return tokenizer


def generates(model: Transformer) -> bool:
    """Whether a model generates text."""
    return not model.config.is_encoder_only and model.config.head.kind == "language_model"


def require_generative(model: Transformer) -> None:
    """Raise UserError for a model that can't generate text."""
    if model.config.is_encoder_only:
        raise UserError(
            "An encoder reads text and doesn't write it: use `embed` for its vectors, or `fill` for the "
            "words behind masks."
        )
    if model.config.head.kind != "language_model":
        raise UserError(
            f"This model has no language-model head (its head is {quote(model.config.head.kind)}), so it can't "
            "write text: load one that was saved with it."
        )
