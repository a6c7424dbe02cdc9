"""The words behind the masks of a text."""

from dataclasses import dataclass

import torch

from anyformer.errors import UserError
from anyformer.generation.inference import check_ids, check_nan, evaluating, require_tokenizer
from anyformer.model import Transformer
from anyformer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Candidate:
    """What may stand behind a mask."""

    token: int
    """Its id."""
    text: str
    """Its text, with the space before it where the token includes one."""
    probability: float


def fill(model: Transformer, tokenizer: Tokenizer | None, text: str, top: int = 5) -> list[list[Candidate]]:
    """Guess what the masks in a text stand for, each by itself.

    Args:
        model: An encoder with a masked-LM head.
        tokenizer: Its tokenizer.
        text: A text with the tokenizer's mask token in it, such as ``Paris is the [MASK] of France.``
        top: Candidates a mask.

    Returns:
        For each mask from left to right the likeliest candidates, the likeliest first.

    Raises:
        UserError: no mask in the text, a model or tokenizer that knows none, a text beyond the context, a model that
            answers with NaN.
    """
    tokenizer = require_tokenizer(tokenizer, "give the model token ids")
    config = model.config
    if not config.is_encoder_only:
        raise UserError("Filling masks takes an encoder such as BERT, and this model writes text: use `generate`.")
    if config.head.kind != "language_model":
        raise UserError(
            f"This encoder has no masked-language-model head (its head is {config.head.kind!r}), so it can't "
            "fill masks: load one that was saved with it, or use `embed`."
        )
    if tokenizer.mask is None or tokenizer.mask_token is None:
        raise UserError("This model's tokenizer has no mask token, so there is nothing to fill.")
    if top < 1:
        raise UserError(f"top is a number of candidates, at least 1, not {top}.")
    row = tokenizer.encode(text)
    positions = [position for position, token in enumerate(row) if token == tokenizer.mask]
    if not positions:
        raise UserError(f"There is no mask in the text: write {tokenizer.mask_token} for the word to be filled in.")
    if config.context_length is not None and len(row) > config.context_length:
        raise UserError(f"The text has {len(row)} tokens, and the model can read {config.context_length}: shorten it.")
    ids = torch.tensor([row], device=model.device)
    check_ids(ids, config.vocab_size)
    with evaluating(model), torch.inference_mode():
        logits = model(ids).logits
        if logits is None:
            raise ValueError("a model with a language-model head has logits")
        best = check_nan(logits[0, positions]).float().softmax(dim=-1).topk(min(top, logits.shape[-1]), dim=-1)
    return [
        [
            Candidate(token, tokenizer.decode([token], skip_special=False), p)
            for token, p in zip(tokens, chances, strict=True)
        ]
        for tokens, chances in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
