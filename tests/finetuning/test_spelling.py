"""Labels that are another one, misspelt, are noticed before training on them."""

import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyformer.data.examples import ClassifyExample, Where
from anyformer.finetuning.check import Check
from anyformer.finetuning.spelling import look_alikes
from anyformer.tasks import TASKS
from anyformer.tasks.task import Encoded, EncodedText
from tests.data.examples import templates
from tests.data.examples.templates import tokenizer_of

LETTERS = "abcdefgh"


@pytest.mark.parametrize(
    ("counts", "pairs"),
    [
        ({"good": 40, "goood": 1, "bad": 30, "Bad": 12}, [("Bad", "bad"), ("goood", "good")]),
        ({"good": 40, "gud": 1, "mood": 39}, []),
        ({"very good": 9, "very_good": 3, "good ": 1, "good": 1}, [("very_good", "very good"), ("good", "good ")]),
        ({"version 1": 90, "version 2": 1, "version 11": 1}, []),
        (
            {"B-person": 90, "I-person": 1, "B-perso": 1, "I-Person": 1},
            [("B-perso", "B-person"), ("I-Person", "I-person")],
        ),
        ({"cat": 90, "bat": 1}, []),
        ({"positive": 300, "postive": 6, "negative": 99, "negativ": 2}, [("postive", "positive")]),
        ({}, []),
    ],
)
def test_which_labels_are_alike(counts: dict[str, int], pairs: list[tuple[str, str]]):
    assert look_alikes(counts) == pairs


@given(
    label=st.text(LETTERS, min_size=4, max_size=12),
    place=st.integers(0, 11),
    letter=st.sampled_from(LETTERS),
    change=st.sampled_from(["insert", "delete", "replace", "swap"]),
)
def test_a_slip_of_a_letter_is_found_and_nothing_else(label: str, place: int, letter: str, change: str):
    at = place % len(label)
    slips = {
        "insert": label[:at] + letter + label[at:],
        "delete": label[:at] + label[at + 1 :],
        "replace": label[:at] + letter + label[at + 1 :],
        "swap": label[:at] + label[at : at + 2][::-1] + label[at + 2 :],
    }
    slip = slips[change]
    if slip != label and len(slip) >= 4:
        assert look_alikes(Counter({label: 60, slip: 1, "0" * 12: 30})) == [(slip, label)]


def test_many_labels_take_time_in_proportion():
    counts = {f"{number:020x}": 1 for number in range(10_000)}
    began = time.process_time()
    look_alikes(counts)
    assert time.process_time() - began < 5


def test_the_check_warns_before_training():
    check = Check(TASKS["classify"], tokenizer_of(templates.SMOLLM2, "<|im_end|>"))
    for number, label in enumerate(["good"] * 9 + ["bad"] * 8 + ["goood", "Bad"]):
        example = ClassifyExample(where=Where(Path("a.csv"), number), text="x", label=label)
        check.add(Encoded(example=example, texts=[EncodedText(tokens=[1])], labels=[label]))
    text = "'goood' (1) is nearly 'good' (9), 'Bad' (1) is nearly 'bad' (8): each counts as a label of its own"
    assert ("spelling", text) in check.warnings()
