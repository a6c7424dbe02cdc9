"""Measurement of a trained model: the numbers of its groups, piece by piece, and texts of its own."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np

from anyformer.compare.corpus import Filling, FromStart, SharedText, cut, window_objective
from anyformer.compare.result import Blank, Guess, Panel, Sample
from anyformer.compare.tasks import TaskResult
from anyformer.compare.verdicts import Float64
from anyformer.config import ModelConfig
from anyformer.data.batch import Batch, Int64, Rng
from anyformer.data.masked import WordBoundaries
from anyformer.errors import UserError
from anyformer.evaluation.scorer import MaskedText, Query, Scorer, pseudo_log_likelihoods
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
        # PLL-word-l2r, Kauf & Ivanova 2023
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


_LARGEST = 1e100
"""A sum of numbers below it can be squared."""


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """The numbers of one run in one group, as `Pieces` of one seed."""

    totals: tuple[float, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        sums = math.fsum(map(abs, self.totals)), math.fsum(map(abs, self.weights))
        if len(self.totals) != len(self.weights) or not (sums[0] < _LARGEST and 0 < sums[1] < _LARGEST):
            raise UserError("numbers: wants as many totals as weights, all of them finite.")


@dataclass(frozen=True, kw_only=True)
class Measures:
    """Measurements of one run: numbers and tasks by name, and texts where the model writes or fills in."""

    numbers: dict[str, Numbers] = field(default_factory=dict[str, Numbers])
    samples: tuple[Sample, ...] = ()
    blanks: tuple[Blank, ...] = ()
    tasks: dict[str, TaskResult] = field(default_factory=dict[str, TaskResult])


def measure(model: Transformer, tokenizer: Tokenizer, text: SharedText) -> Measures:
    """Measure a model and its own tokenizer on the held-out text. Raises UserError where it answers with NaN."""
    objective = window_objective(model.config, text.tokenizer)
    if isinstance(objective, Filling):
        numbers = {"filling_in": _filling_in(model, objective, text)}
        return Measures(numbers=numbers, blanks=_blanks(model, tokenizer, text))
    pieces = text.pieces(PIECES)
    half = cut(text.window, _SHARE)
    rest = text.bytes_of(pieces[:, half:])
    if isinstance(objective, FromStart):
        nats = _token_nats(model, objective, pieces)
        numbers = {
            "next_byte": _bits(nats.sum(axis=1), text.bytes_of(pieces)),
            "continuation": _bits(nats[:, half:].sum(axis=1), rest),
        }
    else:
        nats = _token_nats(model, replace(objective.continuation, share=_SHARE), pieces)
        spans = _token_nats(model, objective.spans, pieces)
        span_weights = (float(spans.shape[1]),) * len(spans)
        numbers = {
            "continuation": _bits(nats.sum(axis=1), rest),
            "spans": Numbers(totals=tuple(spans.sum(axis=1).tolist()), weights=span_weights),
        }
    return Measures(numbers=numbers, samples=_samples(model, tokenizer, text))


def _bits(nats: Float64, size: Int64) -> Numbers:
    return Numbers(totals=tuple((nats / math.log(2)).tolist()), weights=tuple(map(float, size)))


def _token_nats(model: Transformer, make_batch: Callable[[Int64, Rng], Batch], pieces: Int64) -> Float64:
    """[pieces, time] the loss of each target."""
    rng = np.random.default_rng(0)
    queries = list[Query]()
    for begin in range(0, len(pieces), _ROWS):
        batch = make_batch(pieces[begin : begin + _ROWS], rng)
        source = [[]] * len(batch.tokens) if batch.source is None else batch.source.tolist()
        rows = zip(batch.tokens.tolist(), batch.targets.tolist(), source, strict=True)
        queries += [Query(tokens, 0, targets, source) for tokens, targets, source in rows]
    nats = -np.array([each.logprobs for each in Scorer(model)(queries)])
    if not np.isfinite(nats).all():
        raise DamagedError
    return nats


def _filling_in(model: Transformer, objective: Filling, text: SharedText) -> Numbers:
    masked = objective.masked
    pieces = text.pieces(MASKED_PIECES)
    boundaries = WordBoundaries.of_tokenizer(text.tokenizer)
    words = (boundaries.first(pieces) | np.isin(pieces, masked.special)).cumsum(axis=1)
    before, after = ([] if each is None else [each] for each in (masked.before, masked.after))
    texts = [
        MaskedText(
            [*before, *row, *after],
            [*([0] * len(before)), *number, *([-1] * len(after))],
            range(len(before), len(before) + len(row)),
        )
        for row, number in zip(pieces.tolist(), words.tolist(), strict=True)
    ]
    scores = pseudo_log_likelihoods(model, texts, masked.mask_id)
    return _bits(-np.array([math.fsum(each) for each in scores]), text.bytes_of(pieces))


def _samples(model: Transformer, tokenizer: Tokenizer, text: SharedText) -> tuple[Sample, ...]:
    """Texts of a model after the beginnings of held-out pieces, which are equal for every model."""
    samples: list[Sample] = []
    for row in text.pieces(PIECES)[:: max(1, PIECES // _SAMPLES)][:_SAMPLES].tolist():
        prompt = tokenizer.decode(row[: cut(len(row), _SHARE)])
        if prompt.strip():
            new = min(_NEW_TOKENS, len(row) // 2)
            (written,) = generate(model, tokenizer, [prompt], max_new_tokens=new, temperature=0.8, top_k=40, seed=0)
            samples.append(Sample(prompt=prompt, written=written))
    return tuple(samples)


def _blanks(model: Transformer, tokenizer: Tokenizer, text: SharedText) -> tuple[Blank, ...]:
    """Held-out pieces with a word left out, and what a model would fill in."""
    boundaries = WordBoundaries.of_tokenizer(tokenizer)
    blanks = (_blank(model, tokenizer, row[:_BLANK_TOKENS], boundaries) for row in text.pieces(PIECES))
    return tuple(islice((blank for blank in blanks if blank is not None), _BLANKS))


def _blank(model: Transformer, tokenizer: Tokenizer, ids: Int64, boundaries: WordBoundaries) -> Blank | None:
    starts = np.flatnonzero(boundaries.first(ids[None])[0]).tolist()
    for index in (each for each in starts if len(ids) // 2 <= each < len(ids) - 2):
        before, answer, after = (tokenizer.decode(part.tolist()) for part in np.split(ids, [index, index + 1]))
        if index + 1 in starts and answer.strip().isalpha() and len(answer.strip()) > 1:
            try:
                (guesses,) = fill(model, tokenizer, f"{before}{tokenizer.mask_token}{after}", 5)
            except (UserError, ValueError):  # the text around it reads otherwise by itself
                continue
            shown = tuple(Guess(text=each.text, probability=each.probability) for each in guesses)
            return Blank(before=before, answer=answer, after=after, guesses=shown)
    return None


def members(config: ModelConfig, objective: str) -> set[str]:
    """The groups that a model belongs to, by its stacks and the objective of its training elsewhere."""
    if config.is_encoder_only:
        return {"filling_in"}
    if config.is_encoder_decoder:
        return {"span_corruption": {"spans"}, "seq2seq": set[str]()}.get(objective, {"continuation", "spans"})
    return {"next_byte", "continuation"}
