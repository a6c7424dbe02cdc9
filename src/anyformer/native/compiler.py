"""The compiler of the libraries: for this machine, or with Zig for others.

``python -m anyformer.native.compiler`` compiles what has changed in a checkout; so does the first use of a library.
"""

import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from anyformer import atomic, processes
from anyformer.native import levels
from anyformer.native.levels import Level

_FLAGS = (
    *("-O2", "-g0", "-std=c++17", "-fvisibility=hidden"),
    *("-fno-math-errno", "-fno-trapping-math", "-fno-exceptions", "-fno-threadsafe-statics"),
    "-ffp-contract=fast",  # clang would contract within a statement only, and not across overloaded operators
)
_ZIG = processes.python("-m", "ziglang", "c++")


class Target(NamedTuple):
    """A system that libraries are made for.

    Attributes:
        zig: Zig's ``-target``, with the oldest version of the C library.
        tag: The platform of its wheels.
        suffix: Of its libraries' names.
    """

    machine: str
    zig: str
    tag: str
    suffix: str = ".so"


TARGETS = {
    "linux-x86_64": Target("x86_64", "x86_64-linux-gnu.2.28", "manylinux_2_28_x86_64"),
    "linux-aarch64": Target("aarch64", "aarch64-linux-gnu.2.28", "manylinux_2_28_aarch64"),
    "darwin-aarch64": Target("aarch64", "aarch64-macos.11.0", "macosx_11_0_arm64"),
    "windows-x86_64": Target("x86_64", "x86_64-windows-gnu", "win_amd64", ".dll"),
}
"""The systems that have wheels, by name and processor."""


def here() -> str:
    """The name of this system's target, which may be none of `TARGETS`."""
    return f"{platform.system().lower()}-{levels.machine()}"


SUFFIX = ".dll" if sys.platform == "win32" else ".so"
"""The extension of libraries on this system."""


def path_of(name: str, level: Level, suffix: str = SUFFIX) -> Path:
    """The path of a library, whether it is there or not."""
    return levels.LIBRARIES / level.name / f"{name}{suffix}"


def is_current(name: str, level: Level) -> bool:
    """Whether a library is there, and as new as its source and the headers are, where those are."""
    library, source = path_of(name, level), levels.SOURCES / f"{name}.cpp"
    sources = [source, *levels.SOURCES.glob("*.h")] if source.exists() else []
    return library.exists() and all(path.stat().st_mtime <= library.stat().st_mtime for path in sources)


def find_of_system(level: Level) -> str | None:
    """The path of ``$CXX``, or of the system's compiler; None where there is none that knows the level's processors."""
    paths = (processes.find(name) for name in (os.environ.get("CXX"), "g++", "clang++", "c++") if name)
    return next((path for path in paths if path and _knows(path, level)), None)


def find(level: Level) -> list[str]:
    """The command of the system's compiler, or of the one in the Python package `ziglang`; or raise OSError."""
    if path := find_of_system(level):
        return [path]
    if find_spec("ziglang") is not None:
        return list(_ZIG)
    raise OSError("there is no C++ compiler: install g++ or clang++, or run pip install ziglang")


@cache
def _knows(compiler: str, level: Level) -> bool:
    try:
        check_syntax(compiler, level, os.devnull)
    except (OSError, subprocess.SubprocessError):
        return False
    return True


def check_syntax(compiler: str, level: Level, source: str | Path) -> None:
    """Raise `subprocess.CalledProcessError` unless a compiler of the system knows the level and the source."""
    flags = [*_processor([compiler], level), *_FLAGS]
    processes.run([compiler, *flags, "-fsyntax-only", "-x", "c++", str(source)], timeout=300)


def compile_library(name: str, level: Level, target: str = "") -> None:
    """Compile a library, or replace it.

    Args:
        name: Of the source, without its extension.
        level: What it may use of the processor.
        target: One of `TARGETS`, for which Zig compiles; by default, this system.

    Raises:
        OSError: There is no compiler, or no place for the library.
        subprocess.CalledProcessError: The compiler refuses it; `stdout` says why.
    """
    compiler = list(_ZIG) if target else find(level)
    system = TARGETS.get(target or here())
    path = path_of(name, level, system.suffix if system else SUFFIX)
    with atomic.temporary_folder(path) as temporary:
        # Its own temporary files, too, are made there.
        changes: dict[str, str] = dict.fromkeys(("TMPDIR", "TMP", "TEMP"), str(temporary))
        compiled, linked = temporary / "new.o", temporary / path.name
        machine, processor = _system(compiler, system), _processor(compiler, level)
        position = [] if path.suffix == ".dll" else ["-fPIC"]
        # Linked as C++, Zig would compile its standard library first, for a minute, and no kernel calls it; linked for
        # a level, that of Windows' C, for each of them.
        linker = [*compiler[:-1], "cc"] if compiler == _ZIG else compiler
        # macOS writes the path of a library into it: that of this folder would be another each time.
        named = [f"-Wl,-install_name,{path.name}"] if (target or here()).startswith("darwin") else []
        for step in (
            [*compiler, *machine, *processor, *_FLAGS, *position, "-c", f"{name}.cpp", "-o", str(compiled)],
            [*linker, *machine, "-shared", "-s", *named, str(compiled), "-lm", "-o", str(linked)],
        ):
            processes.run(step, folder=levels.SOURCES, changes=changes)
        linked.replace(path)


def compile_all(target: str = "", chosen: Iterable[Level] = ()) -> None:
    """Compile all libraries that are not current, on all cores; raises as `compile_library`."""
    names = sorted(path.stem for path in levels.SOURCES.glob("*.cpp"))
    todo = [(name, level) for level in chosen for name in names if target or not is_current(name, level)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done in [pool.submit(compile_library, name, level, target) for name, level in todo]:
            done.result()


def reason(error: Exception) -> str:
    """One line: the compiler's first error, or its last line."""
    lines = str(getattr(error, "stdout", None) or error).strip().splitlines()
    return next((line for line in lines if "error" in line), lines[-1] if lines else type(error).__name__)


def _system(compiler: Sequence[str], system: Target | None) -> list[str]:
    """The flags of Zig that choose a system."""
    return ["-target", system.zig if system else "native"] if compiler == _ZIG else []


def _processor(compiler: Sequence[str], level: Level) -> list[str]:
    """The flags that choose a level; Zig has its own names of processors, and one flag for all features."""
    if compiler == _ZIG:
        base = "generic" if level.base == "armv8-a" else level.base
        machine = [f"-mcpu={'+'.join((base, *level.features)).replace('-', '_')}"]
    elif level.base == "armv8-a":
        machine = [f"-march={'+'.join((level.base, *level.features))}"]
    else:
        # In an order that suits the processor at hand; any of the level's runs it.
        machine = [f"-march={level.base}", *(f"-m{feature}" for feature in level.features), "-mtune=native"]
    return [*machine, *level.flags]


if __name__ == "__main__":
    compile_all(chosen=levels.usable()[:1])
