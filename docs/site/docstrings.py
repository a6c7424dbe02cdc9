"""Docstrings as Markdown, and shapes as they are read."""

import re
from typing import Any

import api
import griffe

_COLONS = re.compile(r"^::\n|:(?=:$)", re.MULTILINE)
_NAME = re.compile(r"(?<![`\[])`(?P<name>[A-Za-z_][\w.]*)`(?!`)")
_TAGS = r"(?:<[^>]+>|\s)*"
_QUOTE = r"(?:['\"]|&#39;|&quot;)"
_ARRAY = re.compile(
    rf"(?P<dtype><span title=\"jaxtyping\.\w+\">\w+</span>)"
    rf"(?P<rest>{_TAGS}\[{_TAGS}<span title=\"torch\.Tensor\">Tensor</span>"
    rf"{_TAGS},{_TAGS}{_QUOTE}(?P<shape>[^'\"&]*){_QUOTE}{_TAGS}\])"
)
"""jaxtyping's annotation of a tensor, as mkdocstrings writes it."""


class Docstrings(griffe.Extension):
    """Rewrites docstrings as Markdown.

    An indented block after `::` is code there without the colons, and names of the reference become links.
    """

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Rewrites all docstrings of the library, when all names are known."""
        documented = {path for page in api.pages() for path in page.objects}
        self._rewrite(pkg, documented)

    def _rewrite(self, found: griffe.Object, documented: set[str]) -> None:
        if found.docstring is not None:
            text = _COLONS.sub("", found.docstring.value)
            found.docstring.value = _NAME.sub(lambda name: self._linked(name, found, documented), text)
        if found.is_class:
            _drop_undocumented(found)
        for member in found.members.values():
            if isinstance(member, griffe.Object):
                self._rewrite(member, documented)

    def _linked(self, name: re.Match[str], holder: griffe.Object, documented: set[str]) -> str:
        path = name["name"] if name["name"].startswith("anyformer.") else None
        if path is None:
            try:
                path = holder.resolve(name["name"])
            except griffe.NameResolutionError:
                return name[0]
        if path == holder.path or not ({path, path.rpartition(".")[0]} & documented):
            return name[0]
        return f"[{name[0]}][{path}]"


def _drop_undocumented(found: griffe.Object) -> None:
    """Leaves out what `__init__` keeps for itself: attributes that nothing describes."""
    init = found.members.get("__init__")
    if init is None or not init.lineno or not init.endlineno:
        return
    for name, member in list(found.members.items()):
        inside = init.lineno <= (member.lineno or 0) <= init.endlineno
        if member.is_attribute and inside and not member.has_docstring:
            del found.members[name]


def readable_shapes(html: str) -> str:
    """A page with ``Float[Tensor, "batch time"]`` as ``Float[batch, time]``, the shape in a color of its own."""

    def readable(array: re.Match[str]) -> str:
        shape = ", ".join(array["shape"].split())
        tags = "".join(re.findall(r"<[^>]+>", array["rest"].replace('<span title="torch.Tensor">Tensor</span>', "")))
        return f'{array["dtype"]}<span class="shape" title="Tensor">[{shape}]</span>{tags}'

    return _ARRAY.sub(readable, html)
