"""All tasks by models of every family: near chance without training, near 1 with it, and always the same."""

import math
from statistics import fmean

import pytest
import torch

from anyformer.compare.tasks import LabeledTexts, TaskResult, classifier, make_tasks, run_tasks
from anyformer.compare.tasks.choices import ChoiceTask
from anyformer.compare.tasks.classifier import Classification
from tests.compare.tasks.corpora import HELD_OUT, OBJECTIVES, TRAIN, Candidate, tokenizer, trained, untrained
from tests.compare.tasks.drawn import language

NAMES = ["minimal_pairs", "cloze", "classifier"]


def _run(candidate: Candidate, kind: type = object) -> dict[str, TaskResult]:
    tasks = make_tasks(TRAIN, HELD_OUT, candidate.tokenizer, max_tokens=24)
    return run_tasks(candidate.model, candidate.tokenizer, [task for task in tasks if isinstance(task, kind)])


@pytest.mark.parametrize("preset", ["gpt2", *(pytest.param(name, marks=pytest.mark.slow) for name in OBJECTIVES)])
def test_every_family_does_every_task(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    candidate = untrained(preset)
    monkeypatch.setattr(classifier, "_STEPS", 4)
    before = {name: weight.clone() for name, weight in candidate.model.state_dict().items()}
    found = _run(candidate)
    assert list(found) == NAMES
    for result in found.values():
        assert result.reason is None
        assert len(result.items) >= 24
        assert all(0 <= item <= 1 for item in result.items)
        assert all(len(items) == len(result.items) for items in result.controls.values())
    assert all(torch.equal(weight, before[name]) for name, weight in candidate.model.state_dict().items())
    assert not candidate.model.training
    # What was never trained on the text is as good as fresh weights, and knows nothing of it.
    assert set(found["classifier"].controls) == {"random", "bag of words"}
    cloze = found["cloze"]
    assert abs(fmean(cloze.items) - 0.25) < 4 * math.sqrt(0.25 * 0.75 / len(cloze.items))
    assert set(found["minimal_pairs"].parts) == {"word_order", "agreement"}


@pytest.mark.parametrize("preset", ["gpt2", *(pytest.param(name, marks=pytest.mark.slow) for name in OBJECTIVES)])
def test_who_knows_the_text_is_right(preset: str) -> None:
    found = _run(trained(preset), ChoiceTask)
    assert fmean(found["minimal_pairs"].items) > 0.9
    assert fmean(found["cloze"].items) > 0.8


@pytest.mark.slow
def test_results_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    candidate = untrained("gpt2")
    monkeypatch.setattr(classifier, "_STEPS", 4)
    assert _run(candidate) == _run(candidate)


def test_items_are_those_of_the_seed() -> None:
    first, again, other = (make_tasks(TRAIN, HELD_OUT, tokenizer("causal"), seed, max_tokens=24) for seed in (3, 3, 4))
    assert first == again
    assert all(one != another for one, another in zip(first, other, strict=True))


def test_training_and_items_are_apart() -> None:
    text = language(0, 1500)
    train, held_out = [text[:60_000]], [text[60_000:]]
    pairs, cloze, classes = make_tasks(train, held_out, tokenizer("causal"))
    assert isinstance(pairs, ChoiceTask)
    assert isinstance(cloze, ChoiceTask)
    assert isinstance(classes, Classification)
    assert not any(pair.texts[0] in train[0] for pair in pairs.items if pair.kind == "word_order")
    assert not any(blank.texts[0] in train[0] for blank in cloze.items)
    assert not {each.ids for each in classes.training} & {each.ids for each in classes.test}


@pytest.mark.slow
def test_labels_of_the_words_of_a_text_are_learned() -> None:
    """A question that a bag of words answers, and so does everybody who is trained on it."""
    lines = [line for text in TRAIN for line in text.splitlines()]
    marked = [(f"{line} {'ba be bo' if label else 'ta te to'}", label) for line in lines for label in (0, 1)]
    labeled = LabeledTexts(marked[:1000], marked[1000:1100], ("first", "last"))
    candidate = untrained("llama")
    task = Classification.make(labeled, candidate.tokenizer, 40, seed=0)
    result = task.run(candidate.model, candidate.tokenizer)
    assert result.chance == 0.5
    assert len(result.items) == 100
    assert fmean(result.items) > 0.9
    assert sum(result.controls["random"]) > 90


def test_a_text_that_is_too_short_leaves_tasks_out() -> None:
    candidate = untrained("gpt2")
    tasks = make_tasks(["ba be bo. "], ["ba be"], candidate.tokenizer)
    found = run_tasks(candidate.model, candidate.tokenizer, tasks)
    assert list(found) == NAMES
    for result in found.values():
        assert result.items == ()
        assert result.reason is not None
        assert result.reason.endswith(".")
