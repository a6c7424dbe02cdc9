"""A corpus with a rule, models of every family that know it, and models that know nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from torch import Tensor

import anyformer as af
from anyformer.compare.tasks.classifier import fit, seeded
from anyformer.config import SpecialTokens
from anyformer.data.batch import Batch
from anyformer.data.objectives import Masked, SpanCorruption
from anyformer.model import Transformer
from anyformer.tokenizer import Tokenizer

WORDS = [consonant + vowel for consonant in "bdfgklmnprst" for vowel in "aeo"]
"""The first is always followed by the second, this by the third; after that comes any of the first ones."""

OBJECTIVES: dict[str, str] = {
    "gpt2": "causal",
    "llama": "causal",
    "bert": "masked",
    "roberta": "masked",
    "t5-small": "span_corruption",
    "transformer-base": "prefix",
}
"""Presets of every family, and what they are trained on here."""


def text(lines: int, seed: int) -> str:
    """Lines of five to eight triples of words."""
    rng = np.random.default_rng(seed)
    triples = [" ".join(WORDS[index : index + 3]) for index in range(0, len(WORDS), 3)]
    return "".join(" ".join(rng.choice(triples, rng.integers(5, 9))) + "\n" for _ in range(lines))


TRAIN, HELD_OUT = [text(400, seed=0), text(200, seed=1)], [text(80, seed=2), text(60, seed=3)]


@cache
def tokenizer(objective: str) -> Tokenizer:
    """One whose tokens are words."""
    special = "seq2seq" if objective == "prefix" else objective
    return Tokenizer.train(TRAIN, "wordpiece:160" if objective == "masked" else "bpe:440", special=special)


@dataclass(frozen=True)
class Candidate:
    """A model, its tokenizer, and what it was trained on."""

    model: Transformer
    tokenizer: Tokenizer
    objective: str


@cache
def untrained(preset: str) -> Candidate:
    objective = OBJECTIVES[preset]
    made = tokenizer(objective)
    with seeded(0):
        model = af.build(
            af.preset(preset).replace(
                vocab_size=made.vocab_size,
                d_model=48,
                max_length=40,
                dropout=0.0,
                attention={"heads": 2, "kv_heads": None, "head_dim": 24, "dropout": 0.0},
                feed_forward={"width": 96, "dropout": 0.0},
                special_tokens=SpecialTokens(pad=made.pad, decoder_start=made.pad),
                **_sizes(preset, made),
            )
        )
    return Candidate(model.eval(), made, objective)


def _sizes(preset: str, made: Tokenizer) -> dict[str, object]:
    config = af.preset(preset)
    changes: dict[str, object] = {
        "encoder_layers": 2 if config.encoder_layers else 0,
        "decoder_layers": 2 if config.decoder_layers else 0,
        "embedding.dropout": 0.0,
        "position.scaling": None,
    }
    if config.embedding.padding is not None:
        changes["embedding.padding"] = made.pad
    return changes


@cache
def trained(preset: str) -> Candidate:
    """A model that has seen the training text for a few seconds."""
    fresh = untrained(preset)
    with seeded(0):
        model = af.build(fresh.model.config)
        rng = np.random.default_rng(0)
        stream = np.array(fresh.tokenizer.encode("".join(TRAIN), special=False))

        def loss(step: int) -> Tensor:
            windows = np.stack([stream[begin : begin + 24] for begin in rng.integers(0, len(stream) - 24, size=24)])
            batch = _batch(windows, fresh, rng)
            found = model(
                torch.from_numpy(batch.tokens),
                None if batch.source is None else torch.from_numpy(batch.source),
                targets=torch.from_numpy(batch.targets),
                return_logits=False,
            ).loss
            assert found is not None
            return found

        # Who predicts a part of the tokens takes more steps to learn all of them.
        fit(model, loss, {"masked": 800, "span_corruption": 2000}.get(fresh.objective, 250), 3e-3)
    return Candidate(model, fresh.tokenizer, fresh.objective)


def _batch(windows: np.ndarray, candidate: Candidate, rng: np.random.Generator) -> Batch:
    made, start = candidate.tokenizer, candidate.tokenizer.pad
    everything = np.ones_like(windows, dtype=np.bool_)
    if candidate.objective == "causal":
        first = np.full((len(windows), 1), made.separator)
        return Batch(np.concatenate((first, windows[:, :-1]), axis=1), windows)
    if candidate.objective == "masked":
        return replace(Masked.of_tokenizer(made), probability=0.3)(windows, everything, None, rng)
    if candidate.objective == "span_corruption":
        spans = SpanCorruption.of_tokenizer(made, SpecialTokens(pad=made.pad, decoder_start=start))
        return replace(spans, noise_density=0.3, mean_span_length=1.5)(windows, everything, None, rng)
    assert start is not None
    source, targets = np.split(windows, [int(rng.integers(1, 20))], axis=1)
    read = np.concatenate((source, np.full((len(windows), 1), made.eos)), axis=1)
    tokens = np.concatenate((np.full((len(windows), 1), start), targets[:, :-1]), axis=1)
    return Batch(tokens, targets, source=read)
