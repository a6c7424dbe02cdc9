"""What is counted before training, and the runs that are stopped."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyformer.data.examples import (
    ChatExample,
    ClassifyExample,
    CompletionExample,
    Example,
    TagExample,
    TextExample,
    duplicates,
    overlap,
)
from anyformer.data.examples.chat import encode_chat_rows
from anyformer.data.examples.encoded import EncodedRow
from anyformer.data.formats import Location
from anyformer.errors import UserError
from anyformer.families import preset
from anyformer.finetuning.check import Check, look_alikes
from anyformer.tasks import TASKS
from anyformer.tasks.task import Encoded, EncodedText, Encoding
from anyformer.tokenizer import Tokenizer
from tests.data.examples import templates
from tests.data.examples.templates import tokenizer_of

SMOLLM2 = tokenizer_of(templates.SMOLLM2, "<|im_end|>")


def where(number: int) -> Location:
    return Location(Path("chats.jsonl"), number)


def chat(number: int, question: str, answer: str | None, system: str | None = None) -> ChatExample:
    messages = [{"role": "user", "content": question}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    if answer is not None:
        messages.append({"role": "assistant", "content": answer})
    learned = [message["role"] == "assistant" for message in messages]
    return ChatExample(location=where(number), messages=messages, loss_mask=learned)


def count(check: Check, tokenizer: Tokenizer, examples: list[ChatExample]) -> Check:
    """As fine-tuning does."""
    assert check.task.encode is not None
    encoding = Encoding(tokenizer=tokenizer, model=preset("llama-nano"), context=check.context or 10_000)
    for each in check.task.encode(encoding, examples):
        check.add(each)
    return check


def encoded(example: Example, *rows: Sequence[int], labels: Sequence[str | float] = ()) -> Encoded:
    return Encoded(example=example, texts=[EncodedText(tokens=row) for row in rows], labels=labels)


def test_what_there_is_and_what_is_cut_off_is_said():
    context = 60
    examples = [
        chat(1, "Speak?", "Yes.", system="Be kind."),
        chat(2, "Speak?", "No.", system="Be kind."),
        chat(3, "Speak?", "Yes.", system="Be kind."),
        chat(4, "Speak?", "a b c d e f g h i j k l m n o p q r s t u v w x y z", system="Be kind."),
        chat(5, "a b c d e f g h i j k l m n o p q r s t u v w x y z", "Yes.", system="Be kind."),
        chat(6, "Speak?", None, system="Be kind."),
        chat(7, "Speak?", "Yes."),
    ]
    check = count(Check(TASKS["chat"], SMOLLM2, context=context), SMOLLM2, examples)
    rows = [encode_chat_rows(SMOLLM2, example)[0] for example in examples]
    assert check.examples == check.rows == 7
    assert check.tokens == sum(min(context, len(row.tokens)) for row in rows)
    assert check.learned == sum(sum(row.loss_mask[:context]) for row in rows)
    # Lines 4 and 5, and the last, whose system prompt leaves no room.
    lost = [row for row in rows if len(row.tokens) > context]
    assert check.cut["rows"] == len(lost) == 3
    assert check.cut["tokens"] == sum(len(row.tokens) - context for row in lost)
    assert check.cut["learned"] == sum(sum(row.loss_mask[context:]) for row in lost)
    assert (check.cut["ends"], check.cut["all"]) == (3, 2)
    assert check.unlearned == 3
    lines = "\n".join(check.lines())
    assert f"examples   7\ntokens     {check.tokens}, {check.learned} of them learned (" in lines
    assert "cut        3 rows longer than 60 tokens; " in lines
    assert "3 rows without the end of the answer; 2 without any of it" in lines
    assert "unlearned  3 rows without a token to be learned, the first chats.jsonl, line 5" in lines
    assert "template   adds a system prompt to 1 conversation: 'You are a helpful AI assistant named SmolLM" in lines
    check.problems()


def test_examples_that_are_there_twice_are_said():
    training = [chat(1, "a", "b"), chat(2, "c", "d"), chat(3, "a", "b")]
    check = count(Check(TASKS["chat"], SMOLLM2), SMOLLM2, training)
    check.duplicates = duplicates(training)
    assert "duplicates 1 example there already, the first chats.jsonl, line 3 (as chats.jsonl, line 1)" in check.lines()
    held_out = [chat(9, "c", "d"), chat(8, "c", "e")]
    check = count(Check(TASKS["chat"], SMOLLM2), SMOLLM2, held_out)
    check.overlap = overlap(training, held_out)
    assert "overlap    1 example for training as well, the first chats.jsonl, line 9 (as chats.jsonl, line 2)" in (
        check.lines()
    )


def test_runs_that_teach_nothing_are_stopped():
    with pytest.raises(UserError, match="There is no example"):
        Check(TASKS["chat"], SMOLLM2).problems()
    with pytest.raises(UserError, match=r"No token is to be learned, as in chats.jsonl, line 3: there is no answer"):
        count(Check(TASKS["chat"], SMOLLM2), SMOLLM2, [chat(3, "a", None)]).problems()
    with pytest.raises(UserError, match="the prompts alone are longer than the context of 10 tokens"):
        count(Check(TASKS["chat"], SMOLLM2, context=10), SMOLLM2, [chat(3, "a", "b")]).problems()


def test_a_template_that_generation_shows_otherwise_stops_the_run():
    template = (
        "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}</s>"
        "{% endgeneration %}{% else %}{{ m.content }}</s>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>[INST]{% endif %}"
    )
    tokenizer = tokenizer_of(template, "</s>")
    check = count(Check(TASKS["chat"], tokenizer), tokenizer, [chat(3, "a", "b")])
    with pytest.raises(UserError, match=r"^chats.jsonl, line 3: the chat template writes 'b</s>' before the answer"):
        check.problems()


@pytest.mark.parametrize(("stops", "warned"), [((), False), ((2,), True), ((2, 4), False)])
def test_answers_that_generation_would_not_end_are_said(stops: tuple[int, ...], warned: bool):
    assert SMOLLM2.id("<|im_end|>") == 4
    check = count(Check(TASKS["chat"], SMOLLM2, stops=stops), SMOLLM2, [chat(1, "a", "b"), chat(2, "a", "c")])
    sentence = "ends       2 answers end with '<|im_end|>', at which generation doesn't stop: it does at '</s>'"
    assert (sentence in check.lines()) == warned
    # What was cut ends somewhere, which is said elsewhere.
    cut = Check(TASKS["chat"], SMOLLM2, context=30, stops=(4,))
    count(cut, SMOLLM2, [chat(1, "a", "b c d e f g h i j k l", system="b")])
    assert cut.cut["ends"] == 1
    assert not any(line.startswith("ends") for line in cut.lines())


def test_a_template_with_the_date_is_said():
    dated = tokenizer_of("{{ strftime_now('%Y') }}" + templates.CHATML, "<|im_end|>")
    for tokenizer, said in ((dated, True), (SMOLLM2, False)):
        lines = Check(TASKS["chat"], tokenizer).lines()
        assert any(line.startswith("date       the chat template writes today's") for line in lines) == said


def test_rows_without_learned_tokens_are_no_problem_where_none_are_expected():
    check = Check(TASKS["seq2seq"], SMOLLM2)
    check.add(encoded(TextExample(location=where(1), text="a"), [30, 31], [32]))
    check.problems()
    assert check.lines() == ["examples   1 in 2 rows", "tokens     3"]


def test_a_doubled_beginning_and_merged_borders_are_said():
    check = Check(TASKS["completion"], SMOLLM2)
    example = CompletionExample(location=where(1), segments=(("<s>a", False), ("b", True)))
    row = EncodedRow([1, 1, 30, 31], [False, False, False, True], mismatches=1)
    check.add(Encoded(example=example, texts=[EncodedText.of(row)]))
    lines = check.lines()
    assert "doubled    1 row with '<s>' twice at the beginning" in lines
    assert "borders    at 1 the tokenizer would merge prompt and answer: each is encoded alone" in lines


@pytest.mark.parametrize(
    ("task", "labels", "line"),
    [
        ("classify", ["a", "b", "a"], "labels     2: a 2, b 1"),
        ("classify", [0.5, 1.0], "labels     numbers from 0.5 to 1, 0.75 on average"),
        ("classify", ["a", "a"], "labels     1: a 2"),
        ("tag", ["O", "B-x"], "labels     2: O 1, B-x 1"),
        ("classify", list("abcdefghij"), "labels     10: a 1, b 1, c 1, d 1, e 1, f 1, g 1, h 1, and 2 more"),
    ],
)
def test_labels_are_counted(task: Any, labels: list[str | float], line: str):
    check = Check(TASKS[task], SMOLLM2)
    for number, label in enumerate(labels):
        example: Example = (
            TagExample(location=where(number), words=["a"], tags=[str(label)])
            if task == "tag"
            else ClassifyExample(location=where(number), text="a", label=label)
        )
        check.add(encoded(example, [30, 31], labels=[label]))
    assert line in check.lines()
    assert f"tokens     {2 * len(labels)}" in check.lines()
    check.problems()


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
        example = ClassifyExample(location=Location(Path("a.csv"), number), text="x", label=label)
        check.add(Encoded(example=example, texts=[EncodedText(tokens=[1])], labels=[label]))
    text = "'goood' (1) is nearly 'good' (9), 'Bad' (1) is nearly 'bad' (8): each counts as a label of its own"
    assert ("spelling", text) in check.warnings()
