"""Levels of processors that compiled code is made for, and the one that this machine uses."""

import logging
import os
import platform
import sys
from collections.abc import Sequence
from ctypes import CDLL, byref, c_int, c_long, c_size_t, sizeof
from functools import cache
from pathlib import Path
from typing import NamedTuple

from anyformer.errors import nearest, quote

SWITCH = "ANYFORMER_NATIVE"
"""An environment variable: 0 leaves all work to torch; the name of a `Level` leaves its betters out."""
SOURCES = Path(__file__).parents[1] / "kernels" / "cpu"
"""The folder of the C++ files, whose installed form has their headers' structures only."""
LIBRARIES = SOURCES / "lib"
"""The folder with a folder of libraries for each level."""
_log = logging.getLogger("anyformer")


class Level(NamedTuple):
    """Processors that run the same compiled code.

    Attributes:
        name: As in `SWITCH`, and of the folder of its libraries.
        base: GCC's ``-march``.
        features: Instructions beyond it, as GCC's ``-m`` names them.
        flags: More flags of the compiler.
    """

    name: str
    base: str
    features: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()

    @property
    def needs(self) -> frozenset[str]:
        """The features of the processor that its code uses, as `features` names them."""
        return frozenset(_BASES[self.base].split()) | {_plain(feature) for feature in self.features}


_V3 = "avx avx2 bmi1 bmi2 f16c fma movbe popcnt sse41 sse42 ssse3"
_BASES = {
    "armv8-a": "",
    "x86-64-v2": "popcnt sse41 sse42 ssse3",
    "x86-64-v3": _V3,
    "x86-64-v4": f"{_V3} avx512f avx512bw avx512cd avx512dq avx512vl",
}
_WIDE = ("-mprefer-vector-width=512",)  # clang would halve vectors that fill a register
_PAIRS = ("avx512vnni", "avx512bf16")
LEVELS = {
    "x86_64": (
        Level("x86-64-v4-amx", "x86-64-v4", (*_PAIRS, "amx-tile", "amx-bf16", "amx-int8"), _WIDE),
        Level("x86-64-v4-bf16", "x86-64-v4", _PAIRS, _WIDE),
        Level("x86-64-v4-vnni", "x86-64-v4", ("avx512vnni",), _WIDE),
        Level("x86-64-v3", "x86-64-v3"),
        Level("x86-64-v2", "x86-64-v2"),
    ),
    "aarch64": (
        Level("armv8-a-bf16", "armv8-a", ("dotprod", "i8mm", "bf16")),
        Level("armv8-a-dotprod", "armv8-a", ("dotprod",)),
        Level("armv8-a", "armv8-a"),
    ),
}
"""The levels of each kind of machine, the best first: Sapphire Rapids; Zen 4 and Cooper Lake; Cascade Lake and Ice
Lake; Haswell and Zen; all of the last fifteen years. Graviton 3 and Apple M2; Graviton 2 and Apple M1; all."""
EMULATED = Level("emulated", "x86-64-v4", _PAIRS, (*_WIDE, "-DEMULATED_AMX"))
"""AVX-512 computes what AMX would: for tests."""


def machine() -> str:
    """The kind of this machine's processor, as `LEVELS` names it."""
    name = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(name, name)


@cache
def processor() -> str:
    """The processor's name, for people."""
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        return names[0] if names else platform.machine()
    return platform.processor() or platform.machine()


def enabled() -> bool:
    """Whether compiled code may be used at all."""
    return os.environ.get(SWITCH, "1") != "0"


@cache
def features() -> frozenset[str]:
    """The features of the processor that the operating system lets programs use, such as ``avx512bf16``."""
    if sys.platform == "win32":
        return _windows_features()
    if sys.platform == "darwin":
        return frozenset(name for name in LEVELS["aarch64"][0].features if _apple_has(name))
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    words = next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), [])
    names = frozenset("dotprod" if word == "asimddp" else _plain(word) for word in words)
    return names - (frozenset() if _tiles_are_granted() else {"amxtile"})


def usable() -> Sequence[Level]:
    """The levels whose code this processor runs and `SWITCH` allows, the best first; `EMULATED` if it is asked for."""
    found = [level for level in LEVELS.get(machine(), ()) if level.needs <= features()]
    switch = os.environ.get(SWITCH)
    if switch == EMULATED.name:
        return [EMULATED, *found] if EMULATED.needs <= features() else found
    names = [level.name for level in found]
    return found[names.index(switch) :] if switch in names else found


@cache
def level() -> Level | None:
    """The level in use: the best that is installed, or that a checkout can compile; None: torch computes everything.

    Warns of a value of `SWITCH` that means nothing, which is ignored.
    """
    switch = os.environ.get(SWITCH) or "1"
    names = ["0", "1", EMULATED.name, *(each.name for each in LEVELS.get(machine(), ()))]
    if switch not in names:
        _log.warning("%s=%s means nothing, and is ignored (%s).", SWITCH, quote(switch), nearest(switch, names))
    is_checkout = any(SOURCES.glob("*.cpp"))
    return next((each for each in usable() if is_checkout or (LIBRARIES / each.name).is_dir()), None)


def has(feature: str) -> bool:
    """Whether the level in use has a feature, as `Level.features` names it."""
    found = level()
    return found is not None and feature in found.features


def has_avx512_bf16() -> bool:
    """Whether there are AVX-512's dot products of bfloat16 pairs."""
    return has("avx512bf16")


def mkl_halves_vectors() -> bool:
    """Whether MKL, torch's library for float32, uses half of the width of the processor's vectors: on AMD's Zen 5."""
    return "avx512vp2intersect" in features() and processor().startswith("AMD") and has_avx512_bf16()


def has_amx_bf16() -> bool:
    """Whether there are Intel's matrix instructions for bfloat16, or they are emulated."""
    return has("amx-bf16") or level() == EMULATED


def _plain(feature: str) -> str:
    """A feature's name without what Linux, GCC and Zig write differently."""
    return feature.replace("_", "").replace("-", "").replace(".", "")


def _tiles_are_granted() -> bool:
    """Whether Linux lets this process use AMX's tiles: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)."""
    if machine() != "x86_64":
        return False
    call = CDLL(None).syscall
    call.restype = c_long
    return call(c_long(158), c_long(0x1023), c_long(18)) == 0


def _apple_has(feature: str) -> bool:
    """Whether macOS says that the processor has a feature of ARM's (`sysctl hw.optional.arm.FEAT_...`)."""
    name = {"dotprod": "DotProd"}.get(feature, feature.upper())
    value, size = c_int(), c_size_t(sizeof(c_int))
    missing = CDLL(None).sysctlbyname(f"hw.optional.arm.FEAT_{name}".encode(), byref(value), byref(size), None, 0)
    return not missing and bool(value.value)


def _windows_features() -> frozenset[str]:
    """The features of a level, where Windows says that AVX2 is there (PF_AVX2_INSTRUCTIONS_AVAILABLE)."""
    from ctypes import windll  # pyright: ignore[reportAttributeAccessIssue]

    has_avx2 = windll.kernel32.IsProcessorFeaturePresent(40)
    return frozenset(_BASES["x86-64-v3" if has_avx2 else "x86-64-v2"].split())
