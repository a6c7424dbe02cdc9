"""The notebooks as pages: as they are stored, with their outputs."""

import base64
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

FOLDER = Path(__file__).parents[2] / "notebooks"
PLACE = "tutorials"
"""Where they are on the site."""
_BADGE = re.compile(r"^\[!\[[^\]]*\]\(https?:[^)]*\)\]\([^)]*\)\n*", re.MULTILINE)
"""A picture from elsewhere that is a link: the site asks no other machine for anything."""
_FORMULA = re.compile(r"\$\$(?P<block>.+?)\$\$|\$(?P<inline>[^$\n]+)\$", re.DOTALL)
_FENCE = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Page:
    """A notebook as a page, and the pictures in it by their address."""

    uri: str
    markdown: str
    pictures: dict[str, bytes] = field(default_factory=dict[str, bytes])


def pages() -> list[Page]:
    """Those in notebooks/, in the order of their names; none where there is no such folder."""
    return [page(path.stem, json.loads(path.read_text(encoding="utf-8"))) for path in sorted(FOLDER.glob("*.ipynb"))]


def page(name: str, notebook: dict[str, Any]) -> Page:
    """A notebook as Markdown: text as it is, code as blocks of code, and below them what they showed."""
    cells: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            cells.append(_text(source))
            continue
        language, code = ("sh", source.partition("\n")[2]) if source.startswith("%%bash") else ("python", source)
        cells.append(f"```{language}\n{code}\n```")
        for output in cell.get("outputs", []):
            place = f"{name}/{len(pictures) + 1}"
            shown, picture = _output(output, place)
            pictures |= {f"{PLACE}/{place}.{kind}": content for kind, content in picture.items()}
            cells.append(shown)
    return Page(f"{PLACE}/{name}.md", _BADGE.sub("", "\n\n".join(filter(None, cells))) + "\n", pictures)


def _text(source: str) -> str:
    """Formulas are typeset, outside of code; what is folded is Markdown, too."""
    parts = _FENCE.split(source.replace("<details>", '<details markdown="1">'))
    return "".join(part if part.startswith("```") else _FORMULA.sub(_typeset, part) for part in parts)


def _output(output: dict[str, Any], place: str) -> tuple[str, dict[str, bytes]]:
    """An output as Markdown, and the content of its picture by the ending of the file's name."""
    data: dict[str, Any] = {kind: "".join(text) for kind, text in output.get("data", {}).items()}
    if output["output_type"] == "stream":
        return _plain("".join(output["text"])), {}
    for kind, ending in (("image/svg+xml", "svg"), ("image/png", "png")):
        if kind in data:
            content = data[kind].encode() if ending == "svg" else base64.b64decode(data[kind])
            return f'![What the code above draws]({place}.{ending}){{ .output loading="lazy" }}', {ending: content}
    if "text/html" in data:
        return f'<div class="output">{data["text/html"]}</div>', {}
    return _plain(data.get("text/plain", "")), {}


def _plain(text: str) -> str:
    return f"```{{ .text .output }}\n{text.rstrip()}\n```" if text.strip() else ""


def _typeset(formula: re.Match[str]) -> str:
    """LaTeX as MathML, which browsers show without a script."""
    if formula["block"] is not None:
        return convert(formula["block"], display="block")
    # In a span, as Markdown takes a line that begins with a formula for a block.
    return f"<span>{convert(formula['inline'])}</span>"
