"""Running a model without training it, and what every way of running it needs to know."""

from collections.abc import Generator
from contextlib import contextmanager

import torch

from anyformer.errors import UserError
from anyformer.model import Transformer
from anyformer.tokenizer import Tokenizer


@contextmanager
def evaluating(model: Transformer) -> Generator[None, None, None]:
    """Switch dropout off for a while; modules that were in training mode are put back into it."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def device_of(model: Transformer) -> torch.device:
    """Where the model is."""
    return model.device


def require_tokenizer(tokenizer: Tokenizer | None, instead: str) -> Tokenizer:
    """The tokenizer. Raises UserError where there is none; `instead` says what can be done without."""
    if tokenizer is None:
        raise UserError(f"This model came without a tokenizer, so it can't read text: {instead}.")
    return tokenizer


def check_ids(ids: torch.Tensor, vocab_size: int) -> None:
    """Raise UserError where an id is not in the model's vocabulary."""
    smallest, largest = (int(value) for value in ids.aminmax())
    if smallest < 0 or largest >= vocab_size:
        wrong = smallest if smallest < 0 else largest
        raise UserError(
            f"Token id {wrong} is outside the model's vocabulary of {vocab_size}: use the tokenizer that the "
            "model was trained with."
        )
