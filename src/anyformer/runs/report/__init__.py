"""Pages on runs: report.html in a run directory, and a page on several runs.

page         what the page on one run says
gains        what it says of fine-tuning
comparison   what the page on several runs says
charts       their curves, as numbers
formatting   numbers and settings as text
*.html, style.css, charts.js   the page itself

A page is one file that asks nothing of a network: style, script and numbers are in it. Every text comes from outside (a
sample, a path, a name) and is escaped by Jinja; a policy in the page forbids it to load anything.
"""

import time
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from anyformer import __version__, atomic, limits
from anyformer.errors import UserError
from anyformer.runs.listing import Run, Terms, read_run
from anyformer.runs.report.comparison import comparison
from anyformer.runs.report.page import page

REPORT = "report.html"
_MARK = b'<meta name="generator" content="anyformer'
"""What a page of ours has in its head."""


def write_report(
    directory: Path, defaults: Mapping[str, Any], file: Path | None = None, terms: Terms | None = None
) -> Path:
    """Write a run's page anew.

    Args:
        directory: the run directory.
        defaults: the default of each setting of a run; the page marks settings that differ.
        file: where to; None: report.html in the run directory.
        terms: how the page speaks of the run; None: as of one that trains on text.

    Returns:
        The page's path.

    Raises:
        UserError: no such run directory, the file is there already and no such page, or the disk refuses. What was
            there before stays as it was.
    """
    run = read_run(directory)
    run.terms = terms or run.terms
    path = file or directory / REPORT
    if file is not None:
        require_page(file)
    atomic.write(path, render("page.html", page(run, defaults)))
    return path


def write_comparison(runs: Sequence[Run], file: Path) -> Path:
    """Write a page with the curves of runs over each other. Raises UserError as `write_report`."""
    require_page(file)
    atomic.write(file, render("comparison.html", comparison(runs)))
    return file


def require_page(path: Path) -> None:
    """Raise UserError for a file that is no page of ours, and would be lost if it were replaced by one."""
    try:
        with limits.open_file(path) as file:
            if _MARK in file.read(4096):
                return
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be written: {getattr(error, 'strerror', None) or error}.") from error
    raise UserError(f"{path} is there already, and no page of anyformer's: name another file, or remove it.")


def render(template: str, values: Mapping[str, Any], *packages: str) -> str:
    """Render a page of the files of packages, which may extend those of this one. All texts in it are escaped.

    Args:
        template: name of its file.
        values: what it says.
        packages: where its file is, and those that it includes; a file style.css that is there, too, is added to the
            style of all pages.
    """
    folders = tuple(dict.fromkeys((*packages, __name__)))
    now = time.time()
    styles = [files(folder) / "style.css" for folder in reversed(folders)]
    return (
        _environment(folders)
        .get_template(template)
        .render(
            **values,
            version=__version__,
            written=round(now),
            when=time.strftime("%Y-%m-%d %H:%M", time.localtime(now)),
            style=Markup("".join(file.read_text(encoding="utf-8") for file in styles if file.is_file())),
            script=Markup((files(__name__) / "charts.js").read_text(encoding="utf-8")),
        )
    )


@cache
def _environment(folders: tuple[str, ...]) -> jinja2.Environment:
    """Templates of packages. Compiling them takes longer than rendering, and a run renders its report often."""

    def read(name: str) -> str | None:
        found = (files(folder) / name for folder in folders)
        return next((file.read_text(encoding="utf-8") for file in found if file.is_file()), None)

    return jinja2.Environment(
        loader=jinja2.FunctionLoader(read), autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined
    )
