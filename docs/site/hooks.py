"""What mkdocs does beside its plugins: the reference, the notebooks, and the files outside of docs/ that pages link to.

Pages in docs/ can be read on a code host as they are; links from them to files of the repository lead, on the site, to
a page that shows the file.
"""

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent))

import api
import docstrings
import formulas
import notebooks

ROOT = Path(__file__).parents[2]
_PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md", "SECURITY.md": "reporting.md"}
"""Files of the repository that are pages, and their place on the site."""
_WEIGHTS = {
    "reference/": 0.1,
    "decisions/": 0.1,
    "changelog": 0.02,
    "measurements/": 0.2,
    "what-did-not-help": 0.1,
    "testing": 0.2,
    "tutorials/": 0.7,
    "scaling": 0.7,
    "adding/": 0.2,
    "training/": 1.5,
    "finetuning/settings": 0.5,
}
_LANGUAGES = {".py": "python", ".sh": "sh", ".yml": "yaml", ".toml": "toml", ".cpp": "cpp", ".h": "cpp"}
_LINK = re.compile(r"(?<=\]\()(?P<path>[^)#\s:]+)(?P<anchor>#[^)\s]*)?(?=\))")
_SOURCE = re.compile(r"\]\((?:\.\./)*((?:src|benchmarks|tests)/[\w./-]+\.\w+|Containerfile)")
_FENCE = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Completes the navigation with what is generated, and typesets formulas."""
    config.markdown_extensions.append(formulas.FormulaExtension())  # pyright: ignore[reportArgumentType]
    nav: list[dict[str, Any]] = config.nav or []
    for entry in nav:
        for title, below in entry.items():
            if title == "Reference":
                entry[title] = [*below, *_reference_nav()]
            elif title == "Learn":
                entry[title] = [*(page.uri for page in notebooks.pages()), *below]
    config.nav = nav
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are generated."""
    for page in notebooks.pages():
        files.append(File.generated(config, page.uri, content=page.markdown))
        for uri, content in page.pictures.items():
            files.append(File.generated(config, uri, content=content))
    for name, uri in _PAGES.items():
        files.append(File.generated(config, uri, content=(ROOT / name).read_text(encoding="utf-8")))
    linked = {name for file in files.documentation_pages() for name in _SOURCE.findall(file.content_string)}
    for name in sorted(linked):
        files.append(File.generated(config, _source_uri(name), content=_source_page(name)))
    for page in api.pages():
        files.append(File.generated(config, page.uri, content=_reference_page(page)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to files outside of docs/ lead to their pages; the front page and code have the whole width."""
    if page.file.src_uri == "index.md" or page.file.src_uri.startswith("source/"):
        page.meta["hide"] = ["navigation", "toc"]
    page.meta.setdefault("search", {"boost": _boost(page.file.src_uri)})
    markdown = markdown.replace("<!-- pages -->", _reference_list())
    folder = posixpath.dirname(page.file.src_uri)
    origin = "" if page.file.src_uri in _PAGES.values() else f"docs/{folder}"
    if folder == notebooks.PLACE:
        origin = notebooks.FOLDER.name

    def moved(link: re.Match[str]) -> str:
        if folder == notebooks.PLACE and files.get_file_from_path(posixpath.join(folder, link["path"])) is not None:
            return link["path"]  # a picture that the notebook drew
        path = posixpath.normpath(posixpath.join(origin, link["path"]))
        if path in _PAGES:
            target = _PAGES[path]
        elif posixpath.dirname(path) == notebooks.FOLDER.name:
            target = f"{notebooks.PLACE}/{Path(path).stem}.md"
        elif path == "README.md":  # the front page stands for it, and has other headings
            return posixpath.relpath("index.md", folder or ".")
        elif path.startswith("docs/"):
            target = path.removeprefix("docs/")
        else:
            target = _source_uri(path)
        if files.get_file_from_path(target) is None:  # a folder: what is in it is in the navigation
            inside = sorted(
                file.src_uri for file in files.documentation_pages() if file.src_uri.startswith(f"{target}/")
            )
            target = inside[0] if inside else target
        return posixpath.relpath(target, folder or ".") + (link["anchor"] or "")

    parts = _FENCE.split(markdown)
    return "".join(part if part.startswith("```") else _LINK.sub(moved, part) for part in parts)


def _boost(uri: str) -> float:
    """The weight of a page in the search: who looks for a word wants to be told how before which class it is."""
    return next((weight for start, weight in _WEIGHTS.items() if uri.startswith(start)), 1.0)


def on_post_page(output: str, *, page: Page, config: MkDocsConfig) -> str:
    """Shapes of tensors are made readable, when cross-references have become links."""
    return docstrings.readable_shapes(output) if page.file.src_uri.startswith("reference/") else output


def _reference_nav() -> list[dict[str, Any]]:
    by_kind: dict[str, dict[str, list[dict[str, str]]]] = {"anyformer": {}, "modules": {}}
    for page in api.pages():
        sections = by_kind["modules" if page.module else "anyformer"]
        sections.setdefault(page.section, []).append({page.title: page.uri})
    return [{section: below} for sections in by_kind.values() for section, below in sections.items()]


def _reference_page(page: api.Page) -> str:
    if not page.module:
        options = f"heading_level: 1\n      heading: anyformer.{page.title}\n      toc_label: {page.title}\n"
        return f"::: {page.objects[0]}\n    options:\n      {options}"
    name = f"anyformer.{page.title}".replace(".", ".<wbr>")  # where a narrow screen may break it
    lines = [f"# {name}\n\n::: {page.module}\n    options:\n      members: false\n"]
    lines += ["      show_root_heading: false\n      show_root_toc_entry: false\n"]
    if page.elsewhere:
        lines += [
            "\nAlso here: " + ", ".join(f"[`{path.rpartition('.')[2]}`][{path}]" for path in page.elsewhere),
            ".\n",
        ]
    return "".join(lines) + "\n" + "\n".join(f"::: {path}\n" for path in page.objects)


def _reference_list() -> str:
    lines: list[str] = []
    section = None
    for page in api.pages():
        if page.section != section:
            section = page.section
            lines.append(f"\n## {section}\n\n| | |\n| --- | --- |")
        uri = posixpath.relpath(page.uri, "reference")
        about = page.about.replace("|", "\\|")
        lines.append(f"| [`{'' if page.module else 'af.'}{page.title}`]({uri}) | {about} |")
    return "\n".join(lines) + "\n"


def _source_uri(name: str) -> str:
    return f"source/{name}.md"


def _source_page(name: str) -> str:
    text = (ROOT / name).read_text(encoding="utf-8")
    language = _LANGUAGES.get(Path(name).suffix, "text")
    return f"---\nsearch:\n  exclude: true\n---\n\n# {Path(name).name}\n\n`{name}`\n\n````{language}\n{text}````\n"
