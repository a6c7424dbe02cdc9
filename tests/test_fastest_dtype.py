"""The dtype of products: chosen by times, which are measured once."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import anyformer as af
from anyformer import fastest_dtype
from anyformer.analysis import part_costs
from anyformer.fastest_dtype import FLOATS, INT8, Product, Products, fastest, measure, product_seconds, products

SECONDS = st.floats(1e-6, 1e3)


@pytest.mark.parametrize("preset", ["gpt2-nano", "llama-nano", "t5-nano", "bert-tiny", "mixtral-nano"])
def test_products_are_all_multiplications_of_the_layers(preset: str) -> None:
    config = af.preset(preset)
    total = sum(count * shape.multiplications for shape, count in products(config, 64).items())
    assert 2 * total == 64 * sum(part.flops for part in part_costs(config, 0))


@given(st.fixed_dictionaries({"float32": SECONDS}, optional={"bfloat16": SECONDS, "int8": SECONDS}))
def test_the_fastest_or_one_more_precise_that_takes_next_to_no_more(seconds: dict[str, float]) -> None:
    least = min(seconds[name] for name in FLOATS if name in seconds)
    assert seconds[fastest(seconds)] <= 1.1 * least
    assert (fastest(seconds) == "float32") == (seconds["float32"] <= 1.1 * least)


@given(
    st.dictionaries(
        st.builds(Product, *[st.integers(1, 1 << 17)] * 3, st.sampled_from([1, 4, 128])),
        st.integers(1, 100),
        min_size=1,
    )
)
def test_little_is_measured_in_the_place_of_much(drawn: Products) -> None:
    shapes = fastest_dtype._representatives(drawn)
    assert 1 <= len(shapes) <= 4
    assert max(shape.multiplications for shape in shapes) <= 1 << 29
    assert max(shape.groups for shape in shapes) <= 8
    total, most = (sum(count * shape.multiplications for shape, count in each.items()) for each in (drawn, shapes))
    assert most <= total * 1.001
    if len(drawn) == 1:
        assert most == pytest.approx(total)


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Products]:
    """What is measured, while the cache is empty at first."""
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path / "cache"))
    calls: list[Products] = []

    def take(shapes: Products, dtypes: Sequence[str], *, training: bool) -> dict[str, float]:
        calls.append(shapes)
        return {name: 1.0 + number + training for number, name in enumerate(dtypes)}

    monkeypatch.setattr(fastest_dtype, "measure", take)
    return calls


def test_each_kind_of_step_is_measured_once(measured: list[Products]) -> None:
    step = products(af.preset("gpt2-nano"), 64)
    backwards = dict(reversed([*step.items()]))
    assert product_seconds(step) == product_seconds(backwards) == {"float32": 2.0, "bfloat16": 3.0}
    assert len(measured) == 1
    assert product_seconds(step, training=False) == {"float32": 1.0, "bfloat16": 2.0}
    assert INT8 in product_seconds(step, (*FLOATS, INT8))
    product_seconds(products(af.preset("gpt2-nano"), 32))
    assert len(measured) == 4


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"float32": "fast"}', '{"float32": 0.0}', '{"float32": NaN}', '{"float32": 1.0, "int3": 1.0}'],
)
def test_a_strange_file_is_measured_again(content: str, tmp_path: Path, measured: list[Products]) -> None:
    seconds = product_seconds(fastest_dtype.TYPICAL)
    (file,) = tmp_path.rglob("seconds.json")
    assert json.loads(file.read_text()) == seconds
    file.write_text(content)
    assert product_seconds(fastest_dtype.TYPICAL) == seconds == json.loads(file.read_text())
    assert len(measured) == 2


def test_without_a_cache_it_is_measured_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: list[Products]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path / "file"))
    assert product_seconds(fastest_dtype.TYPICAL) == product_seconds(fastest_dtype.TYPICAL)
    assert len(measured) == 2


@pytest.mark.parametrize("training", [True, False])
def test_a_measurement_takes_less_than_a_second(training: bool) -> None:
    """On one thread, whose time on a core other programs don't change."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        shapes = fastest_dtype._representatives(products(af.preset("gpt2"), 2048))
        start = time.process_time()
        seconds = measure(shapes, FLOATS, training=training)
        assert time.process_time() - start < 1
    finally:
        torch.set_num_threads(threads)
    assert "float32" in seconds
    assert all(each > 0 for each in seconds.values())
