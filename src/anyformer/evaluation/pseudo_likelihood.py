"""Pseudo-log-likelihoods of masked models: each token given those on both sides of it.

::

    ids      the  cat  sou  ##ven  ##ir          words    0  1  2  2  2
    given    the  cat [M]  [M]  [M]  ->  sou     the later pieces of its own word are hidden with it
             the  cat  sou [M]  [M]  ->  ##ven
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch

from anyformer.blocks.head import LanguageModelHead
from anyformer.errors import UserError
from anyformer.generation.inference import DamagedError, check_ids, check_length, evaluating
from anyformer.generation.prompt import pad
from anyformer.model import Transformer

_BATCH_TOKENS = 4096
"""Tokens of a batch, padding included."""

Ids = tuple[int, ...]


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


def pseudo_log_likelihoods(
    model: Transformer,
    texts: Sequence[MaskedText],
    mask_id: int,
    *,
    progress: Callable[[int], None] = lambda count: None,
) -> list[list[float]]:
    """How likely the tokens of texts are for a masked language model.

    A token is predicted with itself and the later tokens of its word hidden. Were they to be seen, the pieces of a long
    word would give each other away (Kauf & Ivanova 2023, section 3: PLL-word-l2r). Where each token is a word of its
    own this is the pseudo-log-likelihood of Salazar et al. (2020, section 2).

    The sum over a text ranks texts. It is not the logarithm of a probability.

    Args:
        model: An encoder with a masked-LM head.
        texts: What is scored. What different texts have in common once it is masked is computed once.
        mask_id: The mask token.
        progress: Called after each batch with the number of tokens that were predicted.

    Returns:
        For each text the log-probabilities of its `scored` tokens, in nats.

    Raises:
        UserError: a model that doesn't fill masks, a text beyond its context, an id outside of its vocabulary, an
            output that is NaN.
    """
    head = model.head
    if not model.config.is_encoder_only or not isinstance(head, LanguageModelHead):
        raise UserError("Pseudo-log-likelihoods are those of an encoder with a masked-language-model head.")
    wanted: dict[tuple[Ids, int], dict[int, list[tuple[int, int]]]] = {}
    for number, text in enumerate(texts):
        check_length(f"Text {number + 1}", len(text.ids), model)
        for index, place in enumerate(text.scored):
            targets = wanted.setdefault((_masked(text, place, mask_id), place), {})
            targets.setdefault(text.ids[place], []).append((number, index))
    found = [[0.0] * len(text.scored) for text in texts]
    padding = model.config.embedding.padding or 0
    with evaluating(model), torch.inference_mode():
        for batch in _batches(sorted(wanted, key=lambda row: len(row[0]), reverse=True)):
            ids, mask = pad([ids for ids, _ in batch], padding, model.device)
            check_ids(ids, model.config.vocab_size)
            hidden = model(ids, mask=None if bool(mask.all()) else mask, return_logits=False).hidden
            rows = torch.arange(len(batch), device=model.device)
            places = torch.tensor([place for _, place in batch], device=model.device)
            logprobs = head(hidden[rows, places], model.token_embedding.weight).float().log_softmax(dim=-1)
            targets = [(row, id_) for row, key in enumerate(batch) for id_ in wanted[key]]
            index = torch.tensor(targets, device=model.device)
            check_ids(index[:, 1], model.config.vocab_size)
            chosen = logprobs[index[:, 0], index[:, 1]]
            if bool(chosen.isnan().any()):
                raise DamagedError
            values: list[float] = chosen.tolist()
            for (row, id_), value in zip(targets, values, strict=True):
                for number, position in wanted[batch[row]][id_]:
                    found[number][position] = value
            progress(len(targets))
    return found


def _masked(text: MaskedText, place: int, mask_id: int) -> Ids:
    """The text without a token and the later ones of its word."""
    word = text.words[place]
    return tuple(mask_id if other >= place and text.words[other] == word else id_ for other, id_ in enumerate(text.ids))


def _batches(rows: Sequence[tuple[Ids, int]]) -> Iterator[Sequence[tuple[Ids, int]]]:
    """Rows, sorted by length, that share a batch."""
    begin = 0
    while begin < len(rows):
        end = begin + max(1, _BATCH_TOKENS // len(rows[begin][0]))
        yield rows[begin:end]
        begin = end
