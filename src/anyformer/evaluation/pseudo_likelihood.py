"""Pseudo-log-likelihoods of masked models: each token given those on both sides of it.

::

    ids      the  cat  sou  ##ven  ##ir          words    0  1  2  2  2
    given    the  cat [M]  [M]  [M]  ->  sou     the later pieces of its own word are hidden with it
             the  cat  sou [M]  [M]  ->  ##ven
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from anyformer.blocks.head import LanguageModelHead
from anyformer.errors import UserError
from anyformer.evaluation.scorer import Query, Scorer
from anyformer.generation.inference import check_length
from anyformer.model import Transformer


class MaskedText(NamedTuple):
    """A text whose tokens are to be predicted.

    Attributes:
        ids: Its tokens, those that the tokenizer puts around it included.
        words: For each of them the number of its word.
        scored: The places of those that are predicted, at least one.
    """

    ids: Sequence[int]
    words: Sequence[int]
    scored: Sequence[int]


def pseudo_log_likelihoods(model: Transformer, texts: Sequence[MaskedText], mask_id: int) -> list[list[float]]:
    """How likely the tokens of texts are for a masked language model.

    A token is predicted with itself and the later tokens of its word hidden. Were they to be seen, the pieces of a long
    word would give each other away (Kauf & Ivanova 2023, section 3: PLL-word-l2r). Where each token is a word of its
    own this is the pseudo-log-likelihood of Salazar et al. (2020, section 2).

    The sum over a text ranks texts. It is not the logarithm of a probability.

    Args:
        model: An encoder with a masked-LM head.
        texts: What is scored. What different texts have in common once it is masked is computed once.
        mask_id: The mask token.

    Returns:
        For each text the log-probabilities of its `scored` tokens, in nats.

    Raises:
        UserError: a model that doesn't fill masks, a text beyond its context, an id outside of its vocabulary, an
            output that is NaN.
    """
    if not model.config.is_encoder_only or not isinstance(model.head, LanguageModelHead):
        raise UserError("Pseudo-log-likelihoods are those of an encoder with a masked-language-model head.")
    for number, text in enumerate(texts, start=1):
        check_length(f"Text {number}", len(text.ids), model)
    queries = [
        Query(_masked(text, place, mask_id), place, (text.ids[place],)) for text in texts for place in text.scored
    ]
    found = iter(Scorer(model)(queries))
    return [[next(found).logprob for _ in text.scored] for text in texts]


def _masked(text: MaskedText, place: int, mask_id: int) -> tuple[int, ...]:
    """The text without a token and the later ones of its word."""
    word = text.words[place]
    return tuple(mask_id if other >= place and text.words[other] == word else id_ for other, id_ in enumerate(text.ids))
