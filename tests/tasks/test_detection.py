from __future__ import annotations

import re
import shlex
from typing import Any

import pytest

from anyformer.data.examples.columns import Columns, NamedColumns
from anyformer.errors import UserError
from anyformer.tasks.detection import detect_task

MESSAGES = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
FOUND: list[tuple[dict[str, Any], str, str]] = [
    ({"messages": MESSAGES}, "chat", "because of the column 'messages'"),
    ({"conversations": [], "system": "", "tools": ""}, "chat", "because of the column 'conversations'"),
    ({"instruction": "", "input": "", "output": "", "text": ""}, "chat", "'instruction' and 'output'"),
    ({"instruction": "", "context": "", "response": "", "category": ""}, "chat", "'instruction' and 'response'"),
    ({"prompt": "a", "completion": "b"}, "completion", "because of the columns 'prompt' and 'completion'"),
    ({"prompt": [], "completion": []}, "chat", "'prompt' and 'completion'"),
    ({"segments": []}, "completion", "because of the column 'segments'"),
    ({"prompt": "", "chosen": "", "rejected": ""}, "preference", "because of the columns 'chosen' and 'rejected'"),
    ({"chosen": [], "rejected": []}, "preference", "'chosen' and 'rejected'"),
    ({"conversations": [], "chosen": {}, "rejected": {}}, "preference", "'chosen' and 'rejected'"),
    ({"prompt": "", "completion": "", "label": True}, "preference", "'prompt', 'completion' and 'label'"),
    (
        {"prompt": "", "completion": "", "label": "spam"},
        "completion",
        "because of the columns 'prompt' and 'completion'",
    ),
    ({"text": "", "label": 1}, "classify", "because of the columns 'text' and 'label'"),
    ({"sentence": "", "label": "", "idx": 1}, "classify", "'sentence' and 'label'"),
    ({"sentence1": "", "sentence2": "", "label": 1, "idx": 1}, "classify", "'sentence1', 'sentence2' and 'label'"),
    ({"premise": "", "hypothesis": "", "label": 1}, "classify", "'premise', 'hypothesis' and 'label'"),
    ({"question": "", "sentence": "", "label": 1}, "classify", "'question', 'sentence' and 'label'"),
    ({"sentence1": "", "sentence2": "", "score": 1}, "embed", "'sentence1', 'sentence2' and 'score'"),
    ({"text": "", "second": "", "score": 1}, "embed", "'text', 'second' and 'score'"),
    ({"text_a": "", "text_b": "", "label": 1}, "classify", "'text_a', 'text_b' and 'label'"),
    ({"anchor": "", "positive": "", "negative": ""}, "embed", "because of the columns 'anchor' and 'positive'"),
    ({"tokens": [], "ner_tags": []}, "tag", "because of the columns 'tokens' and 'ner_tags'"),
    ({"tokens": [], "pos_tags": [], "id": ""}, "tag", "'tokens' and 'pos_tags'"),
    ({"translation": {"en": "", "de": ""}}, "seq2seq", "because of the column 'translation'"),
    ({"source": "", "target": ""}, "seq2seq", "'source' and 'target'"),
    ({"document": "", "summary": "", "id": ""}, "seq2seq", "'document' and 'summary'"),
    ({"article": "", "highlights": "", "id": ""}, "seq2seq", "'article' and 'highlights'"),
    ({"text": "", "summary": ""}, "seq2seq", "'text' and 'summary'"),
    ({"text": ""}, "text", "because of the column 'text'"),
]


@pytest.mark.parametrize(
    ("sample", "task", "reason"), FOUND, ids=[f"{task}-{' '.join(sample)}" for sample, task, _ in FOUND]
)
def test_the_columns_say_which_task(sample: dict[str, Any], task: str, reason: str):
    reading = detect_task(sample, "The data")
    assert reading.task == task
    assert reading.reason.endswith(reason)


@pytest.mark.parametrize(
    ("sample", "task", "columns", "found"),
    [
        ({"text": "", "label": 1}, "text", Columns(), "text"),
        ({"text": "", "label": 1}, "embed", Columns(), "embed"),
        ({"sentence1": "", "sentence2": "", "score": 1}, "classify", Columns(), "classify"),
        ({"prompt": "", "completion": ""}, "chat", Columns(), "chat"),
        ({"prompt": "", "completion": ""}, "seq2seq", Columns(), "seq2seq"),
        ({"prompt": "", "completion": "", "label": 1}, "completion", Columns(), "completion"),
        ({"body": "", "stars": 1}, None, Columns(text="body"), "classify"),
        ({"a": "", "b": "", "c": ""}, None, Columns(text="a", second="b", label="c"), "classify"),
        ({"q": "", "a": ""}, None, Columns(prompt="q", completion="a"), "completion"),
        ({"q": "", "a": ""}, None, Columns(anchor="q", positive="a"), "embed"),
        ({"in": {"q": ""}, "a": ""}, None, Columns(source="in.q", target="a"), "seq2seq"),
        ({"translation": {"en": "", "de": "", "fr": ""}}, None, Columns(source="de", target="fr"), "seq2seq"),
        ({"words": [], "upos": []}, None, Columns(tags="upos"), "tag"),
        ({"log": []}, None, Columns(messages="log"), "chat"),
        ({"a": "", "b": ""}, "embed", Columns(), "embed"),
        ({"a": "", "b": "", "score": "0.3"}, "embed", Columns(), "embed"),
    ],
)
def test_what_is_asked_for_comes_first(sample: dict[str, Any], task: Any, columns: Columns, found: str):
    reading = detect_task(sample, "a.csv", task, columns)
    assert reading.task == found
    assert set(columns.by_role()) <= set(reading.columns)
    assert reading.reason.startswith("as asked, with" if task else "because of")


def test_a_column_is_one_part_of_an_example():
    row = {"sentence": "a film", "passage": "a long text", "verdict": "good"}
    for text in ("sentence", "passage"):
        reading = detect_task(row, "a.csv, line 2,", None, Columns(text=text, label="verdict"))
        assert reading.columns == {"text": text, "label": "verdict"}
    pair = detect_task(row, "a.csv, line 2,", None, Columns(text="passage", second="sentence", label="verdict"))
    assert pair.columns == {"text": "passage", "second": "sentence", "label": "verdict"}
    pair = detect_task(
        {"premise": "a", "hypothesis": "b", "gold": "c"}, "", None, Columns(text="premise", label="gold")
    )
    assert pair.columns == {"text": "premise", "second": "hypothesis", "label": "gold"}


@pytest.mark.parametrize(
    ("sample", "task", "columns", "message"),
    [
        (
            {"txet": "", "label": ""},
            None,
            Columns(),
            "from which no task follows: did you mean 'text' instead of 'txet'?",
        ),
        ({}, None, Columns(), "has the columns none, from which no task follows: name the task and its columns"),
        (
            {"A sentence that was no header.": "", "5.0": ""},
            None,
            Columns(),
            "if the first line is no header, name .* --header text label",
        ),
        ({"text": ""}, "classify", Columns(), "classify needs .*label.*: say which they are with .*--label NAME"),
        ({"text": ""}, "clasify", Columns(), r"There is no task 'clasify': did you mean 'classify'\?$"),
        ({"review": "", "l": ""}, None, Columns(text="reviw"), "has no column 'reviw': did you mean 'review'"),
        ({"text": "", "label": 1}, "chat", Columns(), "chat needs messages"),
        ({"a": "", "b": ""}, None, Columns(source="a", label="b"), "from which no task follows"),
    ],
)
def test_what_is_missing_is_named(sample: dict[str, Any], task: Any, columns: Columns, message: str):
    with pytest.raises(UserError, match=message):
        detect_task(sample, "a.csv, line 2,", task, columns)


@pytest.mark.parametrize(
    ("sample", "task", "given", "line"),
    [
        ({"id": "7", "review_text": "a good movie", "verdict": "pos"}, None, {}, "text=review_text label=verdict"),
        ({"id": "7", "review": "a good movie", "verdict": 1}, None, {"text": "reveiw"}, "text=review label=verdict"),
        ({"the review": "a good movie", "ok": "yes"}, "classify", {}, "'text=the review' label=ok"),
        ({"log": [{"role": "user"}], "x": 1}, "chat", {}, "messages=log"),
        ({"words": ["a"], "ner": ["O"]}, None, {}, "tokens=words tags=ner"),
        ({"Frage": "Why is that so?", "Antwort": "So."}, "chat", {}, "prompt=Frage completion=Antwort"),
        ({"prompt": "a", "responce": "b"}, None, {}, "prompt=prompt completion=responce"),
        ({"en": "a b", "de": "c"}, "seq2seq", {"target": "ed"}, "source=en target=de"),
        ({"contnt": "a"}, None, {}, "text=contnt"),
        ({"q": "a long question", "a": "b"}, "preference", {"prompt": "q"}, "chosen=a rejected=NAME prompt=q"),
    ],
)
def test_a_missing_column_is_answered_with_the_line_to_write(
    sample: dict[str, Any], task: Any, given: dict[str, str], line: str
):
    with pytest.raises(UserError) as error:
        detect_task(sample, "a.csv, line 2,", task, NamedColumns(**given))
    said = str(error.value)
    assert said.endswith(f"--columns {line}.")
    if "NAME" not in line:  # and it is understood
        words = dict(word.split("=") for word in shlex.split(line))
        asked = re.search(r"--task (\w+)", said)
        said_task: Any = asked and asked[1]
        detect_task(sample, "a.csv", task or said_task, NamedColumns(**words))


def test_the_case_of_column_names_does_not_matter() -> None:
    found = detect_task({"Text": "", "LABEL": "a"}, "a.csv, line 2,")
    assert (found.task, found.columns) == ("classify", {"text": "Text", "label": "LABEL"})
    named = detect_task({"Review": "", "Stars": "a"}, "a.csv", None, Columns(text="review", label="stars"))
    assert named.columns == {"text": "Review", "label": "Stars"}
    both = detect_task({"Text": "", "text": "", "label": "a"}, "a.csv")
    assert both.columns["text"] == "text"
    chat = detect_task({"Messages": MESSAGES, "Tools": []}, "a.csv")
    assert chat.columns == {"messages": "Messages"}
    assert "Tools" in chat.optional["tools"]
