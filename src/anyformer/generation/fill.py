"""Fill-mask: the likeliest tokens for the masks in a text."""

from dataclasses import dataclass

import torch

from anyformer.checkpoint.load import takes_model
from anyformer.errors import UserError, quote
from anyformer.generation import inference
from anyformer.model import Transformer
from anyformer.one_line import OneLine
from anyformer.tokenizer import Tokenizer


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
        UserError: a text without a mask, a model or tokenizer without masks, a text beyond the context, a model whose
            output is NaN.
    """
    tokenizer = inference.require_tokenizer(tokenizer, "give the model token ids")
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
    inference.check_length("The text", ids.shape[1], model)
    inference.check_ids(ids, config.vocab_size)
    with inference.evaluating(model), torch.inference_mode():
        logits = inference.check_nan(inference.float_logits(model(ids))[0, masks])
        best = logits.softmax(dim=-1).topk(min(top, logits.shape[-1]), dim=-1)
    return [
        [Candidate(token, tokenizer.decode([token], skip_special=False), p) for token, p in zip(*row, strict=True)]
        for row in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
