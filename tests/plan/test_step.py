"""The step that is counted beside the step that is taken."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from anyformer.errors import UserError
from anyformer.model import build
from anyformer.plan import step
from anyformer.plan.devices import find_device
from anyformer.plan.step import count_step
from anyformer.plan.workload import Workload, make_workload
from anyformer.spec import SpecifiedModel, read_config
from anyformer.training.precision import INT8
from anyformer.training.recipe import make_plan, make_strategy
from anyformer.training.strategies.group import Group

NAMES = (
    "llama-nano",
    "bert-tiny",
    "transformer-tiny",
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("gpt2-nano", "modern-nano", "t5-small", "bart-base", "mixtral-nano")
    ),
)


def workload(name: str, **options: Any) -> Workload:
    specified = read_config(name)
    config = specified.config
    layers = {part: min(getattr(config, part), 2) for part in ("encoder_layers", "decoder_layers")}
    sources = {"source_vocab_size": 300} if config.source_vocab_size is not None else {}
    config = config.replace(**{**layers, "vocab_size": 300, **sources})
    values = {"context": 24, "batch_size": 4, "dtype": "float32", **options}
    made = make_workload(SpecifiedModel(name, config), values, find_device("cpu"))
    return replace(made, in_heap=False)  # test_dry_run.py tests what the heap adds


def real_step(asked: Workload, tmp_path: Path) -> tuple[int, int]:
    """Operations of a real step by torch's counter, and bytes that it allocates at most by torch's profiler."""
    config = asked.config
    plan = make_plan(config, asked.precision, asked.loss)
    strategy = make_strategy(None, asked.fit(build(asked.model)), plan, Group())
    batch = asked.batch()
    strategy.step(0, batch, 1e-3)
    with FlopCounterMode(display=False) as counter:
        strategy.step(1, batch, 1e-3)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        strategy.step(2, batch, 1e-3)
    profile.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    live = peak = 0
    for event in sorted((each for each in events if each.get("name") == "[memory]"), key=lambda each: each["ts"]):
        live += event["args"]["Bytes"]
        peak = max(peak, live)
    return counter.get_total_flops(), peak


@pytest.mark.parametrize("name", NAMES)
def test_operations_and_memory_are_those_that_torch_counts_in_a_real_step(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANYFORMER_NATIVE", "0")  # torch's counter can't look into compiled code
    asked = workload(name)

    counted = count_step(asked)

    flops, peak = real_step(asked, tmp_path)
    assert counted.flops == pytest.approx(flops, rel=0.02)
    growth = sum(counted.parts.values()) - sum(counted.resident.values())
    assert growth == pytest.approx(peak, rel=0.02)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llama-nano", {"lora": 2}),
        ("llama-nano", {"optimizer": "muon", "grad_accumulation": 2}),
        ("llama-nano", {"task": "classify"}),
        ("bert-tiny", {"task": "embed", "grad_accumulation": 2}),
        ("mixtral-nano", {"lora": 2}),
    ],
)
def test_so_they_are_with_other_settings(
    name: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANYFORMER_NATIVE", "0")
    asked = workload(name, **options)

    counted = count_step(asked)

    flops, peak = real_step(asked, tmp_path)
    assert counted.flops == pytest.approx(flops, rel=0.02)
    assert sum(counted.parts.values()) - sum(counted.resident.values()) == pytest.approx(peak, rel=0.02)


ALBERT = "albert:d_model=24,attention.heads=2,feed_forward.width=40,embedding.width=12,distinct_layers=3"
SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"dtype": "bfloat16", "lora": 2},
    {"gradient_checkpointing": True, "average": "ema:0.9"},
    {"grad_accumulation": 4, "optimizer": "muon"},
    {"task": "classify", "lora": 2, "quantize": "int8"},
    {"task": "preference", "lora": 2},
    {"engine": "ddp", "processes": 2},
    {"engine": "ddp", "processes": 2, "task": "embed"},
    {"engine": "fsdp", "processes": 2, "gradient_checkpointing": True},
)


@settings(max_examples=5, deadline=None)
@given(
    st.tuples(st.sampled_from(["gpt2-nano", "llama-nano"]), st.sampled_from(SETTINGS))
    | st.tuples(st.sampled_from(["bert-tiny", "transformer-tiny", ALBERT]), st.just(SETTINGS[0])),
    st.integers(4, 7),
    st.integers(0, 1),
)
def test_a_line_through_a_few_layers_tells_what_more_take(
    setting: tuple[str, dict[str, Any]], layers: int, fewer: int
) -> None:
    small = workload(setting[0], **setting[1])
    stacks = {"encoder_layers": layers - fewer, "decoder_layers": layers}
    depth = {stack: layers for stack, layers in stacks.items() if getattr(small.model, stack)}
    asked = replace(small, model=small.model.replace(**depth))

    counted = count_step(asked)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "_FEW_LAYERS", layers)
        whole = count_step(asked)
    assert counted.parameters == whole.parameters
    assert counted.flops == whole.flops
    assert counted.peak == pytest.approx(whole.peak, rel=0.01)
    assert sum(counted.resident.values()) == pytest.approx(sum(whole.resident.values()), rel=0.001)


@pytest.mark.parametrize("options", [{}, {"lora": 2, "quantize": "int4"}, {"grad_accumulation": 4}])
def test_no_more_than_three_layers_are_ever_made(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    taken = list[tuple[int, int]]()
    take = step.take_steps

    def noted(part: Workload, counted: range, *rest: Any) -> Any:
        taken.append((part.model.decoder_layers, counted.stop))
        return take(part, counted, *rest)

    monkeypatch.setattr(step, "take_steps", noted)
    asked = workload("llama-nano", **options)
    deep, deeper = (
        count_step(replace(asked, model=asked.model.replace(decoder_layers=layers))) for layers in (9999, 10_000)
    )

    assert [layers for layers, _ in taken] == [2, 3, 2, 3]
    assert max(steps for _, steps in taken) <= 2
    each = deeper.parameters[0] - deep.parameters[0]
    assert deeper.parameters[0] == pytest.approx(10_000 * each, rel=0.01)


@settings(max_examples=3, deadline=None)
@given(
    st.sampled_from(["gpt2-nano", "llama-nano", "modern-nano", "bert-tiny", "transformer-tiny"]),
    st.integers(2, 24),
    st.integers(1, 3),
    st.booleans(),
)
def test_weights_and_state_take_what_their_numbers_take(
    name: str, context: int, rows: int, checkpointing: bool
) -> None:
    counted = count_step(workload(name, context=context, batch_size=rows, gradient_checkpointing=checkpointing))

    everything, trained = counted.parameters
    assert counted.resident["weights"] == pytest.approx(4 * everything, rel=0.02)
    # AdamW's count of steps is one number a tensor.
    assert counted.resident["optimizer"] == pytest.approx(8 * trained, rel=0.02)
    assert counted.peak >= sum(counted.resident.values())


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_quantized_weights_take_their_integers_and_scales(kind: str) -> None:
    whole = count_step(workload("llama-nano", lora=2))

    counted = count_step(workload("llama-nano", lora=2, quantize=kind))

    assert counted.parameters[1] == whole.parameters[1] > 0
    assert 0.1 * whole.resident["weights"] < counted.resident["weights"] < 0.4 * whole.resident["weights"]


@pytest.mark.slow
def test_compiled_kernels_count_as_much_as_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = workload("llama-nano", context=64, batch_size=8, dtype="bfloat16")
    compiled = count_step(asked).flops

    monkeypatch.setenv("ANYFORMER_NATIVE", "0")

    assert compiled == pytest.approx(count_step(asked).flops, rel=0.05)


@pytest.mark.slow
def test_checkpointing_and_parts_of_a_batch_take_less_and_each_process_its_share() -> None:
    whole = workload("llama-nano", context=64, batch_size=8)
    counted = {
        "whole": count_step(whole),
        "parts": count_step(whole.change(grad_accumulation=4)),
        "checkpointing": count_step(whole.change(gradient_checkpointing=True)),
        "ddp": count_step(whole.change(engine="ddp", processes=2)),
        "fsdp": count_step(whole.change(engine="fsdp", processes=2)),
    }
    peaks = {name: sum(each.parts.values()) for name, each in counted.items()}
    assert peaks["parts"] < peaks["whole"]
    assert peaks["checkpointing"] < peaks["whole"]
    assert peaks["ddp"] < peaks["whole"]
    kept = {name: sum(each.resident.values()) for name, each in counted.items()}
    # Buckets of gradients stay; shards of weights and state are half of all.
    assert kept["ddp"] == pytest.approx(kept["whole"] + 4 * counted["ddp"].parameters[0], rel=0.02)
    assert kept["fsdp"] == pytest.approx(kept["whole"] / 2, rel=0.05)
    assert counted["ddp"].flops == pytest.approx(counted["whole"].flops, rel=0.02)
    assert counted["fsdp"].flops == pytest.approx(counted["whole"].flops, rel=0.02)


def test_each_of_many_processes_has_its_share_alone_in_memory() -> None:
    counted = count_step(workload("llama-nano", context=8, batch_size=8).change(engine="fsdp", processes=8))
    state = 8 * counted.parameters[1] / 8  # two moments of four bytes each
    assert counted.parts["optimizer"] == pytest.approx(state, rel=0.05)
    assert sum(counted.parts.values()) < 4 * 4 * counted.parameters[0]


def test_nothing_is_allocated_for_a_model_that_no_machine_holds() -> None:
    specified = read_config("llama-3.1-8b")
    asked = make_workload(specified, {"context": 16, "batch_size": 1, "dtype": "bfloat16"}, find_device("h100"))
    counted = count_step(asked.shorten(2))
    assert counted.resident["weights"] > 5e9


def test_int8_counts_the_integers_that_products_are_made_of() -> None:
    try:
        asked = workload("bert-tiny", dtype=INT8)
    except UserError as error:  # a processor without the instructions
        pytest.skip(str(error))
    assert count_step(asked).flops > 0
