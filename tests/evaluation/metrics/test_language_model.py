"""Perplexity and bits per byte."""

import math

import pytest

from anyformer.evaluation.metrics import language_model


def test_they_are_those_of_all_rows_together() -> None:
    found = language_model([3.0, 1.0], [2, 6], [10, 30])
    assert found["perplexity"].value == pytest.approx(math.exp(4 / 8))
    assert found["bits_per_byte"].value == pytest.approx(4 / math.log(2) / 40)
    assert set(language_model([3.0], [2])) == {"perplexity"}


def test_extremes() -> None:
    assert math.isnan(language_model([0.0], [0])["perplexity"].value)
    assert language_model([1e9], [1])["perplexity"].value == pytest.approx(math.exp(700))
