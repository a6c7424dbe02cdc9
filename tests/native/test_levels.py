"""The levels of processors, and the switch of compiled code."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import pairwise

import pytest

from anyformer.native import levels

V3 = levels._BASES["x86-64-v3"]
V4 = levels._BASES["x86-64-v4"] + " avx512vnni"
PAIRS = f"{V4} avx512bf16"
AMX = f"{PAIRS} amxtile amxbf16 amxint8"


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    levels.level.cache_clear()
    yield
    levels.level.cache_clear()


@pytest.mark.parametrize(
    ("features", "switch", "name", "avx512_bf16", "amx_bf16"),
    [
        ("", "1", None, False, False),
        (V3, "1", "x86-64-v3", False, False),
        (V3, "emulated", "x86-64-v3", False, False),
        (V4, "1", "x86-64-v4-vnni", False, False),
        (PAIRS, "1", "x86-64-v4-bf16", True, False),
        (PAIRS, "emulated", "emulated", True, True),
        (PAIRS, "x86-64-v3", "x86-64-v3", False, False),
        (PAIRS, "x86-64-v4-amx", "x86-64-v4-bf16", True, False),
        (AMX, "1", "x86-64-v4-amx", True, True),
        (AMX.replace("amxtile", ""), "1", "x86-64-v4-bf16", True, False),
        (AMX, "x86-64-v2", "x86-64-v2", False, False),
    ],
)
def test_level_by_processor_and_switch(
    features: str, switch: str, name: str | None, avx512_bf16: bool, amx_bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(levels, "machine", lambda: "x86_64")
    monkeypatch.setattr(levels, "features", lambda: frozenset(features.split()))
    monkeypatch.setenv(levels.SWITCH, switch)
    found = levels.level()
    assert (found and found.name) == name
    assert levels.has_avx512_bf16() == avx512_bf16
    assert levels.has_amx_bf16() == amx_bf16


@pytest.mark.parametrize(
    ("processor", "features", "switch", "halved"),
    [
        ("AMD EPYC 9755", f"{PAIRS} avx512vp2intersect", "1", True),
        ("AMD EPYC 9755", f"{PAIRS} avx512vp2intersect", "x86-64-v3", False),
        ("AMD EPYC 9654", PAIRS, "1", False),
        ("Intel(R) Xeon(R)", f"{AMX} avx512vp2intersect", "1", False),
    ],
)
def test_processors_of_whose_vectors_mkl_uses_a_half(
    processor: str, features: str, switch: str, halved: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(levels, "machine", lambda: "x86_64")
    monkeypatch.setattr(levels, "processor", lambda: processor)
    monkeypatch.setattr(levels, "features", lambda: frozenset(features.split()))
    monkeypatch.setenv(levels.SWITCH, switch)
    assert levels.mkl_halves_vectors() == halved


@pytest.mark.parametrize(
    ("offered", "switch", "name"),
    [
        ("", "1", "armv8-a"),
        ("dotprod", "1", "armv8-a-dotprod"),
        ("dotprod bf16", "1", "armv8-a-dotprod"),
        ("dotprod i8mm bf16", "1", "armv8-a-bf16"),
        ("dotprod i8mm bf16", "armv8-a", "armv8-a"),
    ],
)
def test_level_of_arm(offered: str, switch: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levels, "machine", lambda: "aarch64")
    monkeypatch.setattr(levels, "features", lambda: frozenset(offered.split()))
    monkeypatch.setenv(levels.SWITCH, switch)
    found = levels.level()
    assert found is not None
    assert found.name == name
    assert not levels.has_avx512_bf16()


def test_each_level_needs_what_the_next_does() -> None:
    for found in levels.LEVELS.values():
        for better, worse in pairwise(found):
            assert better.needs > worse.needs


def test_zero_switches_all_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(levels.SWITCH, "0")
    assert not levels.enabled()


@pytest.mark.parametrize(
    ("switch", "sentence"),
    [
        ("x86-64-v5", "did you mean 'x86-64-v"),
        ("yes", "choose from '0', '1'"),
        ("armv8-a", "choose from '0', '1'"),  # of another machine
    ],
)
def test_a_value_that_means_nothing_is_told(
    switch: str, sentence: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    best = levels.level()
    levels.level.cache_clear()
    monkeypatch.setenv(levels.SWITCH, switch)
    assert levels.level() == best
    assert levels.level() == best
    (line,) = (record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)
    assert f"ANYFORMER_NATIVE='{switch}' means nothing, and is ignored ({sentence}" in line
