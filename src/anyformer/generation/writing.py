"""What every search for a text needs to know of a model that writes."""

from collections.abc import Sequence
from typing import cast

from jaxtyping import Float
from torch import Tensor

from anyformer.errors import UserError
from anyformer.generation.prompt import Prompt
from anyformer.generation.rules import Rule, RuleContext, generation_settings, rules_for
from anyformer.model import ModelOutput, Transformer


def require_writing(model: Transformer) -> None:
    """Raise UserError for a model that can't write text."""
    if model.config.is_encoder_only:
        raise UserError(
            "An encoder reads text and doesn't write it: use `embed` for its vectors, or `fill` for the "
            "words behind masks."
        )
    if model.config.head.kind != "language_model":
        raise UserError(
            f"This model has no language-model head (its head is {model.config.head.kind!r}), so it can't "
            "write text: load one that was saved with it."
        )


def end_tokens(model: Transformer) -> tuple[int, ...]:
    """The tokens that end a text: those of the generation settings, else those of the config."""
    eos = cast("int | list[int] | None", generation_settings(model).get("eos_token_id"))
    known = model.config.tokens.eos if eos is None else [eos] if isinstance(eos, int) else eos
    return tuple(token for token in known if 0 <= token < model.config.vocab_size)


def filler(model: Transformer, ends: Sequence[int]) -> int:
    """What stands after the end of a text that others outlast."""
    known = (generation_settings(model).get("pad_token_id"), model.config.tokens.pad, *ends)
    return next((token for token in known if token is not None and 0 <= token < model.config.vocab_size), 0)


def rules_of(model: Transformer, prompt: Prompt, max_new_tokens: int, ends: Sequence[int]) -> list[Rule]:
    """What the model's generation settings demand of the texts that follow this prompt."""
    given = (prompt.start, prompt.mask) if prompt.source is None else (prompt.source, prompt.source_mask)
    context = RuleContext(
        vocab_size=model.config.vocab_size, max_new_tokens=max_new_tokens, ends=ends, ids=given[0], mask=given[1]
    )
    return rules_for(generation_settings(model), context)


def all_scores(out: ModelOutput) -> Float[Tensor, "batch time vocab"]:
    """The scores of what follows each token, in float32."""
    if out.logits is None:
        raise ValueError("a model without a language-model head scores no tokens")
    return out.logits.float()
