"""Precisions that were asked for, and the ones that are chosen."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from anyformer.errors import UserError
from anyformer.training import precision
from anyformer.training.precision import choose_compilation, choose_precision


def test_precision_follows_orders():
    assert choose_precision("cpu", "float32").dtype == torch.float32
    asked = choose_precision("cpu", "bfloat16")
    assert str(asked) == "bfloat16 on cpu (as asked)"
    with asked.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "seconds", [{"float32": 2.0, "bfloat16": 1.0}, {"float32": 1.0, "bfloat16": 2.0}, {"float32": 1.0}]
)
def test_precision_says_why(seconds: dict[str, float], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(precision, "product_seconds", lambda products: seconds)
    chosen = choose_precision("cpu", None)
    gain = seconds["float32"] / seconds.get("bfloat16", math.inf)
    name = "bfloat16" if gain > 1 else "float32"
    said = f"bfloat16 products run {gain:.1f} times as fast on this CPU"
    assert (
        str(chosen) == f"{name} on cpu ({said if 'bfloat16' in seconds else 'this CPU has no fast bfloat16 products'})"
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_nothing_is_measured_where_a_dtype_is_asked_for(dtype: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(precision, "product_seconds", None)
    assert choose_precision("cpu", dtype, lambda: pytest.fail("products are counted")).name == dtype
    assert choose_precision("cpu", None, quantized=True).name == "float32"


def test_quantized_weights_are_trained_on_in_float32_on_a_cpu():
    assert choose_precision("cpu", None, quantized=True).name == "float32"
    assert choose_precision("cpu", "bfloat16", quantized=True).name == "bfloat16"


@pytest.mark.parametrize("device", ["toaster", "cuda:99", "xpu", "meta"])
def test_an_absent_device_is_refused(device: str):
    with pytest.raises(UserError, match=f"--device {device} can't be used"):
        choose_precision(device, "float32")


def test_tpus_are_asked_for_by_name(monkeypatch: pytest.MonkeyPatch):
    """Their library is not here, so the device is a stand-in."""
    with pytest.raises(UserError, match="--device tpu can't be used: torch-tpu is not installed"):
        choose_precision("tpu", None)
    tpu: Any = SimpleNamespace(type="tpu")
    monkeypatch.setattr(precision, "_device", lambda name: tpu)
    assert choose_precision("tpu", None).reason == "TPUs multiply in bfloat16"
    assert choose_precision("tpu", "float32").name == "float32"
    assert choose_compilation(None, tpu) == (False, "not compiled: no gain is proved on TPUs")
    assert choose_compilation(True, tpu)[0]


def test_xla_compiles_by_itself():
    xla: Any = SimpleNamespace(type="xla")
    assert choose_compilation(None, xla) == (False, "compiled by XLA")
    with pytest.raises(UserError, match="--compile is not for --engine xla"):
        choose_compilation(True, xla)
