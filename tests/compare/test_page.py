"""compare.html in a browser: all numbers of a result, every control, and no number beside one of another group."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import anyformer as af
from anyformer.compare.page import costs, curves, write_page
from anyformer.compare.page import page as values_of
from anyformer.compare.panels import findings, panels
from anyformer.compare.result import BETTER, UNDECIDED, Comparison, Sample
from anyformer.errors import UserError
from anyformer.pages.formatting import fixed
from tests.browser import Browse, Look, assert_readable, looks
from tests.compare.results import make_comparison, make_model
from tests.finetuning import toys

if TYPE_CHECKING:
    from playwright.sync_api import Page

EVIL = ["<!--</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>{{ 7 }}"]
TEXT = "the cat sat on the mat and the dog ran after it because it was a good or a bad dog"
MODELS: dict[str, Callable[..., Any]] = {
    "gpt2": toys.decoder,
    "t5": toys.encoder_decoder,
    "bert": toys.encoder,
}


def _with_text(comparison: Comparison, text: str) -> Comparison:
    samples = (Sample(prompt=text, written=" and it ran"),)
    return replace(comparison, models=tuple(replace(each, samples=samples) for each in comparison.models))


@pytest.fixture(scope="module")
def found() -> Comparison:
    return _with_text(make_comparison(ablation=True), TEXT)


@pytest.fixture(scope="module")
def file(found: Comparison, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page beside the runs that it is of."""
    folder = tmp_path_factory.mktemp("comparison")
    for each in found.models:
        model, tokenizer = MODELS[each.name]()
        af.save(model, folder / each.runs[0], tokenizer=tokenizer)
    return write_page(found, folder / "compare.html")


@looks
def test_it_can_be_read_by_everybody(look: Look, file: Path, browse: Browse):
    page = browse(file, look)
    assert_readable(page)
    _open(page)
    assert page.locator("#charts figure").count() == 3
    assert_readable(page)


def _open(page: Page) -> None:
    """Unfold all of a page."""
    for summary in page.locator("summary").all():
        summary.click()


def test_the_verdicts_are_first_with_their_numbers_and_the_rest_is_folded(
    found: Comparison, file: Path, browse: Browse
):
    page = browse(file)
    rows = page.locator(".findings > li")
    shown = {row.locator("a").inner_text(): row.inner_text() for row in rows.all()}
    assert list(shown) == ["The rest of a text given its beginning", "Cloze"]
    assert [score in shown["Cloze"] for score in ("0.6100", "0.5500", "0.5400", "chance 0.2500")] == [True] * 4
    assert "bert less t5: +0.0600, 95% interval +0.0400 to +0.0800" in shown["Cloze"]
    assert "gpt2 less t5: -0.3000" in shown["The rest of a text given its beginning"]
    parts = page.locator("details.part h2").all_inner_texts()
    assert parts == ["Curves", "Groups", "Tasks", "Costs", "Diagrams", "Configs", "Samples", "Attention", "Training"]
    assert page.locator("details[open]").count() == 0
    assert page.locator("#charts, table.scores, .diagrams, .attention").evaluate_all(
        "all => all.every((each) => !each.checkVisibility())"
    )
    # A verdict leads to its numbers.
    rows.first.locator("a").click()
    assert page.locator("#panel-continuation table").first.is_visible()
    # A group of one model has nothing to compare: its number is in a list.
    assert page.locator("article.panel h3").all_text_contents() == list(shown)
    listed = page.locator('[aria-label="Numbers that no other model has"] tbody tr').all_text_contents()
    assert len(listed) == 3
    assert any("bert" in row and "Filling in" in row and "1.7000" in row for row in listed)


def test_a_chart_is_drawn_when_it_is_unfolded(file: Path, browse: Browse):
    page = browse(file)
    page.locator("#curves-title").click()
    chart = page.locator("#charts svg").first
    page.wait_for_function("document.querySelector('#charts svg').viewBox.baseVal.width > 600")
    assert chart.locator("path").count() > 0
    page.locator("#maps-title").click()
    page.wait_for_function("document.querySelector('canvas.map').clientWidth > 200")


def test_a_column_that_no_model_has_is_gone(found: Comparison, browse: Browse, tmp_path: Path):
    encoders = tuple(replace(each, cache_bytes_per_token=0) for each in found.models)
    alike = write_page(replace(found, models=encoders), tmp_path / "compare.html")
    for comparison, has in ((found, True), (replace(found, models=encoders), False)):
        assert ("KV bytes a token" in costs(comparison)["columns"]) == has
    pictures = browse(alike).locator("svg[id^=diagram-]")
    for each, columns in (("gpt2", 1), ("t5", 2), ("bert", 1)):
        picture = pictures.filter(has_text=f"Architecture of {each}")
        assert picture.locator('[data-place$=".attention"]').count() == columns


def test_every_control_works(file: Path, browse: Browse):
    page = browse(file)
    _open(page)
    first = page.locator("#charts svg").first
    shown = {first.inner_html()}
    for name in ("x", "scale"):
        for choice in page.locator(f'input[name="{name}"]').all()[1:]:
            choice.check()
            shown.add(first.inner_html())
    assert len(shown) == 5
    page.locator('input[name="x"][value="flops"]').check()
    first.focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator("#charts figcaption").first.inner_text().find("FLOPs") > 0
    again = browse(file, fragment="x=time&scale=log")
    _open(again)
    assert again.locator('input[name="x"]:checked').get_attribute("value") == "time"
    names = page.locator(".stacks span").all_inner_texts()
    assert names == ["gpt2", "t5: encoder", "t5: decoder", "t5: cross-attention", "bert"]
    heads = set[str]()
    for place in range(len(names)):
        page.locator(".stacks input").nth(place).check()
        page.locator(".heads button").last.click()
        heads.add(page.locator(".head").inner_text())
    assert heads == {"Layer 1, head 2", "Layer 2, head 2"}  # the last of each: T5 has a single layer here


def test_all_numbers_are_there(found: Comparison, file: Path, browse: Browse):
    page = browse(file)
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    for panel in (*found.groups, *found.tasks):
        if len(panel.scores) == 1:
            continue
        text = page.locator(f"#panel-{panel.name}").inner_text()
        for score in panel.scores:
            assert all(part in text for part in (score.model, fixed(score.value), fixed(score.interval[0])))
        for name, why in panel.left_out.items():
            assert any(name in line and f": {why}" in line for line in text.splitlines())
        for verdict in found.verdicts:
            assert (f"{verdict.difference:+.4f}" in text) >= (verdict.panel == panel.name)
        if panel.chance is not None:
            assert f"chance, {fixed(panel.chance)}" in text
            assert page.locator(f"#panel-{panel.name} svg .chance").count() == len(panel.scores)
    text = page.locator("main").inner_text()
    assert found.repeat in text
    for each in found.models:
        for said in (each.objective, each.order_digest[0][:12], each.notes[0], each.samples[0].written):
            assert said in text
        assert page.locator(f'[aria-label="Diagram of {each.name}"] svg').count() == 1
    assert "norm.kind" in text
    assert "786k" in text
    assert "2,048" in text


def test_the_models_are_drawn(found: Comparison, file: Path, browse: Browse):
    pictures = browse(file).locator("svg[id^=diagram-]")
    assert pictures.count() == len(found.models)
    for picture, each in zip(pictures.all(), found.models, strict=True):
        assert picture.locator("title").first.text_content() == f"Architecture of {each.name}"
        assert picture.locator(".lit").count() > 20


def test_it_is_small(file: Path):
    assert file.stat().st_size < 3_000_000


def test_losses_of_different_objectives_have_different_charts(found: Comparison):
    data = curves(found)
    charts = {chart["title"]: {line["name"] for line in chart["series"]} for chart in data["charts"]}
    assert charts == {"Causal": {"gpt2"}, "Span corruption and continuation": {"t5"}, "Masked": {"bert"}}
    same = replace(found, models=tuple(replace(each, objective="causal") for each in found.models))
    (chart,) = curves(same)["charts"]
    assert chart["note"] == "nats"  # not all of them know bits per byte
    assert {line["name"] for line in chart["series"]} == {"gpt2", "t5", "bert"}


@settings(max_examples=20)
@given(st.lists(st.lists(st.floats(0, 9) | st.just(math.nan), min_size=3, max_size=3), min_size=1, max_size=3))
def test_a_curve_is_the_mean_of_its_seeds(values: list[list[float]]):
    comparison = make_comparison()
    each = comparison.models[1]
    runs = [
        replace(
            each.curves[0],
            seed=seed,
            points=tuple(
                replace(point, validation_loss=value, bits_per_byte=None)
                for point, value in zip(each.curves[0].points, seeds, strict=False)
            ),
        )
        for seed, seeds in enumerate(values)
    ]
    (chart,) = curves(replace(comparison, models=(replace(each, curves=tuple(runs)),)))["charts"] or ({},)
    if not chart:
        return
    mean = [sum(column) / len(values) for column in zip(*values, strict=True)]
    lines = [line for line in chart["series"] if line["style"] == "line"]
    for line in lines:
        assert line["y"] == [None if math.isnan(value) else pytest.approx(value, rel=1e-5, abs=1e-9) for value in mean]
    assert len([line for line in chart["series"] if line["style"] == "seed"]) <= (len(values) if len(values) > 1 else 0)


def test_what_is_said_is_what_the_verdicts_say():
    comparison = make_comparison()
    said = {each["title"]: each["sentence"] for each in findings(comparison)}
    assert said["Cloze"] == "bert is better than t5 and gpt2"
    undecided = tuple(replace(each, verdict=UNDECIDED) for each in comparison.verdicts)
    said = {each["title"]: each["sentence"] for each in findings(replace(comparison, verdicts=undecided))}
    assert said["Cloze"] == "bert, t5 and gpt2 are not distinguishable at this budget"
    mixed = tuple(replace(each, verdict=BETTER if each.b == "gpt2" else UNDECIDED) for each in comparison.verdicts)
    said = {each["title"]: each["sentence"] for each in findings(replace(comparison, verdicts=mixed))}
    assert said["Cloze"] == "bert is better than gpt2, and not distinguishable from t5"
    assert "Next byte" not in said  # one number alone says nothing
    reason = "there is one seed, and another could turn it round"
    tasks = tuple(replace(each, no_verdict=reason) for each in comparison.tasks)
    none = replace(comparison, verdicts=undecided, tasks=tasks, setup=replace(comparison.setup, seeds=1))
    said = {each["title"]: each["sentence"] for each in findings(none)}
    assert said["Cloze"] == f"no verdict: {reason}"
    values = values_of(none, Path())
    assert values["tasks"][0]["note"].endswith(f"No verdict: {reason}.")
    assert values["tasks"][0]["apart"] == "none"
    assert any("they name no winner" in note for note in values["notes"])


def test_positions_are_in_order():
    comparison = make_comparison()
    for panel in panels(comparison, (*comparison.groups, *comparison.tasks)):
        for row in panel["rows"]:
            low, value, high = (float(row["positions"][name]) for name in ("low", "value", "high"))
            assert 0 <= low <= value <= high <= 100
    (task,) = panels(comparison, comparison.tasks)
    assert float(task["chance"]["position"]) == pytest.approx(25)


_SCALARS = (None, True, 0, -1, 10**400, 1e308, -1e308, 5e-324, "", "x" * 3000)
_WRONG = st.sampled_from((*_SCALARS, [], {}, ["x"], [1, 2])).map(deepcopy)  # the test goes on to change them


@given(data=st.data())
def test_a_page_of_what_a_stranger_wrote(data: st.DataObject):
    values: Any = json.loads(make_comparison(ablation=True).to_json())
    for _ in range(data.draw(st.integers(1, 3))):
        at: Any = values
        while True:
            key = data.draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
            if not isinstance(at[key], dict | list) or not at[key] or data.draw(st.booleans()):
                break
            at = at[key]
        at[key] = data.draw(_WRONG)
        if not at:
            break
    with suppress(UserError):
        values_of(Comparison.from_dict(values), Path("nowhere"))


@pytest.mark.parametrize("evil", EVIL)
def test_texts_of_others_stay_texts(evil: str, browse: Browse, tmp_path: Path):
    text = json.dumps(json.loads(_with_text(make_comparison(), evil).to_json()))
    for word in ('"gpt2"', '"causal"', '"notes.txt"', '"another objective"'):
        text = text.replace(word, json.dumps(evil)) if word != '"gpt2"' else text
    comparison = Comparison.from_dict(json.loads(text))
    comparison = replace(comparison, title=evil, repeat=evil)
    page = browse(write_page(comparison, tmp_path / "compare.html"))
    assert page.locator("h1").inner_text() == evil
    assert page.locator("img").count() == 0
    assert page.locator(".attention").count() == 0  # its runs are gone


@looks
def test_a_grid_of_changes_can_be_read(look: Look, browse: Browse, tmp_path: Path):
    comparison = make_comparison(ablation=True)
    names = [
        f"norm.kind={norm},position.kind={kind},attention.kv_heads={heads}"
        for norm in ("layer", "rms")
        for kind in ("rotary", "learned", "sinusoidal")
        for heads in (1, 2, 4)
    ]
    models = tuple(replace(make_model("gpt2", "causal", 2.0), name=name) for name in names)
    (panel,) = (each for each in comparison.groups if each.name == "next_byte")
    scores = tuple(replace(panel.scores[0], model=name) for name in names)
    group = replace(panel, scores=scores, left_out={})
    verdicts = tuple(
        replace(comparison.verdicts[0], panel=panel.name, a=a, b=b)
        for place, a in enumerate(names)
        for b in names[:place]
    )
    grid = replace(comparison, title=" vs ".join(names), models=models, groups=(group,), tasks=(), verdicts=verdicts)
    page = browse(write_page(grid, tmp_path / "compare.html"), look)
    assert "13 more, to 2.0200" in page.locator(".findings").inner_text()
    _open(page)
    assert_readable(page)
    effect = comparison.ablation.effects[0] if comparison.ablation else pytest.fail("no ablation")
    assert f"{effect.difference:+.4f}" in page.locator('[aria-label="Effects"]').inner_text()
    assert page.locator('[aria-label^="Diagram of"]').count() == 8


def test_what_is_there_is_not_lost(tmp_path: Path):
    (tmp_path / "compare.html").write_text("mine")
    with pytest.raises(UserError, match="no page of anyformer's"):
        write_page(make_comparison(), tmp_path / "compare.html")
