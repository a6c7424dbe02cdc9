"""Whole comparisons of small models."""

import json
import os
import pickle
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import anyformer as af
from anyformer.cli.main import main
from anyformer.compare import jobs, training
from anyformer.compare.compare import compare, work
from anyformer.compare.experiment import make_plan
from anyformer.compare.request import Request
from anyformer.compare.result import Comparison
from anyformer.errors import UserError
from anyformer.processes import InlineExecutor
from tests.compare.texts import text

FAMILIES = ("gpt2", "llama", "bert", "t5", "transformer")
SMALL: dict[str, Any] = {
    "context": 32,
    "batch_size": 4,
    "tokenizer": "bpe:320",
    "tasks": False,
    "device": "cpu",
    "dtype": "float32",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "notes.txt"
    path.write_text(text())
    return str(path)


@pytest.fixture(scope="module")
def found(data: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Path]:
    out = tmp_path_factory.mktemp("comparison") / "out"
    return compare(FAMILIES, data=data, out=out, tokens=600, seeds=1, **SMALL), out


def test_every_family_sees_the_same_bytes_in_the_same_order(found: tuple[Comparison, Path]) -> None:
    comparison, _ = found
    assert len({each.order_digest for each in comparison.models}) == 1
    assert len({each.tokens for each in comparison.models}) == 1
    assert len({each.bytes for each in comparison.models}) == 1
    sizes = [*comparison.setup.matched.values()]
    assert max(sizes) / min(sizes) < 1.05


def test_numbers_stand_in_their_groups_only(found: tuple[Comparison, Path]) -> None:
    comparison, _ = found
    members = {group.name: {score.model for score in group.scores} for group in comparison.groups}
    assert members == {
        "next_byte": {"gpt2", "llama"},
        "continuation": {"gpt2", "llama", "t5", "transformer"},
        "filling_in": {"bert"},
        "spans": {"t5", "transformer"},
    }
    for verdict in comparison.verdicts:
        assert {verdict.a, verdict.b} <= members[verdict.panel]
    assert len(comparison.verdicts) == 1 + 6 + 0 + 1
    for group in comparison.groups:
        assert set(group.left_out) == set(FAMILIES) - members[group.name]


def test_the_numbers_are_in_compare_json_and_each_model_loads(found: tuple[Comparison, Path]) -> None:
    comparison, out = found
    assert json.loads((out / "compare.json").read_text()) == json.loads(comparison.to_json())
    for each in comparison.models:
        model, tokenizer = af.load(out / each.runs[0])
        assert tokenizer is not None
        assert model.config.vocab_size == each.config.vocab_size
        assert each.samples or each.blanks
        assert [point.step for point in each.curves[0].points][-1] == each.steps


def test_what_is_finished_is_not_done_again(found: tuple[Comparison, Path], data: str) -> None:
    comparison, out = found
    before = {path: path.stat().st_mtime_ns for path in (out / "jobs").rglob("*") if path.is_file()}
    again = compare(FAMILIES, data=data, out=out, tokens=600, seeds=1, **SMALL)
    assert again.groups == comparison.groups
    assert before == {path: path.stat().st_mtime_ns for path in (out / "jobs").rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="holds another comparison"):
        compare(FAMILIES, data=data, out=out, tokens=700, seeds=1, **SMALL)


def test_what_is_being_done_and_the_time_left_are_said(
    found: tuple[Comparison, Path], data: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(found[1], out)
    for name in ("1-llama-seed0.json", "2-bert-seed0.json"):
        (out / "jobs" / name).unlink()
    request = Request(
        models=FAMILIES,
        data=(data,),
        tokens=600,
        seeds=1,
        **SMALL,
    )
    lines, states = list[str](), list[str]()
    work(request, out, say=lines.append, working=states.append)
    assert states[0] == "reading the data, and training a tokenizer for all"
    assert states[1] == "llama, seed 0 (4 of 5)"
    assert re.fullmatch(r"bert, seed 0 \(5 of 5\), about \d+:\d\d left", states[2])
    done = [line for line in lines if re.match(r" +\d/5", line)]
    assert re.fullmatch(r"  4/5      llama, seed 0: validation loss [\d.]+, \d+ s, about \d+:\d\d left", done[0])
    assert re.fullmatch(r"  5/5      bert, seed 0: validation loss [\d.]+, \d+ s", done[1])


def test_a_run_without_losses_is_refused(found: tuple[Comparison, Path], data: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(found[1], out)
    (out / "jobs" / "0-gpt2-seed0.json").unlink()
    metrics = out / "jobs" / "0-gpt2-seed0" / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace("validation_loss", "x"))
    with pytest.raises(UserError, match=r"0-gpt2-seed0 is damaged.* has no validation loss"):
        compare(FAMILIES, data=data, out=out, tokens=600, seeds=1, **SMALL)


_JOB = "jobs/0-gpt2-seed0.json"
DAMAGE = {
    "a number of 400 digits": (_JOB, ["seconds"], 10**400, "seconds: wants a finite number, not 1"),
    "another type": (_JOB, ["allowance", "steps"], "x", "allowance.steps: wants a whole number, not 'x'"),
    "an unknown field": (_JOB, ["secons"], 1.0, r"secons: no such field \(did you mean 'seconds'\?\)"),
    "no numbers": (_JOB, ["numbers"], {}, "numbers of gpt2 that are not of the same pieces"),
    "empty numbers": (_JOB, ["numbers", "next_byte"], {"totals": [], "weights": []}, "as many totals as weights"),
    "unequal numbers": (_JOB, ["numbers", "next_byte", "totals"], [1.0], "as many totals as weights"),
    "other numbers": (_JOB, ["numbers", "next_byte"], {"totals": [1.0], "weights": [1.0]}, "not of the same pieces"),
    "the same step twice": (_JOB, ["curve", "points", 0, "step"], 10**6, "points: each wants a later step"),
    "a plan of nothing": ("plan.json", ["models"], [], "the models are others"),
    "a plan of numbers": ("plan.json", ["models"], [1], "models: wants fields of its own"),
    "a plan of another version": ("plan.json", ["version"], 1, "a comparison of another version of anyformer"),
    "a rate that trains nothing": ("plan.json", ["models", 0, "learning_rate"], 0.0, "wants a positive learning_rate"),
    "a plan with a long number": ("plan.json", ["models", 0, "config", "d_model"], 10**400, "d_model: wants"),
    "a model elsewhere": ("plan.json", ["models", 0, "directory"], "/etc", "gpt2 was elsewhere"),
    "another vocabulary": ("plan.json", ["models", 0, "config", "vocab_size"], 3, "gpt2 can't read the text"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_a_stranger_wrote_into_a_comparison_is_refused(
    name: str, found: tuple[Comparison, Path], data: str
) -> None:
    file, place, value, sentence = DAMAGE[name]
    path = found[1] / file
    kept = path.read_text()
    values: Any = json.loads(kept)
    at = values
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    path.write_text(json.dumps(values))
    try:
        with pytest.raises(UserError, match=sentence):
            compare(FAMILIES, data=data, out=found[1], tokens=600, seeds=1, **SMALL)
    finally:
        path.write_text(kept)


@pytest.mark.skipif(os.name != "posix", reason="links as POSIX has them")
def test_a_page_that_is_a_link_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "compare.html").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match=r"compare\.html is a symbolic link"):
        compare(["gpt2", "llama"], out=tmp_path / "out")


def test_equal_models_under_different_names_are_not_told_apart(data: str, tmp_path: Path) -> None:
    config = tmp_path / "mine.json"
    config.write_text(json.dumps({"model_type": "anyformer", "config": af.preset("gpt2-nano").to_dict()}))
    shutil.copy(config, tmp_path / "other.json")
    names = ["gpt2-nano", str(config), str(tmp_path / "other.json")]
    found = compare(names, data=data, out=tmp_path / "out", tokens=300, seeds=2, **SMALL)
    assert [each.name for each in found.models] == ["gpt2-nano", "mine.json", "other.json"]
    assert len(found.verdicts) == 6
    panels = {each.name: each for each in (*found.groups, *found.tasks)}
    for verdict in found.verdicts:
        few = panels[verdict.panel].pieces < 30
        assert verdict.difference == 0.0
        assert verdict.verdict == ("no verdict" if few else "not distinguishable at this budget")


@pytest.mark.slow
@pytest.mark.parametrize("budget", [{"tokens": 1000}, {"flops": 3e9}])
def test_two_comparisons_with_one_seed_are_bitwise_equal(data: str, tmp_path: Path, budget: dict[str, float]) -> None:
    one, two = (
        compare(["gpt2", "bert", "t5"], data=data, out=tmp_path / name, seeds=1, **budget, **SMALL)
        for name in ("one", "two")
    )
    assert one.groups == two.groups
    assert one.verdicts == two.verdicts
    assert [each.order_digest for each in one.models] == [each.order_digest for each in two.models]


@pytest.mark.slow
def test_budgets_in_flops_are_equal(data: str, tmp_path: Path) -> None:
    found = compare(["gpt2", "bert", "t5"], data=data, out=tmp_path / "out", flops=6e10, seeds=1, **SMALL)
    for each in found.models:
        assert each.flops == pytest.approx(6e10, rel=0.01)
        assert each.flops == pytest.approx(each.flops_per_token * each.tokens, rel=0.02)


@pytest.mark.slow
def test_a_mixture_of_experts_has_as_many_flops_as_a_dense_model(data: str, tmp_path: Path) -> None:
    """With as many parameters it reads more tokens."""
    found = compare(["llama", "mixtral"], data=data, out=tmp_path / "out", flops=1e10, seeds=1, **SMALL)
    dense, mixed = found.models
    assert dense.flops == pytest.approx(1e10, rel=0.05)
    assert mixed.flops == pytest.approx(1e10, rel=0.05)
    assert mixed.flops_per_token < 0.5 * dense.flops_per_token
    assert mixed.tokens > 2 * dense.tokens
    assert max(found.setup.matched.values()) / min(found.setup.matched.values()) < 1.05


@pytest.mark.slow
def test_budgets_in_minutes_are_of_work_measured_here(data: str, tmp_path: Path) -> None:
    found = compare(["gpt2", "bert"], data=data, out=tmp_path / "out", minutes=0.05, seeds=1, **SMALL)
    for each in found.models:
        assert each.seconds_per_step is not None
        window = each.tokens / round(3 / each.seconds_per_step)
        assert window == pytest.approx(SMALL["batch_size"] * found.setup.window, rel=0.01)


def test_other_programs_do_not_change_the_work_of_a_step(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that waits while others compute takes more time, and no more of the processor's."""
    made = training.make_strategy

    def busy(*arguments: Any) -> Any:
        strategy = made(*arguments)
        step = strategy.step

        def late(*given: Any) -> Any:
            time.sleep(0.05)
            return step(*given)

        monkeypatch.setattr(strategy, "step", late, raising=False)
        return strategy

    monkeypatch.setattr(training, "make_strategy", busy)
    request = Request(models=("gpt2",), vary=("norm.kind=layer,rms",), data=(data,), minutes=1.0, **SMALL)
    plan = make_plan(request, tmp_path / "out")
    assert all(0 < (each.seconds_per_step or 0.0) < 0.05 for each in plan.models)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "seeds", "panels"), [("gpt2", 3, {"next_byte", "continuation"}), ("transformer", 6, {"spans"})]
)
def test_a_model_that_knows_no_order_is_found(
    family: str, seeds: int, panels: set[str], data: str, tmp_path: Path
) -> None:
    # BERT learns nothing of order within so few steps, and T5 hardly needs what its encoder knows of it here: its
    # decoder has the order of what it writes from its mask (Haviv et al. 2022).
    names = [family, f"{family}:position.kind=none"]
    found = compare(names, data=data, out=tmp_path / "out", tokens=24_000, seeds=seeds, **SMALL)
    verdicts = {each.panel: (each.a, each.b, each.verdict) for each in found.verdicts}
    assert {panel for panel, verdict in verdicts.items() if verdict == (*names, "better")} == panels
    assert (*names[::-1], "better") not in verdicts.values()


@pytest.mark.slow
def test_an_ablation_says_what_each_change_is_worth(data: str, tmp_path: Path) -> None:
    vary = ["norm.kind=rms,layer", "feed_forward.activation=silu,relu"]
    found = compare(["llama-nano"], vary=vary, data=data, out=tmp_path / "out", tokens=1000, seeds=2, **SMALL)
    assert found.ablation is not None
    assert [*found.ablation.grid] == [
        f"norm.kind={norm} feed_forward.activation={activation}"
        for norm in ("rms", "layer")
        for activation in ("silu", "relu")
    ]
    values = {score.model: score.value for score in found.groups[0].scores}
    for effect in (each for each in found.ablation.effects if each.panel == "next_byte"):
        with_it, without = (
            [value for name, value in values.items() if f"{effect.field}={level}" in name]
            for level in (effect.value, effect.baseline)
        )
        assert effect.difference == pytest.approx(sum(with_it) / 2 - sum(without) / 2)
        assert effect.interval[0] <= effect.difference <= effect.interval[1]


@pytest.mark.slow
def test_a_killed_comparison_goes_on_and_ends_the_same(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = compare(["gpt2", "bert"], data=data, out=tmp_path / "whole", tokens=6000, seeds=1, **SMALL)
    from anyformer.training.trainer import Trainer

    class PowerFailure(BaseException):
        pass

    log, lines = Trainer._log, 0

    def failing(self: Trainer, *records: Any) -> None:
        nonlocal lines
        lines += 1
        if lines == 40:
            raise PowerFailure
        log(self, *records)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_log", failing)
        with pytest.raises(PowerFailure):
            compare(["gpt2", "bert"], data=data, out=tmp_path / "killed", tokens=6000, seeds=1, **SMALL)
    assert not (tmp_path / "killed" / "compare.json").exists()
    killed = compare(["gpt2", "bert"], data=data, out=tmp_path / "killed", tokens=6000, seeds=1, **SMALL)
    assert killed.groups == whole.groups


@pytest.mark.slow
def test_learning_rates_are_tried_within_the_budget(data: str, tmp_path: Path) -> None:
    found = compare(["gpt2"] * 2, data=data, out=tmp_path / "out", tokens=4000, seeds=2, tune=True, **SMALL)
    for each in found.models:
        assert len(each.trials) == len(jobs.RATES)
        best = min(each.trials, key=lambda trial: trial.validation_loss or 99.0)
        assert each.learning_rate == best.learning_rate
        assert each.tokens == pytest.approx(4000 * (1 - 0.15), rel=0.05)


@pytest.mark.slow
def test_several_processes_share_the_work(data: str, tmp_path: Path) -> None:
    alone = compare(["gpt2", "llama"], data=data, out=tmp_path / "alone", tokens=1000, seeds=2, **SMALL)
    both = compare(["gpt2", "llama"], data=data, out=tmp_path / "both", tokens=1000, seeds=2, processes=2, **SMALL)
    assert both.groups == alone.groups
    assert torch.get_num_threads() >= 1


def test_jobs_go_to_an_executor(data: str, tmp_path: Path) -> None:
    """Each is named by two strings, so that any machine that sees the folder can do it."""
    calls: list[tuple[Any, ...]] = []

    class Recording(InlineExecutor):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
            calls.append(pickle.loads(pickle.dumps((fn, *args))))
            return super().submit(fn, *args, **kwargs)

    small = {**SMALL, "tokens": 300, "seeds": 1}
    compare(["gpt2", "llama"], data=data, out=tmp_path / "out", executor=Recording(), **small)
    names = ("0-gpt2-seed0", "1-llama-seed0")
    assert calls == [(jobs.run_job, str(tmp_path / "out"), name) for name in names]


SENTENCES = {
    "a budget too small for one step": (["gpt2", "llama", "--tokens=3"], "too small for one step"),
    "a budget too small for trials": (["gpt2", "llama", "--tokens=200", "--tune"], "too small for one step"),
    "too few minutes": (["gpt2", "llama", "--minutes=0.000001"], "too small for one step"),
    "presets of different sizes": (["gpt2-medium", "llama-nano", "--tokens=500"], "can't be matched"),
    "an unknown field to vary": (["llama-nano", "--vary", "norm.knd=layer,rms"], "norm.knd: no such field"),
    "a value that is none": (["llama-nano", "--vary", "norm.kind=layer,rmsnorm"], "rmsnorm"),
    "nothing to vary": (["llama-nano", "--vary", "norm.kind"], "two or more different values"),
    "a missing run": (["gpt2", "runs/nothing-1"], "There is no 'runs/nothing-1'"),
    "no process": (["gpt2", "llama", "--processes=0"], "--processes 0 must lie between 1 and 1024"),
    "less than no process": (["gpt2", "llama", "--processes=-1"], "--processes -1 must lie between"),
    "two budgets": (["gpt2", "llama", "--tokens=3", "--flops=3"], "of one kind"),
    "one model": (["gpt2"], "nothing to compare gpt2 with"),
    "an unknown measure": (["gpt2", "llama", "--match=size"], "no such measure"),
}


@pytest.mark.parametrize("mistake", SENTENCES)
def test_a_mistake_is_one_sentence(
    mistake: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, reason = SENTENCES[mistake]
    common = ["--tokenizer=bpe:320", "--context=32", "--batch-size=4", "--no-tasks", "--device=cpu"]
    assert main(["compare", *arguments, "--data", data, *common]) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert error.startswith("anyformer: ")
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_models_are_names_and_paths(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="nothing to compare gpt2 with"):
        compare("gpt2", data=data)
    with pytest.raises(UserError, match="There is no 'runs/nothing-1'"):
        compare([Path("runs/nothing-1"), "gpt2"], data=data)
    wrong: Any = ["gpt2", af.preset("gpt2-nano")]
    with pytest.raises(UserError, match=r"models are presets, .*, and item 2 is a ModelConfig\."):
        compare(wrong, data=data)
    assert not list(tmp_path.iterdir())


def test_settings_are_of_their_types(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    wrong: tuple[tuple[str, Any, str], ...] = (
        ("tokens", "1e6", "wants a number, not '1e6'"),
        ("seeds", "three", "wants a whole number, not 'three'"),
        ("tasks", "no", "wants true or false, not 'no'"),
        ("context", None, "wants a whole number, not None"),
    )
    for name, value, message in wrong:
        with pytest.raises(UserError, match=f"^compare: {name}: {message}"):
            compare(["gpt2", "llama"], data=data, **{name: value})
    assert not list(tmp_path.iterdir())


def test_data_that_is_too_short(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text(text(40))
    with pytest.raises(UserError, match=r"^The data is too short for a held-out part"):
        compare(["gpt2", "llama"], data=str(tmp_path / "short.txt"), out=tmp_path / "out", **SMALL)
    assert not (tmp_path / "out").exists()


def test_runs_with_different_tokenizers_do_not_mix(data: str, tmp_path: Path) -> None:
    for name, spec in (("one", "bpe:300"), ("two", "bpe:310")):
        tokenizer = af.Tokenizer.train([text()], spec)
        config = af.preset("gpt2-nano", vocab_size=tokenizer.vocab_size)
        af.save(af.build(config), tmp_path / name, tokenizer=tokenizer)
    names = [str(tmp_path / "one"), str(tmp_path / "two")]
    with pytest.raises(UserError, match="have different tokenizers"):
        compare(names, data=data, out=tmp_path / "out", **SMALL)
    same = compare([names[0], names[0]], data=data, out=tmp_path / "same", **SMALL)
    assert {(each.difference, each.verdict) for each in same.verdicts} == {(0.0, "no verdict")}


def test_a_fine_tuned_run_beside_its_base(data: str, tmp_path: Path) -> None:
    """An adapter alone takes part; what predicts no text is refused."""
    tokenizer = af.Tokenizer.train([text()], "bpe:300")
    config = af.preset("gpt2-nano", vocab_size=tokenizer.vocab_size, d_model=16, decoder_layers=1)
    base = tmp_path / "base"
    af.save(af.build(config.replace(attention={"heads": 2}, max_length=64)), base, tokenizer=tokenizer)
    common = ["--task=text", "--steps=3", "--lora=2", "--context=32", "--batch-size=4", "--device=cpu"]
    assert main(["finetune", str(base), "--data", data, "--runs", str(tmp_path), "--name=tuned", *common]) == 0
    labels = af.build(config.replace(attention={"heads": 2}, head={"kind": "classification", "pooling": "last"}))
    af.save(labels, tmp_path / "labels", tokenizer=tokenizer)
    runs = [str(base), str(tmp_path / "tuned")]
    found = compare(runs, out=tmp_path / "out", data=data, **SMALL)
    one, other = (score.value for score in found.groups[0].scores)
    assert one != other
    with pytest.raises(UserError, match="labels predicts no text, by which models are compared"):
        compare([runs[0], str(tmp_path / "labels")], out=tmp_path / "none", data=data, **SMALL)
