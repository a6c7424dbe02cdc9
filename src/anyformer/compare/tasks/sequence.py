"""Sorting a sequence of frequent tokens, the most frequent first, after a few steps of training on it.

::

    decoder           to the is of <sep> the of to is       written token by token
    encoder-decoder   to the is of  ->   the of to is       written token by token
    encoder           to the is of <sep> [M] [M] [M] [M]    filled in at once

The score of a sequence is the share of its tokens that are in the right place: one in six for a model that knows which
six tokens they are, and not where.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from anyformer.compare.tasks.choices import Ids, Objective, TaskResult
from anyformer.compare.tasks.fit import fit, seeded
from anyformer.data.batch import IGNORED
from anyformer.generation.decode import generate_ids
from anyformer.generation.inference import evaluating, float_logits
from anyformer.generation.prompt import decoder_start_id
from anyformer.model import Transformer
from anyformer.tokenizer import Tokenizer

LENGTH = 6
"""Tokens of a sequence."""
_TOKENS = 20
"""Different tokens that sequences are made of."""
_TEST = 200
_STEPS, _BATCH_SIZE = 100, 32
_LEARNING_RATE = 2e-3
_CHARACTERS = 200_000
"""Characters of the training text that are counted."""


@dataclass(frozen=True, slots=True)
class Sorting:
    """The task.

    Attributes:
        tokens: What sequences are made of, in their right order.
        training: Sequences to be trained on, a batch a step, as indices of `tokens`: [steps, batch, length].
        test: The items, none of which is in `training`: [items, length].
        separator: The token between a sequence and the sorted one.
        seed: Of what training draws: dropout.
        reason: Why it is left out; None: it isn't.
    """

    name: ClassVar[str] = "sequence"
    tokens: Sequence[int]
    training: Sequence[Sequence[Ids]]
    test: Sequence[Ids]
    separator: int
    seed: int
    reason: str | None = None

    @classmethod
    def make(cls, train_texts: Sequence[str], tokenizer: Tokenizer, seed: int) -> Sorting:
        """Draw sequences of the tokens that are the most frequent ones with a letter in them."""
        rng = np.random.default_rng(seed)
        tokens, separator = _frequent(train_texts, tokenizer)
        if len(tokens) < 2 * LENGTH or separator is None:
            reason = f"The text has {len(tokens)} tokens with a letter, and a sequence task takes {2 * LENGTH}."
            return cls((), (), (), 0, seed, reason)

        def draw() -> Ids:
            return tuple(rng.choice(len(tokens), LENGTH, replace=False).tolist())

        test = list(dict.fromkeys(draw() for _ in range(_TEST)))
        known = set(test)
        fresh = (sequence for sequence in iter(draw, ()) if sequence not in known)
        training = [[*islice(fresh, _BATCH_SIZE)] for _ in range(_STEPS)]
        return cls(tokens, training, test, separator, seed)

    def run(self, model: Transformer, tokenizer: Tokenizer, objective: Objective | None) -> TaskResult:
        """Train a copy of a model, and score it."""
        scores, parts = list[float](), dict[str, float]()
        if self.reason is None:
            source, target = self._texts(self.test, model)
            right = self._answers(model, tokenizer, source) == target
            scores = right.float().mean(dim=1).tolist()
            parts = {"exact match": float(right.all(dim=1).float().mean())}
        return TaskResult(
            name=self.name,
            measure="tokens in the right place",
            chance=1 / LENGTH,
            items=tuple(scores),
            parts=parts,
            reason=self.reason,
        )

    def _answers(self, model: Transformer, tokenizer: Tokenizer, test: Tensor) -> Int[Tensor, "items length"]:
        task = _form(model, tokenizer, self.separator)
        trained = copy.deepcopy(model).requires_grad_(True)

        def loss(step: int) -> Tensor:
            return task.loss(trained, *self._texts(self.training[step], model))

        with seeded(self.seed):
            fit(trained, loss, len(self.training), _LEARNING_RATE)
        with evaluating(trained), torch.inference_mode():
            return task.answer(trained, test)

    def _texts(self, sequences: Sequence[Ids], model: Transformer) -> tuple[Tensor, Tensor]:
        """Sequences as they are, and sorted: ids, each [batch, length]."""
        ranks = torch.tensor(sequences)
        tokens = torch.tensor(self.tokens)
        return tokens[ranks].to(model.device), tokens[ranks.sort(dim=1).values].to(model.device)


class _Decoder:
    """Source, separator and target in one row."""

    def __init__(self, separator: int) -> None:
        self.separator = separator

    def loss(self, model: Transformer, source: Tensor, target: Tensor) -> Tensor:
        row = torch.cat((self._asked(source), target), dim=1)
        targets = row[:, 1:].clone()
        targets[:, : source.shape[1]] = IGNORED
        return _loss(model(row[:, :-1], targets=targets, return_logits=False).loss)

    def answer(self, model: Transformer, source: Tensor) -> Tensor:
        return _write(model, self._asked(source), source.shape[1])

    def _asked(self, source: Tensor) -> Tensor:
        return torch.cat((source, source.new_full((len(source), 1), self.separator)), dim=1)


class _EncoderDecoder:
    """Source and target."""

    def loss(self, model: Transformer, source: Tensor, target: Tensor) -> Tensor:
        start = source.new_full((len(source), 1), decoder_start_id(model))
        tokens = torch.cat((start, target[:, :-1]), dim=1)
        return _loss(model(tokens, source, targets=target, return_logits=False).loss)

    def answer(self, model: Transformer, source: Tensor) -> Tensor:
        return _write(model, source, source.shape[1])


class _Encoder:
    """Source, separator, and as many masks as there are targets."""

    def __init__(self, separator: int, mask: int) -> None:
        self.separator, self.mask = separator, mask

    def loss(self, model: Transformer, source: Tensor, target: Tensor) -> Tensor:
        tokens = self._asked(source)
        targets = torch.full_like(tokens, IGNORED)
        targets[:, -source.shape[1] :] = target
        return _loss(model(tokens, targets=targets, return_logits=False).loss)

    def answer(self, model: Transformer, source: Tensor) -> Tensor:
        return float_logits(model(self._asked(source)))[:, -source.shape[1] :].argmax(dim=-1)

    def _asked(self, source: Tensor) -> Tensor:
        separator = source.new_full((len(source), 1), self.separator)
        return torch.cat((source, separator, torch.full_like(source, self.mask)), dim=1)


def _form(model: Transformer, tokenizer: Tokenizer, separator: int) -> _Decoder | _EncoderDecoder | _Encoder:
    """How a model of this shape is asked."""
    if model.config.is_encoder_decoder:
        return _EncoderDecoder()
    if model.config.is_decoder_only:
        return _Decoder(separator)
    return _Encoder(separator, separator if tokenizer.mask is None else tokenizer.mask)


def _loss(loss: Tensor | None) -> Tensor:
    assert loss is not None
    return loss


def _write(model: Transformer, ids: Tensor, length: int) -> Tensor:
    return generate_ids(model, ids, max_new_tokens=length, beams=1, stop_at_eos=False)


def _frequent(texts: Sequence[str], tokenizer: Tokenizer) -> tuple[list[int], int | None]:
    """The most frequent tokens with a letter in them, and the most frequent other one."""
    left, counts = _CHARACTERS, Counter[int]()
    for text in texts:
        counts.update(tokenizer.encode(text[:left], special=False))
        left -= len(text)
        if left <= 0:
            break
    special = tokenizer.special_ids
    ranked = [id_ for id_, _ in counts.most_common() if id_ not in special]
    letters = {id_ for id_ in ranked if any(character.isalpha() for character in tokenizer.decode([id_]))}
    others = [id_ for id_ in ranked if id_ not in letters]
    frequent = [id_ for id_ in ranked if id_ in letters]
    # A text of nothing but letters lends one of its tokens.
    separator = others[0] if others else frequent[_TOKENS] if len(frequent) > _TOKENS else None
    return frequent[:_TOKENS], separator
