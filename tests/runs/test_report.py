"""report.html: what it says, what it never does, and that it is whole at every moment."""

from __future__ import annotations

import json
import math
import os
import re
import stat
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyformer.errors import UserError
from anyformer.runs.listing import Terms, read_run
from anyformer.runs.report import write_comparison, write_report
from anyformer.runs.report.charts import smoothed, thin
from anyformer.tasks import TASKS
from anyformer.training.config import TrainConfig, defaults
from tests.browser import Browse, Look, assert_readable, looks
from tests.runs.run_files import HEADER, config, evaluation, sample, short_run, step, write_run

DEFAULTS = defaults(TrainConfig)
Values = list[float | None]


class _Page(HTMLParser):
    """A page's elements, its text by element, and what it would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.texts: list[str] = []
        self.data: dict[str, Any] = {}
        self._inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._inside = "data" if ("id", "data") in attrs else tag
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action")]

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "data":
            self.data = json.loads(data, parse_constant=pytest.fail)
        elif self._inside not in ("script", "style"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        """What a reader sees."""
        return " ".join(" ".join(self.texts).split())


def _page(run: Path, terms: Terms | None = None) -> _Page:
    return _Page(write_report(run, DEFAULTS, terms=terms).read_text(encoding="utf-8"))


def _chart(page: _Page, title: str) -> dict[str, Any]:
    return next(chart for chart in page.data["charts"] if chart["title"] == title)


def test_the_page_says_what_the_run_was(tmp_path: Path):
    page = _page(write_run(tmp_path / "good", short_run()))
    for said in ("good", "finished", "1.12M parameters", "bfloat16 on cpu", "100 tokens a step"):
        assert said in page.text
    assert "Validation loss 3.1000 from 5.0000" in page.text
    assert "Perplexity 22.20 per token" in page.text
    assert "Share of peak 25% 60 GFLOP/s of 240G measured" in page.text
    assert "after 100" in page.text
    assert "anyformer train --config" in page.text
    assert "--resume" not in page.text


def test_the_curves_are_those_of_the_log(tmp_path: Path):
    page = _page(write_run(tmp_path / "good", short_run()))
    training, validation = _chart(page, "Loss")["series"]
    assert training["y"] == [round(5 - number / 50, 6) for number in range(10, 101, 10)]
    assert validation["y"] == [5.0, 4.1, 3.1]
    axis = page.data["axes"][validation["axis"]]
    assert axis == {"step": [0, 50, 100], "time": [0.0, 0.5, 1.0], "tokens": [0, 5000, 10_000]}
    assert _chart(page, "Arithmetic")["marks"] == [{"y": 2.4e11, "label": "measured peak"}]
    assert [chart["title"] for chart in page.data["charts"]] == [
        "Loss",
        "Learning rate",
        "Speed",
        "Gradient norm",
        "Arithmetic",
    ]


@pytest.mark.parametrize(
    ("settings", "unit"),
    [
        ({"task": "chat", "loss": None}, "nats per token"),
        ({"task": "classify", "label_kind": "single"}, "cross-entropy, nats"),
        ({"task": "classify", "label_kind": "multiple"}, "binary cross-entropy of a label, nats"),
        ({"task": "classify", "label_kind": "regression"}, "squared error"),
        ({"task": "tag"}, "cross-entropy of a tag, nats"),
        ({"task": "embed", "loss": "in_batch_negatives"}, "cross-entropy of the positive, nats"),
        ({"task": "embed", "loss": "cosine"}, "squared error of the cosine"),
        ({"task": "embed", "loss": "triplet"}, "triplet loss"),
        ({"task": "preference"}, "DPO loss, nats"),
        ({"task": ["?"], "loss": {}}, "nats per token"),
    ],
)
def test_the_loss_of_a_task_has_its_unit(settings: dict[str, Any], unit: str, tmp_path: Path):
    tuned = {"base": "model", "data": ["a.jsonl"], **settings}
    lines = [HEADER, {"step": 0, "validation_loss": 0.7}, step(5), {"step": 9, "validation_loss": 0.5}]
    task = TASKS.get(str(tuned["task"]))
    terms = Terms() if task is None else task.terms(tuned)
    run = write_run(tmp_path / "tuned", lines[:2], tuned)
    assert f"Validation loss 0.7000 {unit}" in _page(run, terms).text
    run = write_run(tmp_path / "other", lines, tuned)
    page = _page(run, terms)
    assert _chart(page, "Loss")["note"] == unit
    assert ("perplexity" in page.text.lower()) == (unit == "nats per token")
    assert "anyformer finetune --config" in page.text
    runs = [read_run(run), read_run(write_run(tmp_path / "third", lines, tuned))]
    for each in runs:
        each.terms = terms
    page = _Page(write_comparison(runs, tmp_path / "both.html").read_text())
    assert _chart(page, "Validation loss")["note"] == unit
    assert "losses are comparable" in page.text
    runs.append(read_run(write_run(tmp_path / "trained", short_run(), {**config(), "data": ["a.jsonl"]})))
    page = _Page(write_comparison(runs, tmp_path / "all.html").read_text())
    assert _chart(page, "Validation loss")["note"] == ("nats per token" if unit == "nats per token" else "")
    assert "comparable only where" in page.text


@looks
def test_pages_can_be_read_by_everybody(look: Look, browse: Browse, tmp_path: Path):
    runs = [write_run(tmp_path / name, short_run()) for name in ("one", "other")]
    for file in (
        write_report(runs[0], DEFAULTS),
        write_comparison([read_run(run) for run in runs], tmp_path / "both.html"),
    ):
        page = browse(file, look)
        page.locator('input[name="x"][value="time"]').check()
        page.locator('input[name="scale"][value="log"]').check()
        for summary in page.locator("summary").all():
            summary.click()
        assert_readable(page)
        assert page.locator("#charts svg path").count() > 0


TAGGED: dict[str, Any] = {
    "task": "tag",
    "examples": 1,
    "measured_on": "1 example",
    "metrics": {},
    "general": None,
    "classes": [
        {"label": kind, "training": 9, "held_out": 1, "precision": 1.0, "recall": 1.0, "f1": 1.0}
        for kind in ("person", "<place>")
    ],
    "confusion": None,
    "answers": [],
    "changed": 0,
    "worst": [
        {
            "where": "dev.conll, line 1",
            "question": "Ann saw Rome",
            "reference": "Ann/B-person Rome/B-<place>",
            "before": None,
            "after": "saw: B-person for O",
            "right": False,
            "spans": {
                "right": [["Ann", "person"], [" saw ", ""], ["Rome", "<place>"]],
                "after": [["Ann", "person"], [" ", ""], ["saw", "person"], [" ", ""], ["Rome", "<place>"]],
            },
        }
    ],
    "notes": [],
}


@looks
def test_entities_are_colored_spans(look: Look, browse: Browse, tmp_path: Path):
    run = write_run(tmp_path / "run", short_run())
    (run / "evaluation.json").write_text(json.dumps(TAGGED))
    page = browse(write_report(run, DEFAULTS, terms=TASKS["tag"].terms({})), look)
    page.locator("summary", has_text="Most wrong about").click()
    sides = page.locator(".answers dd pre").all_text_contents()
    assert [side.replace("person", "").replace("<place>", "") for side in sides] == ["Ann saw Rome"] * 2
    marks = page.locator(".answers mark").evaluate_all(
        "all => all.map((each) => [each.firstChild.data, each.querySelector('small').textContent, each.className])"
    )
    assert marks == [
        ["Ann", "person", "entity"],
        ["Rome", "<place>", "entity"],
        ["Ann", "person", "entity"],
        ["saw", "person", "entity differs"],
        ["Rome", "<place>", "entity"],
    ]
    edges = page.locator(".answers mark").evaluate_all("all => all.map((e) => getComputedStyle(e).borderBottomColor)")
    assert edges[0] == edges[2] == edges[3] != edges[1] == edges[4]
    assert page.locator(".entities .key").all_inner_texts() == ["person", "<place>"]
    assert_readable(page)


def test_nothing_is_loaded_from_anywhere(tmp_path: Path):
    run = write_run(tmp_path / "good", short_run())
    page = _page(run)
    assert page.loads == []
    text = (run / "report.html").read_text()
    assert "default-src 'none'" in text
    assert not re.search(r"@import|url\((?!#)|https?://(?!www\.w3\.org/2000/svg)", text)


@pytest.mark.parametrize(
    "evil", ["</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "{{ 7 * 7 }}", "<!--"]
)
def test_texts_of_others_stay_texts(tmp_path: Path, evil: str):
    name = evil.replace("/", "\u2044")
    settings = config(tokenizer=evil, data=[evil])
    lines = [
        {**HEADER, "device": evil},
        step(10),
        evaluation(10, 2.0),
        sample(10, evil, evil, evil),
        {"step": 10, "state": "stopped", "reason": evil},
    ]
    run = write_run(tmp_path / name, lines, settings)
    plain = write_run(tmp_path / "plain", [*lines[:3], sample(10), {"step": 10, "state": "stopped", "reason": "."}])
    page = _page(run)
    assert page.tags == _page(plain).tags
    assert page.text.count(" ".join(evil.split())) >= 5
    both = write_comparison([read_run(run), read_run(plain)], tmp_path / "both.html")
    assert _Page(both.read_text()).tags.count("script") == 2


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf, None, "?"])
def test_what_is_no_number_is_a_gap(tmp_path: Path, loss: Any):
    lines = [step(10, 3.0), json.dumps(step(20, loss)), step(30, 2.0)]
    lines.append(json.dumps({"step": 30, "validation_loss": loss}))
    page = _page(write_run(tmp_path / "r", lines))
    assert _chart(page, "Loss")["series"][0]["y"] == [3.0, None, 2.0]
    assert "diverged" in page.text


@pytest.mark.parametrize(
    "lines", [[], [HEADER], [evaluation(0, 3.0)], [step(1)], [{"step": 1, "loss": 1.0}], [sample(3)]]
)
def test_however_little_there_is(tmp_path: Path, lines: list[Any]):
    run = write_run(tmp_path / "r", lines)
    assert "r" in _page(run).text
    (run / "config.yaml").unlink()
    assert "There is no config.yaml" in _page(run).text
    write_comparison([read_run(run), read_run(run)], tmp_path / "both.html")


def test_odd_samples(tmp_path: Path):
    passages = [{"before": "one", "written": "two"}, {"written": None}, "three", 4]
    lines = [step(10), {"step": 10, "sample": passages}, {"step": 10, "sample": None}, json.dumps(sample(10, "\ud800"))]
    text = _page(write_run(tmp_path / "r", lines)).text
    assert "onetwo" in text.replace(" ", "")
    assert "three" in text


def test_the_first_and_the_last_sample_are_shown(tmp_path: Path):
    lines = [line for number in range(0, 500, 10) for line in (step(number + 1), sample(number, f"words{number}."))]
    text = write_report(write_run(tmp_path / "r", lines), DEFAULTS).read_text()
    shown, folded = text.split("44 more samples</summary>")
    assert "words0." in shown
    assert "words490." in shown
    assert "words480." in folded
    assert len(re.findall(r"words\d+\.", text)) == 50


def test_a_long_log_makes_a_small_page_and_keeps_its_spikes(tmp_path: Path):
    lines = [step(number, 2 + (number % 7) / 100) for number in range(1, 20_001)]
    lines[12_345]["loss"] = 9.0
    run = write_run(tmp_path / "long", lines)
    page = _page(run)
    raw, smooth = _chart(page, "Loss")["series"]
    assert max(raw["y"]) == 9.0
    assert (raw["style"], smooth["style"]) == ("faint", "line")
    assert 2.0 < min(smooth["y"]) < max(smooth["y"]) < 2.1
    assert page.data["axes"][0]["step"][-1] == 20_000
    assert (run / "report.html").stat().st_size < 400_000


def test_what_was_changed_is_marked(tmp_path: Path):
    settings = config(grad_clip=0.5, model={"norm.kind": "layer"})
    text = write_report(write_run(tmp_path / "r", short_run(), settings), DEFAULTS).read_text()
    changed = re.findall(r'<tr class="changed"><th scope="row">(.*?)</th><td>(.*?)</td>', text)
    assert changed == [("grad_clip", "0.5 <small>usually 1</small>"), ("norm.kind", "layer <small>preset rms</small>")]


def test_broken_lines_are_said(tmp_path: Path):
    text = _page(write_run(tmp_path / "r", [HEADER, step(10), HEADER, step(20), '{"step": 3'])).text
    assert "1 line of metrics.jsonl can't be read, and is left out" in text


def test_the_old_page_stays_where_the_new_one_can_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = write_run(tmp_path / "r", short_run())
    before = write_report(run, DEFAULTS).read_text()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"report\.html can't be written: No space left on device\."):
        write_report(run, DEFAULTS)
    assert (run / "report.html").read_text() == before
    assert sorted(path.name for path in run.iterdir()) == ["config.yaml", "metrics.jsonl", "report.html"]
    assert stat.S_IMODE((run / "report.html").stat().st_mode) & 0o444


def test_runs_are_laid_over_each_other(tmp_path: Path):
    runs = [
        read_run(write_run(tmp_path / "a", short_run())),
        read_run(write_run(tmp_path / "b", [HEADER, step(10), evaluation(10, 2.5)], config(learning_rate=2e-3))),
    ]
    page = _Page(write_comparison(runs, tmp_path / "both.html").read_text())
    validation = _chart(page, "Validation loss")["series"]
    assert [(series["name"], series["color"]) for series in validation] == [("a", 0), ("b", 1)]
    assert validation[1]["y"] == [2.5]
    assert "learning_rate 0.001 0.002" in page.text
    assert '<td class="best">2.5000</td>' in (tmp_path / "both.html").read_text()


_NUMBERS = st.one_of(st.none(), st.floats(-1e6, 1e6))


@given(st.lists(st.tuples(_NUMBERS, _NUMBERS), max_size=300), st.integers(1, 20))
def test_thinning_keeps_the_ends_and_the_extremes(rows: list[tuple[float | None, float | None]], buckets: int):
    columns: list[Values] = [[row[0] for row in rows], [row[1] for row in rows]]
    kept = thin(columns, buckets)
    assert kept == sorted(set(kept))
    assert len(kept) <= max(2 * buckets, 4 * buckets + 2)
    if rows:
        assert {0, len(rows) - 1} <= set(kept)
    for column in columns:
        known = [value for value in column if value is not None]
        seen = [value for index in kept if (value := column[index]) is not None]
        if known:
            assert (min(seen), max(seen)) == (min(known), max(known))


@given(st.lists(_NUMBERS, max_size=80), st.integers(1, 10))
def test_a_smoothed_curve_stays_within_the_raw_one(values: Values, window: int):
    curve = smoothed(values, window)
    known = [value for value in values if value is not None]
    assert [value is None for value in curve] == [value is None for value in values]
    assert all(min(known) - 1e-3 <= value <= max(known) + 1e-3 for value in curve if value is not None)


def test_a_straight_line_is_smooth_already():
    line: Values = [float(value) for value in range(50)]
    assert smoothed(line, 5)[:40] == pytest.approx(line[:40])
