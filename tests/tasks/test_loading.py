from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anyformer.data.disk_cache import Cache
from anyformer.data.examples import duplicates
from anyformer.data.examples.columns import Columns
from anyformer.errors import UserError
from anyformer.tasks import TASKS
from anyformer.tasks.detection import detect_task
from anyformer.tasks.loading import load_examples
from tests.fuzz.mutations import mutate_value


def write(path: Path, content: str) -> str:
    path.write_text(content, encoding="utf-8")
    return str(path)


def lines(path: Path, *rows: Any) -> str:
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def test_a_sentence_says_what_was_found(tmp_path: Path):
    reviews = lines(tmp_path / "a.jsonl", {"text": "x", "label": 1}, {"text": "y", "label": 0})
    found = load_examples([reviews])
    assert (found.task, found.kind, found.labels) == ("classify", "single", ("0", "1"))
    said = "classify, because of the columns 'text' and 'label': 2 examples in a.jsonl; 2 labels: 0, 1."
    assert found.describe() == said
    texts = load_examples([reviews], task="text")
    assert texts.describe() == "text, as asked, with the column 'text': 2 examples in a.jsonl."
    scores = write(tmp_path / "b.csv", "x,y,5.0\nz,w,0\n")
    found = load_examples([scores], header=("sentence1", "sentence2", "score"))
    assert [example.score for example in found.examples] == [1.0, 0.0]
    assert found.describe().endswith("2 examples in b.csv; scores from 0 to 5, divided by 5.")
    found = load_examples([scores], header=("a", "b", "c"), columns=Columns(text="a", second="b", label="c"))
    assert (found.task, found.kind, found.labels) == ("classify", "single", ("0", "5"))


def test_validation_has_the_labels_of_training(tmp_path: Path):
    training = lines(tmp_path / "a.jsonl", {"text": "x", "label": "neg"}, {"text": "y", "label": "pos"})
    found = load_examples([training])
    same = lines(tmp_path / "b.jsonl", {"text": "x", "label": "pos"})
    assert load_examples([same], labels=found.labels).labels == ("neg", "pos")
    other = lines(tmp_path / "c.jsonl", {"text": "x", "label": "meh"})
    with pytest.raises(UserError, match=r"c\.jsonl, line 1, has the label 'meh', .* the 2 that there are: neg, pos"):
        load_examples([other], labels=found.labels)


@pytest.mark.parametrize(
    ("row", "options"),
    [
        ({"text": "x", "label": "a"}, {}),
        ({"text": "x", "label": 1.5}, {}),
        ({"text": "x", "label": ["a"]}, {}),
        ({"text": "x", "label": "a"}, {"task": "embed"}),
        ({"tokens": ["x"], "tags": ["O"]}, {}),
    ],
)
def test_one_label_can_be_compared_with_but_not_learned(tmp_path: Path, row: Any, options: Any):
    path = lines(tmp_path / "a.jsonl", row, row)
    with pytest.raises(UserError, match=r"a\.jsonl: all labels are .*, so there is nothing to learn"):
        load_examples([path], **options)
    found = load_examples([path], training=False, **options)
    assert len(found) == 2
    if found.labels:
        assert len(load_examples([path], labels=found.labels, **options)) == 2


def test_scores_and_pairs_need_no_different_labels(tmp_path: Path):
    path = lines(tmp_path / "a.jsonl", {"anchor": "a", "positive": "b"}, {"anchor": "c", "positive": "b"})
    assert len(load_examples([path])) == 2
    path = lines(tmp_path / "a.jsonl", *[{"sentence1": "a", "sentence2": "b", "score": 0.5}] * 2)
    assert len(load_examples([path])) == 2


def test_several_files_are_one_set_if_they_are_for_one_task(tmp_path: Path):
    one = lines(tmp_path / "a.jsonl", {"messages": [{"role": "assistant", "content": "x"}]})
    two = lines(tmp_path / "b.jsonl", {"instruction": "x", "output": "y"})
    empty = write(tmp_path / "c.jsonl", "")
    found = load_examples([one, two, empty])
    assert [len(example.messages) for example in found.examples] == [1, 2]
    assert found.describe().endswith("2 examples in 3 files.")
    other = lines(tmp_path / "d.jsonl", {"text": "x"})
    with pytest.raises(UserError, match=r"d\.jsonl is for text, .*, and the files before are for chat, because"):
        load_examples([one, other])


def test_names_of_classes_are_in_their_order(tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["z", "m", "a"])}
    )
    rows = datasets.Dataset.from_dict({"text": ["x", "y"], "label": [2, 0]}, features)
    rows.to_parquet(tmp_path / "a.parquet")
    found = load_examples([str(tmp_path / "a.parquet")])
    assert found.labels == ("z", "m", "a")
    assert [example.label for example in found.examples] == ["a", "z"]


def test_answers_judged_one_by_one_are_paired(tmp_path: Path):
    def row(prompt: Any, completion: Any, label: Any) -> dict[str, Any]:
        return {"prompt": prompt, "completion": completion, "label": label}

    judged = [row("p", "a", True), row("q", "b", True), row("p", "c", False), row("p", "d", True)]
    found = load_examples([lines(tmp_path / "a.jsonl", *judged)])
    (pair,) = found.examples
    assert pair.chosen.segments[-1] == ("a", True)
    assert pair.rejected.segments[-1] == ("c", True)
    assert found.describe().endswith("; 2 rows without a counterpart left out.")
    with pytest.raises(UserError, match=r"a\.jsonl has a label for each completion, and no prompt with both"):
        load_examples([lines(tmp_path / "a.jsonl", *judged[:2])])
    with pytest.raises(UserError, match=r"a\.jsonl, line 2, has a label that doesn't say whether"):
        load_examples([lines(tmp_path / "a.jsonl", judged[0], row("p", "c", "good"))])
    assert load_examples([lines(tmp_path / "a.jsonl", *judged)], task="completion").task == "completion"
    asked = [{"role": "user", "content": "q"}]
    answers = [[{"role": "assistant", "content": answer}] for answer in "ab"]
    talks = [
        {"prompt": asked, "completion": answer, "label": label} for answer, label in zip(answers, (1, 0), strict=True)
    ]
    (pair,) = load_examples([lines(tmp_path / "a.jsonl", *talks)]).examples
    assert (pair.chosen.messages, pair.rejected.messages) == (asked + answers[0], asked + answers[1])


def test_faulty_rows_are_refused_or_left_out(tmp_path: Path):
    path = lines(tmp_path / "a.jsonl", {"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": ""}, {"x": 1})
    with pytest.raises(UserError, match=r"a\.jsonl, line 2, has an empty text in its column 'completion'"):
        load_examples([path])
    found = load_examples([path], skip_faulty=True)
    assert len(found) == 1
    assert [re.sub(".*, line", "line", said)[:28] for said in found.skipped] == [
        "line 2, has an empty text in",
        "line 3, has no column 'promp",
    ]
    assert found.describe().endswith("; 2 faulty rows left out.")
    path = lines(tmp_path / "a.jsonl", {"prompt": "a", "completion": ""})
    with pytest.raises(UserError, match=r"There is no example to read: all 1 rows are faulty, .*line 1, has an empty"):
        load_examples([path], skip_faulty=True)


def test_there_must_be_something(tmp_path: Path):
    empty = write(tmp_path / "a.csv", "text,label\n")
    with pytest.raises(UserError, match=r"There is no example to read: .*a\.csv is empty\."):
        load_examples([empty])
    with pytest.raises(UserError, match=r"a\.csv is empty\. It has no rows below its header\.$"):
        load_examples([empty])
    with pytest.raises(UserError, match=r"There is no example to read: .*b\.jsonl is empty\."):
        load_examples([lines(tmp_path / "b.jsonl", {"text": " "}, {"text": None})])
    blank = lines(tmp_path / "c.jsonl", {"text": ""}, {"text": "x"})
    assert len(load_examples([blank])) == 1


def test_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    stdin = io.BytesIO(b'{"source": "a", "target": "b"}\n{"source": "c", "target": ""}\n')
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=stdin))
    with pytest.raises(UserError, match=r"^standard input, line 2, has an empty text in its column 'target'"):
        load_examples(["-"], cache=Cache(tmp_path))


MESSAGES = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize(("one", "zero"), [(1, 0), (True, False)])
def test_a_0_or_1_for_each_label_wants_their_names(tmp_path: Path, one: Any, zero: Any):
    for rows in ([[one, zero, zero], [zero, one, zero]], [[one, zero], [zero, one]]):
        path = lines(tmp_path / "a.jsonl", *({"text": "t", "label": row} for row in rows))
        with pytest.raises(UserError, match=r'^.*a\.jsonl, line 1, .*give the names of the labels .* \["a", "c"\]\.$'):
            load_examples([path])


CALL = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]}
GOOD: list[dict[str, Any]] = [
    {"messages": [*MESSAGES, CALL, {"role": "tool", "content": "1"}], "tools": [{"name": "f"}]},
    {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a", "weight": 1}], "system": "s"},
    {"instruction": "i", "input": "x", "output": "o", "history": [["q", "a"]], "system": "s"},
    {"prompt": "p", "completion": "c"},
    {"prompt": MESSAGES[:2], "completion": MESSAGES[2:]},
    {"segments": [{"text": "a", "label": False}, {"text": "b", "label": True}]},
    {"prompt": "p", "chosen": "good", "rejected": "bad"},
    {"chosen": MESSAGES, "rejected": [*MESSAGES[:2], {"role": "assistant", "content": "b"}]},
    {"instruction": "q", "input": "x", "chosen": "good", "rejected": "bad"},
    {"prompt": "p", "completion": "c", "label": True},
    {"text": "t", "label": "l"},
    {"text": "t", "label": 1.5},
    {"text": "t", "label": ["a", "b"]},
    {"text": "t", "label": [0, 1, 1]},
    {"premise": "p", "hypothesis": "h", "label": 2},
    {"sentence1": "a", "sentence2": "b", "score": "3.5"},
    {"anchor": "a", "positive": "b", "negative": ["c"], "negative_1": "d"},
    {"tokens": ["a", "b"], "ner_tags": ["O", "B-x"]},
    {"tokens": ["a", "b"], "ner_tags": [0, 3]},
    {"translation": {"en": "one", "de": "eins"}},
    {"source": "a", "target": "b"},
    {"text": "t"},
]
ALL = "nothing to learn|There is no example to read|too many for classes|and no prompt with both|first are for"


@settings(max_examples=600, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    row=st.sampled_from(GOOD),
    changes=st.lists(st.integers(0, 3), min_size=1, max_size=4),
    seed=st.integers(0, 2**32),
    asked=st.sampled_from([*TASKS, *[None] * 8]),
    kind=st.sampled_from([None, "single", "multiple", "regression"]),
    skip_faulty=st.booleans(),
)
def test_any_rows_give_examples_or_one_sentence(
    tmp_path: Path, row: Any, changes: list[int], seed: int, asked: Any, kind: Any, skip_faulty: bool
):
    chance, rows = Random(seed), list[Any]()
    for count in changes:
        rows.append(json.loads(json.dumps(row)))
        for _ in range(count):
            rows[-1] = mutate_value(rows[-1], chance)
    path = lines(tmp_path / "a.jsonl", *rows)
    said = None
    try:
        found = load_examples([path], task=asked, kind=kind, skip_faulty=skip_faulty)
    except UserError as error:
        said = str(error)
    if said is not None:
        # What is wrong with one row has its number; what is wrong with all has the file.
        assert re.search(rf"a\.jsonl.*(line \d+\b|{ALL})|{ALL}.*a\.jsonl", said), said
        assert "\n" not in said
    else:
        assert asked in (None, found.task)
        assert 0 < len(found) <= len(rows)
        training = found.examples
        assert len(duplicates(training)) < len(training)
        assert (found.describe() + repr(training)).encode()


def test_every_kind_of_row_is_among_those_that_are_changed():
    found = [detect_task(row, "a.jsonl").schema for row in GOOD]
    asked = [detect_task(row, "a.jsonl", "embed").schema for row in GOOD if row.keys() == {"text", "label"}]
    kinds = {(schema.build, schema.gather) for schema in found + asked}
    assert kinds == {(schema.build, schema.gather) for task in TASKS.values() for schema in task.schemas}
