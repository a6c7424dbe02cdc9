"""Results in a Python prompt: each is one line, whatever it holds."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import anyformer as af
from anyformer.checkpoint.gguf.write import Written
from anyformer.compare.result import ComparedModel
from anyformer.evaluation.classify import Classification, Entity, TaggedText, TaggedWord
from anyformer.evaluation.metrics import Metric
from anyformer.evaluation.result import Evaluation
from anyformer.evaluation.score import Score
from anyformer.finetuning.finetune import FinetuneResult
from anyformer.generation.encoders import Candidate
from anyformer.learn.attention_maps import Attention
from anyformer.one_line import OneLine
from tests.compare.results import make_comparison

_plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.builds(Path, st.text("ab/ \n"))
_values = st.recursive(
    _plain | st.just(torch.zeros(2, 3)) | st.just(torch.nn.Linear(2, 2)) | st.just(object()),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
)


@dataclass(frozen=True, slots=True, repr=False)
class Result(OneLine):
    """Any result."""

    first: Any
    second: Any


@given(_values, _values)
def test_a_result_is_one_line(first: object, second: object) -> None:
    shown = repr(Result(first, second))
    assert shown.startswith("Result(first=")
    assert len(shown) <= 160
    assert len(shown.splitlines()) == 1


def test_a_result_shows_what_it_holds() -> None:
    assert repr(Result(0.123456, torch.zeros(2, 3))) == "Result(first=0.1235, second=Tensor[2, 3])"
    assert repr(Result({"a": "x" * 99}, range(9))) == f"Result(first={{'a': '{'x' * 37}...'}}, second=range(0, 9))"
    assert repr(Result(list(range(9)), [object()] * 3)) == "Result(first=[0, 1, 2, 3, ...], second=[3 object])"


def test_results_of_the_library(tmp_path: Path) -> None:
    model = af.build(af.preset("gpt2-nano", vocab_size=50, decoder_layers=1))
    tokens = torch.zeros(1, 4, dtype=torch.long)
    metric = Metric(np.ones((3, 2)), lambda sums: sums[..., 0] / sums[..., 1])
    tokenizer = af.Tokenizer.train(["some text"], "char")
    evaluation = Evaluation(task="classify", metrics={"accuracy": metric})
    results: list[tuple[object, str]] = [
        (model(tokens, targets=tokens, return_hidden=True), "ModelOutput(logits=Tensor[1, 4, 50], "),
        (evaluation, "Evaluation(task='classify', metrics={'accuracy': 1})"),
        (FinetuneResult(model, tokenizer, {"after": {"f1": 0.5}}, tmp_path), "FinetuneResult(directory="),
        (Score([1] * 500, [-1.0] * 500), "Score(logprob=-500, perplexity=2.718, tokens=[1, 1, 1, 1, ...])"),
        (make_comparison(), "Comparison(title="),
    ]
    for result, beginning in results:
        assert repr(result).startswith(beginning)
        assert "\n" not in repr(result)
        assert len(repr(result)) <= 160


@pytest.mark.parametrize(
    "kind", [Attention, Candidate, Classification, ComparedModel, Entity, TaggedText, TaggedWord, Written]
)
def test_of_other_results_each_is_one_line(kind: type[OneLine]) -> None:
    assert kind.__repr__ is OneLine.__repr__
    assert {field.name for field in fields(kind)} >= set(kind.shown or ())
