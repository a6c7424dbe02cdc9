"""Whatever is wrong with data or flags: one sentence with its place, status 2, and no run directory."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

import anyformer as af
from anyformer.cli.main import main
from tests.finetuning import toys
from tests.finetuning.conftest import Tunes, arguments
from tests.training.conftest import metrics

Change = Callable[[list[Any]], object]


@pytest.fixture
def refused(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the command, which must refuse in a sentence and leave no run; returns the sentence."""

    def run(
        task: str,
        *flags: str,
        model: str = "",
        change: Change = lambda rows: None,
        rows: Sequence[toys.Row] | None = None,
        validation: Sequence[toys.Row] = (),
        content: str | None = None,
        suffix: str = ".jsonl",
    ) -> str:
        made = [{**row} for row in (toys.rows(task) if rows is None else rows)]
        change(made)
        data = toys.write(tmp_path / f"data{suffix}", made)
        if content is not None:
            data.write_text(content)
        argv = arguments(models / (model or toys.TASKS[task]), data, "--steps=2", *flags)
        if validation:
            argv.append(f"--validation={toys.write(tmp_path / 'validation.jsonl', validation)}")
        status = main(argv)
        said = capsys.readouterr().err
        assert status == 2, said
        assert said.startswith("anyformer: "), said
        assert said.count("\n") == 1, said
        assert said.endswith((".\n", "?\n")), said
        assert not list(tmp_path.glob("runs/*"))
        return said

    return run


def at(row: int, **values: Any) -> Change:
    """Change some columns of a row; of its last message, where that is what they are of."""
    return lambda rows: rows[row].update(values)


def message(row: int, **values: str) -> Change:
    def change(rows: list[Any]) -> None:
        question, answer = rows[row]["messages"]
        rows[row]["messages"] = [question, {**answer, **values}]

    return change


def everywhere(**values: Callable[[int], Any]) -> Change:
    return lambda rows: [row.update({name: of(k) for name, of in values.items()}) for k, row in enumerate(rows)]


def both(*changes: Change) -> Change:
    return lambda rows: [change(rows) for change in changes]


ROWS: dict[str, tuple[str, Change, str]] = {
    "missing column": ("classify", lambda rows: rows[4].pop("label"), r"data.jsonl, line 5, has no column 'label'"),
    "empty answer": ("chat", message(3, content=""), r"data.jsonl, line 4, has an empty answer in message 2"),
    "empty completion": ("completion", at(3, completion=""), r"data.jsonl, line 4, has an empty text in its column"),
    "empty source": ("seq2seq", at(3, source=" "), r"data.jsonl, line 4, has an empty text in its column 'source'"),
    "unknown role": ("chat", message(3, role="asistant"), r"data.jsonl, line 4, .*'asistant': did you mean 'assi"),
    "unequal lists": ("tag", at(6, ner_tags=["O"]), r"data.jsonl, line 7, has \d+ words .* and 1 tags"),
    "one class": ("classify", everywhere(label=lambda k: "yes"), r"data.jsonl: all labels are 'yes'"),
    "one class left": (
        "classify",
        both(at(0, label="yes"), at(1, label="no"), lambda rows: rows.__delitem__(slice(2, None))),
        r"data.jsonl: all labels are '(yes|no)'",
    ),
    "NaN score": ("embed", at(2, score=float("nan")), r"data.jsonl, line 3, has nan in its column 'score'"),
    "NaN in words": ("embed", at(2, score="nan"), r"data.jsonl, line 3, has nan in its column 'score'"),
    "score of no range": ("embed", at(2, score=7.0), r"data.jsonl, line 3, has a score of a range that isn't known"),
    "NaN label": (
        "classify",
        both(everywhere(label=lambda k: k + 0.5), at(5, label=float("nan"))),
        r"data.jsonl, line 6, has nan as its label",
    ),
    "nothing learned": (
        "chat",
        everywhere(messages=lambda k: [{"role": "user", "content": f"the cat {k} " * 90}, _ANSWER]),
        r"No token is left to be learned: .* longer than the context of 48 tokens",
    ),
    "no pair": (
        "preference",
        everywhere(prompt=lambda k: f"{k} the" * 60),
        r"No pair is left to be learned: the context of 48 tokens cuts off an answer of each",
    ),
    "no words": (
        "tag",
        lambda rows: [row.update(tokens=["" for _ in row["tokens"]]) for row in rows],
        r"No word is left to be tagged, as in .*data.jsonl, line 1",
    ),
}
_ANSWER = {"role": "assistant", "content": "yes"}


@pytest.mark.parametrize("name", ROWS)
def test_faulty_rows(name: str, refused: Callable[..., str]) -> None:
    task, change, says = ROWS[name]
    assert re.search(says, refused(task, change=change))


@pytest.mark.parametrize("columns", [("question", "answer"), ("input", "output")])
@pytest.mark.parametrize(
    ("model", "labels", "says"),
    [
        ("decoder", False, "--task completion --columns prompt={} completion={}."),
        ("both", False, "--task seq2seq --columns source={} target={}."),
        ("encoder", False, "--task classify --columns text={} label={}."),
        ("decoder", True, "--task classify --columns text={} label={}."),
    ],
)
def test_the_task_that_is_suggested_suits_the_model(
    model: str, columns: tuple[str, str], labels: bool, says: str, refused: Callable[..., str]
) -> None:
    answers = ("yes", "no") if labels else [f"number {k}" for k in range(12)]
    rows = [{columns[0]: f"which number comes before {k}", columns[1]: answers[k % len(answers)]} for k in range(12)]
    said = refused("classify", model=model, rows=rows)
    assert says.format(*columns) in said


@pytest.mark.parametrize(
    ("content", "suffix", "says"),
    [
        ("", ".jsonl", "There is no example to read: .*data.jsonl is empty"),
        ("\n\n", ".jsonl", "There is no example to read: .*data.jsonl is empty"),
        ("text,label\n", ".csv", "There is no example to read: .*data.csv is empty"),
        ("{\n", ".jsonl", "data.jsonl, line 1, is not JSON"),
        (
            '{"foo": 1, "bar": 2}\n',
            ".jsonl",
            r"from which no task follows: .* --task classify --columns text=NAME label=foo",
        ),
        ("0.5,A long text that is no name\n1,b", ".csv", "from which no task follows: if the first line is no header"),
    ],
)
def test_faulty_files(content: str, suffix: str, says: str, refused: Callable[..., str]) -> None:
    assert re.search(says, refused("classify", content=content, suffix=suffix))


@pytest.mark.parametrize(
    ("task", "row", "says"),
    [
        (
            "classify",
            {"text": "a cat", "label": "maybe"},
            "validation.jsonl, line 1, has the label 'maybe', which isn't among the 2",
        ),
        (
            "tag",
            {"tokens": ["a"], "ner_tags": ["B-x"]},
            "validation.jsonl, line 1, has the tag 'B-x', which isn't among the 3",
        ),
        ("tag", {"tokens": [""], "ner_tags": ["O"]}, "No word is left to be tagged, as in .*validation.jsonl, line 1"),
        (
            "classify",
            {"source": "a", "target": "b"},
            "validation.jsonl, line 1, has the columns 'source', 'target', and classify needs",
        ),
        ("chat", {"messages": [{"role": "user", "content": "a"}, {"role": "assistant"}]}, "validation.jsonl, line 1, "),
    ],
)
def test_faulty_validation(task: str, row: Any, says: str, refused: Callable[..., str]) -> None:
    assert re.search(says, refused(task, validation=[row]))


def test_an_unknown_class_of_vectors(refused: Callable[..., str]) -> None:
    rows = [{"text": "a cat", "label": "maybe"}]
    said = refused("embed", "--task=embed", rows=toys.rows("classify"), validation=rows)
    assert re.search("validation.jsonl, line 1, has the label 'maybe'", said)


FLAGS: Iterable[tuple[str, list[str], str]] = [
    ("classify", ["--labels", "no", "maybe"], "line 3, has the label 'yes', which isn't among the 2"),
    ("chat", ["--lora=0"], "rank of an adapter is a whole number, at least 1"),
    ("chat", ["--lora=10000000000"], "--lora 10000000000 is no low rank: the model is 16 wide"),
    ("chat", ["--lora=4", "--targets", "q_porj"], "No layer of this model is called 'q_porj' .*'q_proj'"),
    ("chat", ["--targets", "q_proj"], "--targets is for adapters: add --lora 16"),
    ("chat", ["--quantize=int4"], "--quantize is for adapters: add --lora 16"),
    ("chat", ["--lora-alpha=8"], "--lora-alpha is for adapters: add --lora 16"),
    ("chat", ["--lora=4", "--lora-dropout=1"], "dropout of an adapter is at least 0 and below 1"),
    ("chat", ["--epochs=2"], "A run has one length: give --epochs or --steps"),
    ("chat", ["--context=4000"], "--context 4000 is longer than the 48 tokens that the model can read"),
    ("classify", ["--context=2"], "A context of 2 tokens has no room for a text"),
    ("chat", ["--loss=cosine"], "--loss is for embed, and the task is chat"),
    ("preference", ["--packing"], "--packing is for text, chat and completion, and the task is preference"),
    ("classify", ["--beta=0.5"], "--beta is for preference, and the task is classify"),
    ("classify", ["--train-on=all"], "--train-on is for chat, completion and preference, and the task is classify"),
    ("embed", ["--loss=triplet"], "--loss triplet is not for pairs with a score: leave it out, or take cosine"),
    ("classify", ["--columns", "txt=text"], "there is no role 'txt'.*'text'"),
    ("classify", ["--columns", "text"], "write ROLE=COLUMN"),
    ("classify", ["--columns", "text=text", "text=label"], "a role is named twice"),
    ("classify", ["--columns", "text=revew"], "data.jsonl, line 1, has no column 'revew'"),
    ("classify", ["--task=tag"], r"tag needs tokens .* with --columns tokens=NAME tags=label"),
    ("classify", ["--task=clasify"], "--task clasify is unknown .*'classify'"),
]


@pytest.mark.parametrize(("task", "flags", "says"), FLAGS)
def test_flags_that_do_not_fit(task: str, flags: list[str], says: str, refused: Callable[..., str]) -> None:
    assert re.search(says, refused(task, *flags))


@pytest.mark.parametrize(
    ("task", "model", "says"),
    [
        ("chat", "encoder", "The task chat is for a decoder, and this model is an encoder"),
        ("preference", "both", "The task preference is for a decoder, and this model reads a source first"),
        ("seq2seq", "decoder", "Sources and targets are for an encoder-decoder"),
        ("chat", "nowhere/at/all", "There is no directory .*nowhere/at/all"),
    ],
)
def test_models_that_do_not_fit(task: str, model: str, says: str, refused: Callable[..., str]) -> None:
    assert re.search(says, refused(task, model=model))


def test_a_model_without_a_tokenizer(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, _ = toys.decoder()
    af.save(model, tmp_path / "bare")
    data = toys.write(tmp_path / "chat.jsonl", toys.rows("chat"))
    assert main(arguments(tmp_path / "bare", data)) == 2
    assert "bare has no tokenizer" in capsys.readouterr().err
    assert not list(tmp_path.glob("runs/*"))


def test_the_preview_replaces_no_file_of_somebody(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, page = toys.write(tmp_path / "chat.jsonl", toys.rows("chat")), tmp_path / "mine.html"
    page.write_text("<p>mine")
    assert main(arguments(models / "decoder", data, f"--preview={page}")) == 2
    assert "mine.html is there already" in capsys.readouterr().err
    assert page.read_text() == "<p>mine"
    page.unlink()
    for _ in range(2):
        assert main(arguments(models / "decoder", data, f"--preview={page}")) == 0
    assert not (tmp_path / "runs").exists()


def test_a_long_row_is_cut_and_counted(tunes: Tunes, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [*toys.rows("chat")]
    question = {"role": "user", "content": "the cat " * 90}
    rows[3] = {"messages": [question, {"role": "assistant", "content": "yes"}]}
    tunes("chat", "--steps=2", rows=rows)
    said = " ".join(capsys.readouterr().out.split())
    assert re.search(r"cut 1 row longer than 48 tokens; \d+ tokens left out, 3 of them to be learned", said)
    assert re.search(r"unlearned 1 row without a token to be learned, the first .*chat.jsonl, line 4", said)


def test_sources_are_not_to_be_learned(tunes: Tunes, capsys: pytest.CaptureFixture[str]) -> None:
    tunes("seq2seq", "--steps=2")
    assert "unlearned" not in capsys.readouterr().out


def test_minus_a_hundred_is_a_number_like_others(tunes: Tunes) -> None:
    rows = [{"text": row["text"], "label": -100.0 + k % 3 / 2} for k, row in enumerate(toys.rows("classify"))]
    (before,) = [line for line in metrics(tunes("classify", "--steps=1", rows=rows)) if line.get("validation_loss")][:1]
    assert before["validation_loss"] > 90**2  # the mean over all of them


def test_validation_may_have_one_number(tunes: Tunes, tmp_path: Path) -> None:
    rows = [{"text": row["text"], "label": k + 0.5} for k, row in enumerate(toys.rows("classify"))]
    validation = toys.write(tmp_path / "one.jsonl", [{"text": "a cat", "label": 1.5}])
    tunes("classify", "--steps=1", f"--validation={validation}", rows=rows)
