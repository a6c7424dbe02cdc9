"""Write what can be computed into the pages: `python docs/make_diffs.py [--check]`.

The difference of each family to GPT-2 or to its nearest relative, the sizes of all presets, a drawing of each family,
the examples of diagrams.md, and the number of model types on the first pages.
"""

import argparse
import re
import shlex
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from anyformer import diff, preset
from anyformer.analysis import cache_bytes_per_token, part_costs
from anyformer.cli.show import shown as describe
from anyformer.config import ExpertsConfig, OtherLayers, PositionConfig
from anyformer.families import ALIASES, PRESETS
from anyformer.families import FAMILIES as MODEL_TYPES
from anyformer.learn.diagram import draw, panels
from anyformer.spec import read_config

DOCS = Path(__file__).parent
FAMILIES = DOCS / "families"
BEGIN, END = "<!-- diff -->", "<!-- /diff -->"
_PLACE = re.compile(f"{BEGIN}\n.*?{END}", re.DOTALL)
_PRESETS = re.compile(r"\| \| `([\w.-]+)` \| `([\w.-]+)` \|\n\| --- ")
_EXAMPLE = re.compile(r"^anyformer diagram (.+) -o ([\w.-]+\.svg)$", re.MULTILINE)
_COUNT = re.compile(r"\[\d+ model types\]\(#families\)")
_SIZE = re.compile(r"^\| `(?P<name>[\w.-]+)` \| [\d,]+ \|(?P<cache> [\d,]+ bytes \|)?", re.MULTILINE)


def shown(value: Any) -> str:
    """A field's value, as a cell of a table."""
    if isinstance(value, ExpertsConfig | OtherLayers | PositionConfig):
        return describe(value)
    if value is None or value == ():
        return "-"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, bool | int | str):
        return str(value)
    if hasattr(value, "factor"):
        return f"{value.kind} x {value.factor:g}"
    said = ((each.name, getattr(value, each.name), each.default) for each in fields(value))
    return ", ".join(f"{name} {shown(part)}" for name, part, usual in said if part != usual)


def table(relative: str, name: str) -> str:
    """The difference of two presets, as a Markdown table."""
    rows = [
        f"| `{field}` | {shown(a)} | {shown(b)} |" for field, (a, b) in diff(preset(relative), preset(name)).items()
    ]
    return "\n".join([f"| | `{relative}` | `{name}` |", "| --- | --- | --- |", *rows])


def size(row: re.Match[str]) -> str:
    """The first cells of a line of a table of sizes: the weights, and the cache where the line has one."""
    config = preset(row["name"])
    cells = [f"`{row['name']}`", f"{sum(part.parameters for part in part_costs(config, 1)):,}"]
    if row["cache"]:
        cells.append(f"{cache_bytes_per_token(config):,} bytes")
    return f"| {' | '.join(cells)} |"


def filled(page: str) -> str:
    """The page with its table and its sizes as they should be; the head of the table names both presets."""
    names = _PRESETS.search(page)
    if names is None:
        return page
    compared = _PLACE.sub(lambda _: f"{BEGIN}\n{table(*names.groups())}\n{END}", page)
    before, heading, sizes = compared.partition("## Sizes\n")
    return before + heading + _SIZE.sub(size, sizes)


def family_picture(page: Path) -> str:
    """The drawing of a family: of its preset of the page's name, or of the one in its table. What is not as in GPT-2 is
    in color."""
    known = ALIASES.get(page.stem, page.stem)
    name = known if known in PRESETS else _PRESETS.findall(page.read_text(encoding="utf-8"))[0][1]
    (gpt2,), (drawn,) = (panels([(each, preset(each))]) for each in ("gpt2", name))
    return draw([drawn], [] if drawn == gpt2 else [gpt2, drawn])


def counted() -> dict[Path, str]:
    """The pages that say how many model types of Hugging Face's there are: all but our own."""
    link = f"[{len(MODEL_TYPES) - 1} model types](#families)"
    pages = (DOCS.parent / "README.md", DOCS / "index.md")
    return {page: _COUNT.sub(link, page.read_text(encoding="utf-8")) for page in pages}


def examples() -> dict[Path, str]:
    """The pictures of diagrams.md, as its commands draw them."""
    found: dict[Path, str] = {}
    for command, file in _EXAMPLE.findall((DOCS / "diagrams.md").read_text(encoding="utf-8")):
        models = [(name, read_config(name).config) for name in shlex.split(command)]
        found[DOCS / "diagrams" / file] = draw(panels(models))
    return found


def main() -> int:
    """Rewrite pages and pictures, or with --check only say which of them are out of date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file is out of date")
    check = parser.parse_args().check
    pages = sorted(FAMILIES.glob("*.md"))
    wanted = {page: filled(page.read_text(encoding="utf-8")) for page in pages} | counted() | examples()
    wanted |= {page.with_suffix(".svg"): family_picture(page) for page in pages}
    stale: list[str] = []
    for path, text in wanted.items():
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(path.name)
        if not check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
    for name in stale:
        print(f"{name} {'is out of date' if check else 'written'}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
