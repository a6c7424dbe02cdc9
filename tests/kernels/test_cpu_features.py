"""Features of the processor, and the switch of compiled code."""

from __future__ import annotations

import pytest

from anyformer.kernels import cpu_features


@pytest.mark.parametrize(
    ("flags", "switch", "enabled", "avx512_bf16", "amx_bf16"),
    [
        ("avx2", "1", True, False, False),
        ("avx2", "emulated", True, False, False),
        ("avx2 avx512_bf16", "1", True, True, False),
        ("avx2 avx512_bf16", "emulated", True, True, True),
        ("avx2 avx512_bf16", "x86-64-v3", True, False, False),
        ("avx2 avx512_bf16 amx_bf16", "1", True, True, True),
        ("avx2 avx512_bf16 amx_bf16", "0", False, True, True),
    ],
)
def test_features_by_processor_and_switch(
    flags: str, switch: str, enabled: bool, avx512_bf16: bool, amx_bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_features, "flags", lambda: flags)
    monkeypatch.setenv(cpu_features.SWITCH, switch)
    assert cpu_features.enabled() == enabled
    assert cpu_features.has_avx512_bf16.__wrapped__() == avx512_bf16
    assert cpu_features.has_amx_bf16.__wrapped__() == amx_bf16
