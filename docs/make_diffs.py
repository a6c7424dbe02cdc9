"""Write what can be computed into the families' pages: `python docs/make_diffs.py [--check]`.

The difference to GPT-2, and the sizes of all presets.
"""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from anyformer import diff, preset
from anyformer.analysis import cache_bytes_per_token, part_costs

FAMILIES = Path(__file__).parent / "families"
BEGIN, END = "<!-- diff -->", "<!-- /diff -->"
_PLACE = re.compile(f"{BEGIN}\n.*?{END}", re.DOTALL)
_SIZE = re.compile(r"^\| `(?P<name>[\w.-]+)` \| [\d,]+ \|(?P<cache> [\d,]+ bytes \|)?", re.MULTILINE)


def shown(value: Any) -> str:
    """A field's value, as a cell of a table."""
    if value is None or value == ():
        return "-"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if isinstance(value, bool | int | str) else f"{value.kind} x {value.factor:g}"


def table(name: str) -> str:
    """What separates a preset from GPT-2, as a Markdown table."""
    rows = [f"| `{field}` | {shown(a)} | {shown(b)} |" for field, (a, b) in diff(preset("gpt2"), preset(name)).items()]
    return "\n".join([f"| | `gpt2` | `{name}` |", "| --- | --- | --- |", *rows])


def size(row: re.Match[str]) -> str:
    """The first cells of a line of a table of sizes: the weights, and the cache where the line has one."""
    config = preset(row["name"])
    cells = [f"`{row['name']}`", f"{sum(part.parameters for part in part_costs(config, 1)):,}"]
    if row["cache"]:
        cells.append(f"{cache_bytes_per_token(config):,} bytes")
    return f"| {' | '.join(cells)} |"


def filled(page: str) -> str:
    """The page with its table and its sizes as they should be; the head of the table names the preset."""
    name = re.search(r"\| `([\w.-]+)` \|\n\| --- ", page)
    if name is None:
        return page
    compared = _PLACE.sub(lambda _: f"{BEGIN}\n{table(name[1])}\n{END}", page)
    before, heading, sizes = compared.partition("## Sizes\n")
    return before + heading + _SIZE.sub(size, sizes)


def main() -> int:
    """Rewrite the pages, or with --check only say which of them are out of date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page is out of date")
    check = parser.parse_args().check
    stale: list[str] = []
    for path in sorted(FAMILIES.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        if filled(text) == text:
            continue
        stale.append(path.name)
        if not check:
            path.write_text(filled(text), encoding="utf-8")
    for name in stale:
        print(f"{name} {'is out of date' if check else 'written'}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
