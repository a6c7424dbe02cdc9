"""Record the first minutes with anyformer as an animated picture: `python docs/make_recording.py`.

Runs the commands below in an empty folder and draws what they printed, when they printed it; waits are shortened, and
lines are left out where it says "...". The picture moves once and then shows everything; where motion isn't wanted it
doesn't move.
"""

import argparse
import re
import shlex
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement, tostring

PICTURE = Path(__file__).parent / "recording.svg"
COMMANDS = [
    "anyformer train",
    "anyformer generate runs/llama-nano-1 'def read(' --temperature 0.6 --seed 1",
]
COLUMNS, LONGEST_SAMPLE = 84, 8
_WAIT, _TYPING = 0.7, 0.045
"""Seconds: the longest wait between two lines, and that for a letter that is typed."""
_LABEL = re.compile(r"[a-z]+ +(?<=^.{11})(?=\S)")
"""What a line begins with, in a column of its own."""
_LINE, _LETTER, _MARGIN, _BAR = 20, 7.85, 24, 38
_STYLE = """
svg { --paper: #ffffff; --edge: #d9d6cf; --ink: #1d1f23; --soft: #6d727b; --label: #2a60a3; --prompt: #c9541d; }
@media (prefers-color-scheme: dark) {
  svg { --paper: #16181d; --edge: #32363e; --ink: #e8e6e1; --soft: #8b919b; --label: #8cb8ec; --prompt: #f08a57; }
}
.paper { fill: var(--paper); stroke: var(--edge); }
.dot { fill: var(--edge); }
text { fill: var(--ink); white-space: pre; }
text { font: 13px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.label { fill: var(--label); }
.prompt { fill: var(--prompt); font-weight: 700; }
.command { font-weight: 600; }
.soft { fill: var(--soft); }
@media (prefers-reduced-motion: no-preference) {
  .line { animation: appear 0.01s both; }
  .command { animation: type both; }
}
@keyframes appear { from { opacity: 0; } }
@keyframes type { from { clip-path: inset(0 100% 0 0); } to { clip-path: inset(0 0 0 0); } }
"""


@dataclass(frozen=True)
class Line:
    """A line of the terminal."""

    seconds: float
    """When it appeared, from the start of the recording."""
    text: str
    kind: str = "output"


def run(command: str, folder: Path) -> list[tuple[float, str]]:
    """What a command prints, and after how many seconds. Raises CalledProcessError if it fails."""
    arguments = [sys.executable, "-m", "anyformer", *shlex.split(command)[1:]]
    lines: list[tuple[float, str]] = []
    start = time.monotonic()
    with subprocess.Popen(arguments, cwd=folder, stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:
        assert process.stdout is not None
        lines += ((time.monotonic() - start, line.rstrip("\n")) for line in process.stdout)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return lines


def shortened(lines: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """The lines without most of those that report progress, and with the beginning of a long sample."""
    progress = [index for index, (_, text) in enumerate(lines) if re.match(r"training +\d+%", text)]
    kept_progress = {progress[len(progress) * part // 3] for part in range(3)} | {progress[-1]} if progress else set()
    kept: list[tuple[float, str]] = []
    plain = 0
    for index, (seconds, text) in enumerate(lines):
        is_plain = _LABEL.match(text) is None
        plain = plain + 1 if is_plain else 0
        if is_plain and plain > LONGEST_SAMPLE:
            text = "..."
        if (index in progress and index not in kept_progress) or (kept and text == kept[-1][1] == "..."):
            continue
        kept.append((seconds, text))
    return kept


def wrapped(text: str, columns: int) -> list[str]:
    """A line as lines that are no longer: what has a label goes on below its text, all other is cut."""
    label = _LABEL.match(text)
    hanging = " " * len(label[0]) if label else ""
    return textwrap.wrap(text, columns, subsequent_indent=hanging) if label else [text[:columns]]


def screen(outputs: Sequence[tuple[str, Sequence[tuple[float, str]]]]) -> list[Line]:
    """The recording: commands as they are typed, and what each printed."""
    lines: list[Line] = []
    now = 0.4
    for command, printed in outputs:
        lines.append(Line(now, command, "command"))
        now += len(command) * _TYPING + 0.3
        before = 0.0
        for seconds, text in printed:
            now += min(seconds - before, _WAIT)
            before = seconds
            lines += (Line(now, part) for part in wrapped(text, COLUMNS) or [""])
        lines.append(Line(now, ""))
        now += 1.0
    return lines[:-1]


def draw(lines: Sequence[Line]) -> str:
    """The recording as SVG."""
    width, height = COLUMNS * _LETTER + 2 * _MARGIN, len(lines) * _LINE + _BAR + _MARGIN
    size = {"viewBox": f"0 0 {width:g} {height:g}", "width": f"{width:g}", "height": f"{height:g}"}
    svg = Element("svg", {"xmlns": "http://www.w3.org/2000/svg", **size, "role": "img", "aria-labelledby": "title"})
    SubElement(svg, "title", {"id": "title"}).text = "A terminal: " + ", ".join(
        line.text for line in lines if line.kind == "command"
    )
    SubElement(svg, "style").text = _STYLE
    frame = {"x": "0.5", "y": "0.5", "width": f"{width - 1:g}", "height": f"{height - 1:g}", "rx": "10"}
    SubElement(svg, "rect", {"class": "paper", **frame})
    for place in range(3):
        SubElement(svg, "circle", {"class": "dot", "cx": f"{_MARGIN + 5 + 18 * place}", "cy": "19", "r": "5"})
    for number, line in enumerate(lines):
        _draw_line(svg, line, _BAR + _LINE * (number + 0.8))
    return tostring(svg, encoding="unicode").replace("><", ">\n<").replace(">\n<tspan", "><tspan") + "\n"


def _draw_line(svg: Element, line: Line, y: float) -> None:
    place = {"x": f"{_MARGIN}", "y": f"{y:g}"}
    delay = f"animation-delay: {line.seconds:.2f}s"
    if line.kind == "command":
        SubElement(svg, "text", {"class": "line prompt", **place, "style": delay}).text = "$"
        seconds, letters = len(line.text) * _TYPING, len(line.text)
        typing = f"{delay}; animation-duration: {seconds:.2f}s; animation-timing-function: steps({letters})"
        place["x"] = f"{_MARGIN + 2 * _LETTER:g}"
        SubElement(svg, "text", {"class": "command", **place, "style": typing}).text = line.text
        return
    if not line.text:
        return
    label = _LABEL.match(line.text)
    text = SubElement(svg, "text", {"class": "line soft" if line.text == "..." else "line", **place, "style": delay})
    if label:
        SubElement(text, "tspan", {"class": "label"}).text = label[0]
        text[0].tail = line.text[label.end() :]
    else:
        text.text = line.text


def main() -> None:
    """Record, and write the picture."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outputs = [(command, shortened(run(command, Path(folder)))) for command in COMMANDS]
    PICTURE.write_text(draw(screen(outputs)), encoding="utf-8")


if __name__ == "__main__":
    main()
