"""Symbols of the libraries in wheels: they export only functions that Python calls, and need only C's library.

python .ci/symbols.py WHEEL ...
"""

import io
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

from elftools.elf.elffile import ELFFile

SOURCES = Path(__file__).parents[1] / "src/anyformer/kernels/cpu"
NEEDED = {"libc.so.6", "libm.so.6", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}


def declared() -> set[str]:
    """The names behind EXPORTED in the sources."""
    return {
        name
        for path in (*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h"))
        for name in re.findall(r"\bEXPORTED\b[^(;{]*?\b(\w+)\(", path.read_text().replace("__attribute__((used))", ""))
    }


def stray(library: bytes, allowed: set[str]) -> Iterator[str]:
    """Symbols that a library exports and should not, and libraries that it should not need."""
    elf = ELFFile(io.BytesIO(library))
    for symbol in elf.get_section_by_name(".dynsym").iter_symbols():
        if (
            symbol["st_shndx"] != "SHN_UNDEF"
            and symbol["st_info"]["bind"] != "STB_LOCAL"
            and symbol.name not in allowed
        ):
            yield symbol.name
    for tag in elf.get_section_by_name(".dynamic").iter_tags("DT_NEEDED"):
        if tag.needed not in NEEDED:
            yield tag.needed


def main() -> int:
    """Print what is stray; the exit status is 1 if anything is."""
    allowed, found = declared(), 0
    for wheel in sys.argv[1:]:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.endswith(".so") and "macosx" not in wheel]
            strays = {name: sorted(stray(archive.read(name), allowed)) for name in names}
        for name, symbols in strays.items():
            if symbols:
                print(f"{wheel}: {name}: {', '.join(symbols)}")
                found = 1
        print(f"{Path(wheel).name}: {len(names)} libraries looked at")
    return found


if __name__ == "__main__":
    sys.exit(main())
