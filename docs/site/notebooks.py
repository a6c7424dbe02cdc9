"""The notebooks as pages: their sources, in jupytext's percent format, rendered without being run."""

import re
from dataclasses import dataclass
from pathlib import Path

from latex2mathml.converter import convert

FOLDER = Path(__file__).parents[2] / "notebooks"
PLACE = "tutorials"
"""Where they are on the site."""
_BADGE = re.compile(r"^\[!\[[^\]]*\]\(https?:[^)]*\)\]\([^)]*\)\n*", re.MULTILINE)
"""A picture from elsewhere that is a link: the site asks no other machine for anything."""
_CELL = re.compile(r"^# %%[ ]*(?P<kind>\[markdown\])?(?P<metadata>.*)$", re.MULTILINE)


_FORMULA = re.compile(r"\$\$(?P<block>.+?)\$\$|\$(?P<inline>[^$\n]+)\$", re.DOTALL)


@dataclass(frozen=True)
class Page:
    """A notebook as a page."""

    uri: str
    markdown: str


def pages() -> list[Page]:
    """Those in notebooks/, in the order of their names; none where there is no such folder."""
    sources = sorted(path for path in FOLDER.glob("*.py") if "# %% [markdown]" in path.read_text(encoding="utf-8"))
    return [Page(f"{PLACE}/{path.stem}.md", markdown(path.read_text(encoding="utf-8"))) for path in sources]


def markdown(source: str) -> str:
    """A percent script as Markdown: text cells as they are, code cells as blocks of Python."""
    parts = _CELL.split(source)
    cells: list[str] = []
    for kind, metadata, body in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        body = body.strip("\n")
        uncommented = "\n".join(re.sub(r"^# ?", "", line) for line in body.splitlines())
        if kind:
            cells.append(_FORMULA.sub(_typeset, uncommented))
        elif 'language="bash"' in metadata:
            cells.append(f"```sh\n{uncommented}\n```")
        elif body:
            cells.append(f"```python\n{re.sub(r'^# (?=[%!])', '', body, flags=re.MULTILINE)}\n```")
    return _BADGE.sub("", "\n\n".join(cells)) + "\n"


def _typeset(formula: re.Match[str]) -> str:
    """LaTeX as MathML, which browsers show without a script."""
    if formula["block"] is not None:
        return convert(formula["block"], display="block")
    # In a span, as Markdown takes a line that begins with a formula for a block.
    return f"<span>{convert(formula['inline'])}</span>"
