"""Measurement of a trained model: the numbers of its groups, piece by piece, and texts of its own.

======================================= ============================= ==================================================
group                                   members                       number
======================================= ============================= ==================================================
next_byte                               decoders                      bits per byte of the held-out pieces
continuation                            decoders, encoder-decoders    bits per byte of the second half of each piece,
                                                                      given the first
filling_in                              encoders                      pseudo bits per byte (PLL-word-l2r, Kauf & Ivanova
                                                                      2023): not the probability of a text
spans                                   encoder-decoders              nats per predicted token of T5's span corruption
======================================= ============================= ==================================================
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from anyformer.compare.corpus import SharedText
from anyformer.compare.result import Blank, Guess, Panel, Sample
from anyformer.compare.statistics import Float64, Pieces
from anyformer.compare.windows import Filling, FromStart, continuation, cut, reading
from anyformer.config import ModelConfig
from anyformer.data.batch import Batch, Int64
from anyformer.data.masked import WordBoundaries
from anyformer.errors import UserError
from anyformer.evaluation.pseudo_likelihood import MaskedText, pseudo_log_likelihoods
from anyformer.evaluation.scorer import Query, Scorer
from anyformer.generation import fill, generate
from anyformer.generation.inference import DamagedError
from anyformer.model import Transformer
from anyformer.tokenizer import Tokenizer

PANELS = (
    Panel(name="next_byte", title="Next byte", measure="bits per byte", lower_is_better=True),
    Panel(
        name="continuation",
        title="The rest of a text given its beginning",
        measure="bits per byte",
        lower_is_better=True,
        note="The second half of each piece, given the first.",
    ),
    Panel(
        name="filling_in",
        title="Filling in",
        measure="pseudo bits per byte",
        lower_is_better=True,
        note="Each token given those on both sides of its word and the earlier ones in it: not the probability of a "
        "text, and not to be compared with bits per byte.",
    ),
    Panel(
        name="spans",
        title="Spans",
        measure="nats per token",
        lower_is_better=True,
        note="The loss of T5's span corruption, of the tokens in spans and the sentinels before them.",
    ),
)
"""The groups, without scores."""

PIECES, MASKED_PIECES = 256, 32
"""Held-out pieces; an encoder has to read one as often as it has tokens."""
_ROWS = 16
_SHARE = 0.5
_SAMPLES, _NEW_TOKENS, _BLANKS, _BLANK_TOKENS = 3, 60, 4, 24


@dataclass(frozen=True)
class Measures:
    """The numbers of one run.

    Attributes:
        pieces: by name of the panel, of one seed.
        samples, blanks: texts, where a model writes or fills in.
    """

    pieces: Mapping[str, Pieces]
    samples: Sequence[Sample] = ()
    blanks: Sequence[Blank] = ()


def measure(model: Transformer, tokenizer: Tokenizer, text: SharedText) -> Measures:
    """Measure a model on the held-out text.

    Args:
        tokenizer: the model's own, that puts around a text what it has seen there.

    Raises:
        UserError: it answers with NaN.
    """
    how = reading(model.config, text.tokenizer)
    pieces = text.pieces(PIECES)
    if isinstance(how, Filling):
        found = {"filling_in": _filling_in(model, how, text)}
        return Measures(found, blanks=_blanks(model, tokenizer, text))
    half = cut(text.window, _SHARE)
    rest = text.bytes_of(pieces[:, half:])
    if isinstance(how, FromStart):
        nats = _token_nats(model, how, pieces)
        found = {
            "next_byte": _bits(nats.sum(axis=1), text.bytes_of(pieces)),
            "continuation": _bits(nats[:, half:].sum(axis=1), rest),
        }
    else:
        writer = continuation(model.config, text.tokenizer, _SHARE)
        found = {"continuation": _bits(_token_nats(model, writer, pieces).sum(axis=1), rest)}
        spans = _token_nats(model, how.spans, pieces)
        found["spans"] = Pieces(spans.sum(axis=1)[None], np.full(len(spans), float(spans.shape[1])))
    return Measures(found, samples=_samples(model, tokenizer, text))


def _bits(nats: Float64, size: Int64) -> Pieces:
    return Pieces(nats[None] / math.log(2), size.astype(np.float64))


def _token_nats(model: Transformer, read: Any, pieces: Int64) -> Float64:
    """[pieces, time] the loss of each target."""
    rng = np.random.default_rng(0)
    queries = list[Query]()
    for at in range(0, len(pieces), _ROWS):
        batch: Batch = read(pieces[at : at + _ROWS], rng)
        source = [[]] * len(batch.tokens) if batch.source is None else batch.source.tolist()
        rows = zip(batch.tokens.tolist(), batch.targets.tolist(), source, strict=True)
        queries += [Query(tokens, 0, targets, source) for tokens, targets, source in rows]
    nats = -np.array([each.logprobs for each in Scorer(model)(queries)])
    if not np.isfinite(nats).all():
        raise DamagedError
    return nats


def _filling_in(model: Transformer, how: Filling, text: SharedText) -> Pieces:
    masked = how.masked
    pieces = text.pieces(MASKED_PIECES)
    boundaries = WordBoundaries.of_tokenizer(text.tokenizer)
    words = (boundaries.first(pieces) | np.isin(pieces, masked.special)).cumsum(axis=1)
    texts: list[MaskedText] = []
    before, after = ([] if each is None else [each] for each in (masked.before, masked.after))
    for row, number in zip(pieces.tolist(), words.tolist(), strict=True):
        ids = [*before, *row, *after]
        around = [*([0] * len(before)), *number, *([-1] * len(after))]
        texts.append(MaskedText(ids, around, range(len(before), len(before) + len(row))))
    scores = pseudo_log_likelihoods(model, texts, masked.mask_id)
    return _bits(-np.array([math.fsum(each) for each in scores]), text.bytes_of(pieces))


def _samples(model: Transformer, tokenizer: Tokenizer, text: SharedText) -> list[Sample]:
    """Texts of a model after the beginnings of held-out pieces, which are equal for every model."""
    found: list[Sample] = []
    for row in text.pieces(PIECES)[:: max(1, PIECES // _SAMPLES)][:_SAMPLES].tolist():
        prompt = tokenizer.decode(row[: cut(len(row), _SHARE)])
        if prompt.strip():
            new = min(_NEW_TOKENS, len(row) // 2)
            (written,) = generate(model, tokenizer, [prompt], max_new_tokens=new, temperature=0.8, top_k=40, seed=0)
            found.append(Sample(prompt=prompt, written=written))
    return found


def _blanks(model: Transformer, tokenizer: Tokenizer, text: SharedText) -> list[Blank]:
    """A word of held-out pieces left out, and what a model would fill in."""
    found: list[Blank] = []
    boundaries = WordBoundaries.of_tokenizer(tokenizer)
    for row in text.pieces(PIECES):
        ids = row[:_BLANK_TOKENS]
        starts = np.flatnonzero(boundaries.first(ids[None])[0])
        for place in (each for each in starts.tolist() if len(ids) // 2 <= each < len(ids) - 2):
            answer = tokenizer.decode([int(ids[place])])
            before, after = tokenizer.decode(ids[:place].tolist()), tokenizer.decode(ids[place + 1 :].tolist())
            if place + 1 in starts and answer.strip().isalpha() and len(answer.strip()) > 1:
                try:
                    (guesses,) = fill(model, tokenizer, f"{before}{tokenizer.mask_token}{after}", 5)
                except (UserError, ValueError):  # the text around it reads otherwise by itself
                    continue
                shown = tuple(Guess(text=each.text, probability=each.probability) for each in guesses)
                found.append(Blank(before=before, answer=answer, after=after, guesses=shown))
                break
        if len(found) == _BLANKS:
            break
    return found


def members(config: ModelConfig, objective: str | None = None) -> set[str]:
    """The groups that a model belongs to, by its stacks.

    Args:
        objective: of a model that was trained elsewhere.
    """
    if config.is_encoder_only:
        return {"filling_in"}
    if config.is_encoder_decoder:
        learned = {"span_corruption": {"spans"}, "seq2seq": set[str]()}
        return learned.get(objective or "", {"continuation", "spans"})
    return {"next_byte", "continuation"}
