"""Features of the processor, and whether compiled code is enabled."""

import os
import platform
from functools import cache
from pathlib import Path

SWITCH = "ANYFORMER_NATIVE"
"""An environment variable; 0 leaves all work to torch. For tests, `emulated` computes AMX's instructions with AVX-512,
and one of `BASELINES` compiles for such a processor."""
BASELINES = ("x86-64", "x86-64-v3")
"""Values of GCC's ``-march``: SSE2 only, and AVX2."""


def enabled() -> bool:
    """Whether compiled code may be used at all."""
    return os.environ.get(SWITCH, "1") != "0"


@cache
def has_amx_bf16() -> bool:
    """Whether there are Intel's matrix instructions for bfloat16, or they are emulated."""
    return emulates_amx() or "amx_bf16" in flags().split()


@cache
def has_avx512_bf16() -> bool:
    """Whether there are AVX-512's dot products of bfloat16 pairs."""
    return "avx512_bf16" in flags().split() and os.environ.get(SWITCH) not in BASELINES


def emulates_amx() -> bool:
    """Whether AVX-512 is to compute what AMX would."""
    return os.environ.get(SWITCH) == "emulated" and "avx512_bf16" in flags().split()


def flags() -> str:
    """The processor's features, as Linux lists them; elsewhere its name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(next((line for line in lines if line.startswith(name)), "") for name in ("flags", "Features"))
