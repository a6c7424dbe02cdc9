"""Scores of given tokens, against the model on each text alone."""

import ast
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import anyformer as af
from anyformer.errors import UserError
from anyformer.evaluation import scorer
from anyformer.evaluation.scorer import Query, Scorer
from tests.evaluation.models import encoder
from tests.generation.models import VOCAB, WRITERS, build

MODELS = {name: build(WRITERS[name]) for name in ("rotary", "dynamic", "n-grams", "relative both")}
MODELS["encoder"] = encoder({"kind": "language_model"})[0]


@st.composite
def queries(draw: st.DrawFn) -> list[Query]:
    """Texts that begin alike and equal ones, of which a stretch is scored."""
    token = st.integers(3, VOCAB - 1)
    begin = draw(st.lists(token, max_size=5))
    found = list[Query]()
    for _ in range(draw(st.integers(1, 5))):
        tokens = [*begin * draw(st.integers(0, 1)), *draw(st.lists(token, min_size=1, max_size=8))]
        first = draw(st.integers(0, len(tokens) - 1))
        targets = draw(st.lists(token, min_size=1, max_size=len(tokens) - first))
        found.append(Query(tokens, first, targets, draw(st.sampled_from(([4, 5, 6], [7])))))
    return found


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=16)
@given(asked=queries(), limit=st.sampled_from([3, 512]), batch_size=st.none() | st.integers(1, 2))
def test_each_is_that_of_its_text_alone(name: str, asked: list[Query], limit: int, batch_size: int | None) -> None:
    model, counts = MODELS[name], list[int]()
    if not model.config.is_encoder_decoder:
        asked = [query._replace(source=()) for query in asked]
    with pytest.MonkeyPatch.context() as patch:
        for limited in ("_SCORED_TOKENS", "_HELD_LOGITS", "_WORTH_SHARING"):
            patch.setattr(scorer, limited, limit)
        found = Scorer(model, batch_size)(asked, counts.append)
    assert sum(counts) == len(asked)
    for (tokens, first, targets, source), score in zip(asked, found, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([tokens]), torch.tensor([source]) if source else None).logits
        assert logits is not None
        expected = logits[0, first : first + len(targets)].log_softmax(-1)
        chosen = expected.gather(1, torch.tensor(targets)[:, None])[:, 0]
        assert score.logprobs == pytest.approx(chosen.tolist(), rel=1e-4, abs=1e-4)
        assert score.is_greedy == (expected.argmax(-1).tolist() == targets)


@pytest.mark.parametrize("name", ["rotary", "relative both", "encoder"])
def test_damaged_weights_are_said(name: str) -> None:
    model = encoder({"kind": "language_model"})[0] if name == "encoder" else build(WRITERS[name])
    source = [5] if model.config.is_encoder_decoder else []
    model.load_state_dict({name: weight * torch.nan for name, weight in model.state_dict().items()})
    with pytest.raises(UserError, match="NaN"):
        Scorer(model)([Query([7, 8], 0, [8], source)])


def test_nothing_else_scores_tokens() -> None:
    """Log-probabilities of the vocabulary are taken by what generates, what trains, and one that scores."""
    names = {"log_softmax", "logsumexp", "cross_entropy", "token_losses"}
    found = set[str]()
    root = Path(af.__file__).parent
    for room in ("evaluation", "compare", "tasks"):
        for path in (root / room).rglob("*.py"):
            calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
            if any(isinstance(call.func, ast.Attribute) and call.func.attr in names for call in calls):
                found.add(path.relative_to(root).as_posix())
    # The others are of labels, and a divergence of whole distributions.
    others = {
        "compare/tasks/classifier.py",
        "evaluation/perplexity.py",
        "evaluation/logits.py",
        "tasks/tag.py",
    }
    assert found == {"evaluation/scorer.py", *others}
