"""What a run says at its end: in the terminal, in evaluation.json, on its page."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import anyformer as af
from anyformer.cli import finetune
from anyformer.data.formats import Location
from anyformer.evaluation import Evaluation
from anyformer.evaluation.label_metrics import Piece, TaggedSpans
from anyformer.evaluation.metrics import mean, share
from anyformer.evaluation.perplexity import losses
from anyformer.evaluation.result import EvaluatedRow
from anyformer.finetuning import measure as measuring
from anyformer.finetuning import report
from anyformer.finetuning.measure import Figure, Measurement, measure
from anyformer.finetuning.recipe import sample_answer
from anyformer.pages.formatting import gained, general
from anyformer.runs.report.gains import gains
from anyformer.schema import make, to_plain
from anyformer.tasks.evaluate import evaluate
from anyformer.training.schedule import TimeBudget
from anyformer.training.trainer import Trainer
from tests.evaluation.models import decoder, encoder
from tests.finetuning import toys
from tests.finetuning.conftest import Tunes

HOSTILE = "w**f | <b>"
"""A label that is to be read as it is."""


def classified(count: int = 60, seed: int = 0) -> list[toys.Row]:
    """Toys for a classifier with such a label."""
    return [
        {**row, "label": HOSTILE if row["label"] == "yes" else "miaow"} for row in toys.rows("classify", count, seed)
    ]


def evaluation(run: Path) -> dict[str, Any]:
    """What evaluation.json says."""
    return json.loads((run / "evaluation.json").read_text(encoding="utf-8"))


def _said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_a_tagger_says_how_well_it_finds_each_class(
    tunes: Tunes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rare = {"tokens": ["was", "it"], "ner_tags": ["B-rare", "I-rare"]}
    held = toys.write(tmp_path / "held.jsonl", [*toys.rows("tag", 20, seed=7), rare, rare])
    run = tunes("tag", "--steps=40", f"--validation={held}", rows=[*toys.rows("tag"), rare])
    said = capsys.readouterr().out
    scores = {row.label: row for row in evaluate(*af.load(run), held, "tag").classes}
    assert (scores["animal"].f1 > 0.9, scores["rare"].f1) == (True, 0)
    shown = re.findall(r"^(?:F1 of)? +(\w+) +(\d\.\d+); (\d+) held out$", said, re.MULTILINE)
    assert shown == [
        (name, f"{scores[name].f1:.3f}", f"{scores[name].support}") for name in ("animal", "thing", "rare")
    ]
    sentence = "Never right: rare (0 of 2). They need more examples, or more epochs."
    assert sentence in said
    section = gains(run)
    assert section is not None
    assert section["notes"] == [sentence]
    assert [row[0] for row in section["classes"]] == ["animal", "rare", "thing"]


def test_metrics_before_and_after_are_those_of_evaluate(
    tunes: Tunes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = toys.write(tmp_path / "held.jsonl", classified(20, seed=7))
    base = str(tunes("classify", "--steps=1", rows=classified(), name="base") / "model")
    _said(capsys)
    run = tunes("classify", "--steps=20", f"--validation={held}", rows=classified(), model=base)
    said, found = _said(capsys), evaluation(run)
    after = evaluate(*af.load(run), held, "classify")
    accuracy = found["metrics"]["accuracy"]
    assert accuracy["after"] == pytest.approx(after["accuracy"])
    assert accuracy["interval"] == pytest.approx(list(after.intervals()["accuracy"]))
    before = json.loads((run / "before.json").read_text())
    assert found["examples"] == len(before["predictions"]) == len(after.rows) == 20
    right = [said == row.reference for said, row in zip(before["predictions"], after.rows, strict=True)]
    assert accuracy["before"] == pytest.approx(np.mean(right))
    paired = mean(right).difference(mean([bool(row.right) for row in after.rows]))
    assert accuracy["difference"] == pytest.approx(list(paired), abs=1e-5)
    assert accuracy["distinguishable"] is None
    few = "No verdict: 20 examples can't show what was gained, it takes 30 or more."
    assert found["notes"][-1] == few
    predicted = {row.prediction for row in after.rows}
    assert len(found["notes"]) == 1 + (len(predicted) == 1)
    assert few in said
    line = next(line for line in said if line.startswith("accuracy"))
    assert line == f"{'accuracy':<10} {gained(accuracy)}; 20 examples held out"
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    scores = [each["scores"]["accuracy"] for each in logged if "scores" in each]
    assert scores == [accuracy["before"], accuracy["after"]]

    assert [each["label"] for each in found["classes"]] == ["miaow", HOSTILE]
    labels = [row["label"] for row in classified()]
    assert [each["training"] for each in found["classes"]] == [labels.count("miaow"), labels.count(HOSTILE)]
    assert after.confusion is not None
    assert found["confusion"]["matrix"] == after.confusion.matrix.tolist()
    for each in found["answers"]:
        assert each["before"] != each["after"]
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Before and after" in page
    assert "w**f | &lt;b&gt;" in page
    assert "<b>w" not in page
    assert "| <b>" not in page


@pytest.mark.parametrize("task", ["classify", "tag"])
def test_a_new_head_has_no_before(task: str, tunes: Tunes, capsys: pytest.CaptureFixture[str]) -> None:
    """What a head says that was just drawn is noise."""
    run = tunes(task, "--steps=40", "--lora=2")
    said, found = _said(capsys), evaluation(run)
    assert not any(line.startswith("before") or " -> " in line for line in said)
    assert all(each["before"] is each["difference"] is None for each in found["metrics"].values())
    assert not (run / "before.json").exists()
    page = (run / "report.html").read_text(encoding="utf-8")
    card = (run / "model" / "README.md").read_text(encoding="utf-8")
    assert "After training" in page
    for text in (page.partition("<main")[2], card):
        assert not re.search(r"(?i)\bbefore\b", re.sub(r"(?s)<script.*?</script>", "", text))
    # A curve has more points than two.
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [each["step"] for each in logged if "validation_loss" in each] == [0, 10, 20, 30, 40]


def test_every_kind_of_entity_is_counted(tunes: Tunes, tmp_path: Path) -> None:
    rows = toys.rows("tag")
    held = toys.write(tmp_path / "held.jsonl", [row for row in rows if "B-thing" not in row["ner_tags"]][:8])
    run = tunes("tag", "--steps=1", f"--validation={held}", rows=rows)
    tags = [tag for row in rows for tag in row["ner_tags"]]
    counts = {each["label"]: (each["training"], each["held_out"]) for each in evaluation(run)["classes"]}
    assert counts["animal"][0] == tags.count("B-animal")
    assert counts["animal"][1] > 0
    assert counts["thing"] == (tags.count("B-thing"), 0)


def test_the_line_says_what_may_be_chance() -> None:
    def figure(before: list[float], after: list[float]) -> dict[str, Any]:
        was, now = (measured(values) for values in (before, after))
        evaluated = Evaluation(task="classify", metrics={"accuracy": mean(after)})
        return report.result(was, now, evaluated, {})

    def measured(values: list[float]) -> Measurement:
        return Measurement(examples=len(values), figures={"accuracy": Figure.of(share(values))})

    better = figure([0, 1] * 100, [1] * 180 + [0] * 20)
    assert re.fullmatch(
        r"accuracy   0\.500 -> 0\.900 \[0\.8\d, 0\.9\d\], \+0\.40 \[0\.\d\d, 0\.\d\d\]; 200 examples held out",
        report.lines(better)[0],
    )
    same = figure([0, 1] * 100, [1, 0] * 100)
    assert report.lines(same)[0].endswith(": not distinguishable; 200 examples held out")
    unknown = report.result(None, measured([1, 0, 1, 1]), Evaluation(task="classify", metrics={}), {})
    assert report.lines(unknown) == ["accuracy   0.750 [0.30, 0.95]; 4 examples held out"]


@pytest.mark.parametrize("count", [1, 3, 29, 30, 200])
def test_few_examples_have_no_verdict(count: int, tmp_path: Path) -> None:
    """Three of three that are right now would have the interval from 1 to 1, and be better."""
    was, now = (
        Measurement(examples=count, figures={"accuracy": Figure.of(share([right] * count))}) for right in (0, 1)
    )
    found = report.result(was, now, Evaluation(task="classify", metrics={}), {})
    (tmp_path / "evaluation.json").write_text(json.dumps(found), encoding="utf-8")
    page = gains(tmp_path)
    assert page is not None
    said = " ".join(report.lines(found))
    figure, (metric,) = found["metrics"]["accuracy"], page["metrics"]
    assert figure["interval"][0] < 1.0
    assert figure["difference"] == [1.0, 1.0]
    if count < 30:
        assert (figure["distinguishable"], metric["verdict"]) == (None, "no verdict")
        assert f"No verdict: {count} example" in said
        assert found["notes"] == page["notes"]
        assert "30 or more" in page["notes"][0]
    else:
        assert (figure["distinguishable"], metric["verdict"], page["notes"]) == (True, "better", [])
        assert "verdict" not in said


def test_what_was_forgotten_is_a_share() -> None:
    assert general({"before": 21.3, "after": 23.9, "distinguishable": True}) == "21.3 -> 23.9 (+12%)"


def test_a_chat_shows_answers_ends_and_what_was_forgotten(tunes: Tunes, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {
            "messages": [
                row["messages"][0],
                {"role": "assistant", "content": f"{row['messages'][1]['content']} <script>"},
            ]
        }
        for row in toys.rows("chat")
    ]
    run = tunes("chat", "--steps=60", "--learning-rate=2e-2", rows=rows)
    said, found = _said(capsys), evaluation(run)
    assert any(line.startswith("general text: perplexity ") for line in said)
    ends, stopped = (found["metrics"][name] for name in ("end_probability", "stopped"))
    assert ends["before"] < 0.1 < 0.9 < ends["after"]
    assert stopped["before"] < stopped["after"] == 1.0
    first = found["answers"][0]
    assert first["after"].strip() in ("yes <script>", "no <script>")
    assert first["before"] != first["after"]
    model, tokenizer = af.load(run)
    assert tokenizer is not None
    text = measuring._general_text(model, tokenizer)
    assert text is not None
    nats, tokens = np.sum(list(losses(model, text, 48, batch_size=1)), axis=0)
    assert found["general"]["after"] == pytest.approx(np.exp(nats / tokens), rel=1e-5)
    assert tokens == 4096
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "yes &lt;script&gt;" in page
    assert "yes <script>" not in page
    assert "general text" in page


def test_a_sample_is_of_the_model_as_it_is_then(tunes: Tunes) -> None:
    run = tunes("chat", "--steps=12", "--evaluate-every=8", "--learning-rate=2e-2")
    before = json.loads((run / "before.json").read_text())["predictions"]
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    samples = {each["step"]: [part["written"] for part in each["sample"]] for each in logged if "sample" in each}
    assert list(samples) == [8, 12]
    assert samples[8] != before[:3]


def test_what_was_measured_survives_the_run_directory() -> None:
    model, tokenizer = decoder(max_length=32)
    measured, _ = measure(model, tokenizer, (), "text")
    assert measured.general is not None
    again = make(Measurement, json.loads(json.dumps(to_plain(measured), allow_nan=False)), nulls=True)
    assert again.scores == measured.scores
    assert again.general is not None
    assert again.general.interval == measured.general.interval
    assert again.general.difference(measured.general) == (0, 0)


def test_a_resumed_run_compares_with_what_was_measured_before(tunes: Tunes) -> None:
    base = str(tunes("classify", "--steps=1", name="base") / "model")
    whole = evaluation(tunes("classify", "--steps=8", model=base))
    begun = tunes("classify", "--steps=4", "--keep-optimizer", name="half", model=base)
    assert finetune.run(["--resume", str(begun), "--steps", "8"]) == 0
    again = evaluation(begun)
    assert again["metrics"]["accuracy"]["before"] == whole["metrics"]["accuracy"]["before"]
    assert again["metrics"]["accuracy"]["difference"] is not None
    (begun / "before.json").write_text("[")
    assert finetune.run(["--resume", str(begun), "--steps", "9"]) == 0
    assert evaluation(begun)["metrics"]["accuracy"]["before"] is None


def test_time_that_is_short_is_not_spent_on_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = encoder({"kind": "classification", "labels": 2})
    seen: list[int] = []

    def evaluated(model: Any, tokenizer: Any, rows: Any, task: Any, options: Any) -> Evaluation:
        seen.append(len(rows))
        clock[0] += 0.01 * len(rows)
        return Evaluation(task="classify", metrics={"accuracy": mean([1.0] * len(rows))})

    clock = [0.0]
    monkeypatch.setattr(measuring, "evaluate_examples", evaluated)
    monkeypatch.setattr(measuring.time, "monotonic", lambda: clock[0])
    examples = list(range(5000))
    first, _ = measure(model, tokenizer, examples, "classify", seconds=8.0)
    assert seen == [2, 32, 600]
    assert first.examples == 600
    measure(model, tokenizer, examples, "classify", before=first, seconds=8.0)
    assert seen == [2, 32, 600, 600]  # the same rows again
    measure(model, tokenizer, examples, "classify")
    assert seen[-1] == 2000


def test_a_run_by_the_clock_keeps_time_for_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 10.0)
    run: Any = SimpleNamespace(
        config=SimpleNamespace(steps=None, minutes=1.0),
        resumed=False,
        group=SimpleNamespace(broadcast=lambda value: value),
        _latest=None,
        _measuring=0.0,
    )
    budget = Trainer._budget(run, 0.0)
    run._measuring = 2.0  # as long as it took before training
    shorter = Trainer._budget(run, 0.0)
    assert isinstance(budget, TimeBudget)
    assert isinstance(shorter, TimeBudget)
    assert budget.seconds - shorter.seconds == pytest.approx(2.0)


def test_metrics_whose_library_is_missing_are_left_out(tunes: Tunes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    rows = [
        {"messages": [question, {**answer, "content": f"{answer['content']} {answer['content']}"}]}
        for question, answer in (row["messages"] for row in toys.rows("chat"))
    ]
    found = evaluation(tunes("chat", "--steps=1", rows=rows))
    assert "rougeL" not in found["metrics"]
    assert found["notes"][0] == "Left out: ROUGE needs rouge-score: pip install 'anyformer[eval]'."


def test_a_page_of_an_evaluation_that_is_damaged(tunes: Tunes) -> None:
    run = tunes("classify", "--steps=1")
    good = evaluation(run)
    assert gains(run) is not None
    for change in (
        {"metrics": 3},
        {"examples": "x"},
        {"confusion": {"labels": ["a"], "matrix": [["x"]]}},
        {"answers": [1]},
    ):
        (run / "evaluation.json").write_text(json.dumps({**good, **change}))
        assert gains(run) is None


def test_a_tagger_has_the_spans_of_its_rows() -> None:
    right = [Piece("Ann", "person"), Piece(f" saw {'it ' * 700}", ""), Piece("Bo", "person")]
    spans = TaggedSpans(right, [Piece("Ann saw", "")])
    where = Location(Path("dev.conll"), 1)
    row = EvaluatedRow(where, "Ann saw", "Ann/B-person", "Ann: O for B-person", 1.0, False, spans)
    found = report.result(None, Measurement(examples=1, figures={}), Evaluation(task="tag", metrics={}, rows=[row]), {})
    (worst,) = json.loads(json.dumps(found["worst"]))
    assert worst["spans"]["right"][0] == ["Ann", "person"]
    assert len(worst["spans"]["right"]) == 2  # what is beyond the characters that are kept is left out
    assert worst["spans"]["after"] == [["Ann saw", ""]]


def test_answers_of_one_word_are_not_compared_by_rouge(tunes: Tunes) -> None:
    found = evaluation(tunes("chat", "--steps=1"))
    assert "rougeL" not in found["metrics"]
    assert "exact_match" in found["metrics"]
    assert not any("ROUGE" in note for note in found["notes"])


def test_a_sample_of_a_tagger_names_its_entities() -> None:
    where = Location(Path("names.conll"), 1)
    plain, name = Piece("lives in ", ""), Piece("Rome", "LOC")
    rows = [
        EvaluatedRow(where, "lives in Rome", "Rome/LOC", "", 0.0, True, TaggedSpans([plain, name], said))
        for said in ([plain, name], [Piece("lives in Rome", "")])
    ]
    assert [sample_answer(row) for row in rows] == ["Rome: LOC", "no entities"]
    assert sample_answer(EvaluatedRow(where, "a text", "good", "bad", 1.0)) == "bad"
