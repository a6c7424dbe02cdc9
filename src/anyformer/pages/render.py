"""Rendering of offline pages from templates, a style and a script that they share."""

import time
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from anyformer import __version__, limits
from anyformer.atomic import writing
from anyformer.errors import UserError

_MARK = b'<meta name="generator" content="anyformer'
"""Mark in the head of the pages that this library writes."""


def require_page(path: Path) -> None:
    """Raise UserError for a file that is no page of ours, and would be lost if it were replaced by one."""
    with writing(path, ValueError):
        try:
            with limits.open_file(path) as file:
                if _MARK in file.read(4096):
                    return
        except FileNotFoundError:
            return
    raise UserError(f"{path} is there already, and no page of anyformer's: name another file, or remove it.")


def render(template: str, values: Mapping[str, Any], *packages: str) -> str:
    """Render a page of the files of packages, which may extend those of this one. All texts in it are escaped.

    Args:
        packages: where its file is, and those that it includes; a file style.css that is there, too, is added to the
            style of all pages.
    """
    folders = tuple(dict.fromkeys((*packages, __package__ or "")))
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
            script=Markup((files(__package__ or "") / "charts.js").read_text(encoding="utf-8")),
        )
    )


@cache
def _environment(folders: tuple[str, ...]) -> jinja2.Environment:
    """Templates of packages. Compiling them takes longer than rendering, and a run renders its report often."""

    def read(name: str) -> str | None:
        pages = (files(folder) / name for folder in folders)
        return next((file.read_text(encoding="utf-8") for file in pages if file.is_file()), None)

    return jinja2.Environment(
        loader=jinja2.FunctionLoader(read), autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined
    )
