"""Pages on runs: report.html in a run directory, and a page on several runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anyformer import atomic
from anyformer.pages.render import render, require_page
from anyformer.runs.listing import Run, Terms, read_run
from anyformer.runs.report.page import comparison, page

REPORT = "report.html"


def write_report(
    directory: Path, defaults: Mapping[str, Any], file: Path | None = None, terms: Terms | None = None
) -> Path:
    """Write a run's page anew, and return its path.

    Args:
        defaults: the default of each setting of a run; the page marks settings that differ.
        file: where to; None: report.html in the run directory.
        terms: how the page speaks of the run; None: as of one that trains on text.

    Raises:
        UserError: no such run directory, the file is there already and no such page, or the disk refuses. What was
            there before stays as it was.
    """
    run = read_run(directory)
    run.terms = terms or run.terms
    if file is not None:
        require_page(file)
    path = file or directory / REPORT
    atomic.write(path, render("page.html", page(run, defaults), __name__))
    return path


def write_comparison(runs: Sequence[Run], file: Path) -> Path:
    """Write a page with the curves of runs over each other. Raises UserError as `write_report`."""
    require_page(file)
    atomic.write(file, render("comparison.html", comparison(runs), __name__))
    return file
