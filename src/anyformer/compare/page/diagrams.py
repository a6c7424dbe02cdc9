"""The diagram of each model of a comparison, in which what is not the same in all of them is lit."""

from markupsafe import Markup

from anyformer.compare.diagram import draw, panels
from anyformer.compare.page.models import config_of
from anyformer.compare.result import Comparison

_MOST = 8
"""Diagrams of a page."""


def diagrams(comparison: Comparison) -> list[dict[str, str | Markup]]:
    """Name and SVG of each; their texts are escaped."""
    configs = [(each.name, config_of(each)) for each in comparison.contenders]
    readable = [(name, config) for name, config in configs if config is not None]
    known = panels(readable) if readable else []
    return [
        {"name": panel.name, "svg": Markup(draw([panel], known, f"diagram-{number}"))}
        for number, panel in enumerate(known[:_MOST])
    ]
