"""Generated texts: BLEU, chrF and ROUGE are those of their libraries, of resamples too."""

import math
import sys

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from anyformer.errors import UserError
from anyformer.evaluation.metrics import exact_match, language_model, summaries, translation

WORDS = st.lists(st.sampled_from(["a", "cat", "sat", "on", "the", "mat.", "Größe", "x\ny", "12"]), max_size=12)
PAIRS = st.lists(st.tuples(WORDS.map(" ".join), WORDS.map(" ".join)), min_size=1, max_size=8)


def _columns(pairs: list[tuple[str, str]]) -> tuple[list[str], list[str]]:
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


@given(PAIRS)
@settings(max_examples=50)
def test_translations_are_scored_as_by_sacrebleu(pairs: list[tuple[str, str]]) -> None:
    references, predictions = _columns(pairs)
    metrics = translation(references, predictions)
    counts = np.arange(1, 1 + len(pairs)) % 3
    counts[0] = 1
    drawn = [
        [text for text, count in zip(column, counts, strict=True) for _ in range(count)]
        for column in (references, predictions)
    ]
    for (x, y), values in (
        ((references, predictions), {name: metric.value for name, metric in metrics.items()}),
        (drawn, {name: metric.of_counts(counts[None].astype(float))[0] for name, metric in metrics.items()}),
    ):
        assert values["bleu"] == pytest.approx(sacrebleu.corpus_bleu(y, [x], force=True).score)
        assert values["chrf"] == pytest.approx(sacrebleu.corpus_chrf(y, [x]).score)


@given(PAIRS)
@settings(max_examples=50)
def test_summaries_are_scored_as_by_rouge_score(pairs: list[tuple[str, str]]) -> None:
    references, predictions = _columns(pairs)
    names = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    scores = [RougeScorer(names).score(*pair) for pair in pairs]
    found = {name: metric.value for name, metric in summaries(references, predictions).items()}
    assert found == pytest.approx({name: np.mean([score[name].fmeasure for score in scores]) for name in names})


def test_exact_match() -> None:
    texts = ["The cat.", "a dog", "12"], [" The cat.\n", "A dog!", "13"]
    assert exact_match(*texts).value == pytest.approx(1 / 3)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, function in (("sacrebleu.metrics.bleu", translation), ("rouge_score.rouge_scorer", summaries)):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(UserError, match=r"pip install 'anyformer\[eval\]'"):
            function(["a"], ["b"])


def test_they_are_those_of_all_rows_together() -> None:
    found = language_model([3.0, 1.0], [2, 6], [10, 30])
    assert found["perplexity"].value == pytest.approx(math.exp(4 / 8))
    assert found["bits_per_byte"].value == pytest.approx(4 / math.log(2) / 40)
    assert set(language_model([3.0], [2])) == {"perplexity"}


def test_extremes() -> None:
    assert math.isnan(language_model([0.0], [0])["perplexity"].value)
    assert language_model([1e9], [1])["perplexity"].value == pytest.approx(math.exp(700))
