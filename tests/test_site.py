"""The documentation site: it builds without a warning, has every public name, and requests nothing from elsewhere."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name
from types import ModuleType
from urllib.parse import unquote, urlsplit

import jupytext
import pytest
from hypothesis import given
from hypothesis import strategies as st

import anyformer as af
from tests.browser import Browse, Look, looks

ROOT = Path(__file__).parents[1]
SITE = ROOT / "docs" / "site"


def _script(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"site_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # for its dataclasses
    spec.loader.exec_module(module)
    return module


api, formulas, notebooks = (_script(SITE / f"{name}.py") for name in ("api", "formulas", "notebooks"))


def test_every_name_of_the_package_has_a_page() -> None:
    pages = {page.title: page for page in api.pages() if not page.module}
    assert set(pages) == set(af.__all__)
    for name, page in pages.items():
        value = getattr(af, name)
        if inspect.ismodule(value):  # a package that can be called: it is the function of its name
            value = getattr(import_module(f"{value.__name__}.{name}"), name)
        assert [resolve_name(path) for path in page.objects] == [value]


@pytest.mark.parametrize("page", [page for page in api.pages() if page.module], ids=lambda page: page.title)
def test_every_public_name_of_a_module_is_documented(page: object) -> None:
    module = import_module(page.module)
    exported = getattr(module, "__all__", None)
    names = exported or [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
    ]
    documented = {path.rpartition(".")[2] for path in [*page.objects, *page.elsewhere]}
    assert documented >= set(names)
    assert documented, "there is nothing on the page"


def test_modules_of_blocks_are_all_documented() -> None:
    modules = {page.title for page in api.pages() if page.module}
    blocks = {f"blocks.{path.stem}" for path in (ROOT / "src/anyformer/blocks").glob("[!_]*.py")}
    assert modules >= blocks | {"config", "model", "kernels", "generation", "checkpoint", "tokenizer", "evaluation"}


def _shown(formula: str) -> str:
    return " ".join(formulas.mathml(formula).itertext())


@pytest.mark.parametrize(
    ("text", "shown", "elements"),
    [
        ("softmax(q k^T / sqrt(head_dim)) v", "softmax ( q k T head_dim ) v", {"mfrac", "msqrt", "msup"}),
        (
            "(x - mean(x)) / sqrt(var(x) + eps) * weight + bias",
            "x − mean ( x ) var ( x ) + eps ⋅ weight + bias",
            {"mfrac"},
        ),
        ("input @ weight.T + bias", "input weight T + bias", {"msup"}),
        ("mean <- d mean + (1 - d) weights", "mean ← d mean + ( 1 − d ) weights", set()),
        ("max(|u - v| + margin, 0)", "max ( | u − v | + margin , 0 )", set()),
        ("theta^(-2i / head_dim)", "θ − 2 i head_dim", {"msup", "mfrac"}),
    ],
)
def test_formulas(text: str, shown: str, elements: set[str]) -> None:
    assert _shown(text) == shown
    assert {element.tag for element in formulas.mathml(text).iter()} >= elements


@pytest.mark.parametrize(
    "code",
    [
        "prompt + text",
        "openai-community/gpt2",
        "dtype='int8'",
        "model(tokens)",
        "batch_size=8",
        "python -m",
        "load(directory) -> Model",
        "act(x",
        "x * ",
        "{i} * 2",
        "(Hugging Face's name, our name, operation)",
        "a / / b",
        "[0 * 1",
    ],
)
def test_code_is_no_formula(code: str) -> None:
    with pytest.raises(formulas.NotAFormulaError):
        formulas.mathml(code)


_atoms = st.sampled_from(["x", "weight", "3", "head_dim", "mean(x)", "sqrt(eps)"])
_products = st.lists(_atoms, min_size=1, max_size=3).map(" * ".join)
_sums = st.lists(_products, min_size=1, max_size=3).map(" + ".join)


@given(_sums, _sums, _products)
def test_nothing_of_a_formula_is_lost(left: str, right: str, factor: str) -> None:
    """Fractions and roots take the place of signs and brackets; everything else is there, in its order."""
    text = f"({left}) / ({right}) * {factor}"
    kept = re.findall(r"[\w]+|[*+]", re.sub(r"sqrt\((\w+)\)", r"\1", text))
    shown = [token.replace("⋅", "*") for token in _shown(text).split() if token not in "()"]
    assert shown == kept
    fraction = next(formulas.mathml(text).iter("mfrac"))
    assert len(fraction) == 2


def _page_of(source: str) -> str:
    """The page of a notebook that is written as a program."""
    notebook = jupytext.reads(source, fmt="py:percent")
    return notebooks.page("drawn", json.loads(jupytext.writes(notebook, fmt="ipynb"))).markdown


def test_formulas_of_notebooks_are_typeset() -> None:
    found = _page_of("# %% [markdown]\n# of $d_k$ and\n# $x$:\n#\n# $$\\frac{1}{2}$$\n\n# %%\nprint('$1$')\n")
    assert found.count("<span><math") == 2
    assert '<math xmlns="http://www.w3.org/1998/Math/MathML" display="block"><mrow><mfrac>' in found
    assert "print('$1$')" in found
    for page in notebooks.pages():
        assert "$$" not in page.markdown


def test_notebooks_become_pages() -> None:
    source = """# %% [markdown]
# # A GPT from scratch
#
# [![Open in Colab](https://example.com/badge.svg)](https://example.com/notebook)
#
# With `anyformer`.

# %% tags=["install"]
# %pip install anyformer

# %%
x = 1

# a comment
print(x)

# %% language="bash" magic_args="-e"
# anyformer train  # two minutes
"""
    assert _page_of(source) == (
        "# A GPT from scratch\n\nWith `anyformer`.\n\n"
        "```python\n%pip install anyformer\n```\n\n"
        "```python\nx = 1\n\n# a comment\nprint(x)\n```\n\n"
        "```sh\nanyformer train  # two minutes\n```\n"
    )


def test_a_recording_is_what_was_printed() -> None:
    recording = _script(ROOT / "docs" / "make_recording.py")
    progress = [(float(step), f"training   {step}%  step {step}") for step in range(10, 100, 10)]
    sample = [(95.0, f"    line {number}") for number in range(20)]
    printed = [(1.0, "model      a <tiny> & long " + "x " * 50), *progress, (95.0, "sample"), *sample, (96.0, "")]
    lines = recording.screen([("anyformer train", recording.shortened(printed))])
    root = ElementTree.fromstring(recording.draw(lines))
    texts = ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts[:2] == ["$", "anyformer train"]
    assert texts[2].startswith("model      a <tiny> & long x x")
    assert texts[3].startswith("           x x")
    assert [text for text in texts if "%" in text] == [progress[place][1] for place in (0, 3, 6, 8)]
    assert [text for text in texts if "line" in text] == [text for _, text in sample[:7]]
    assert texts.count("...") == 1
    assert all(len(text) <= recording.COLUMNS for text in texts)
    times = [line.seconds for line in lines]
    assert times == sorted(times)
    assert times[-1] < 15


def test_the_recording_is_of_its_commands() -> None:
    recording = _script(ROOT / "docs" / "make_recording.py")
    root = ElementTree.parse(recording.PICTURE).getroot()
    texts = list(root.iter("{http://www.w3.org/2000/svg}text"))
    assert ["".join(node.itertext()) for node in texts if node.get("class") == "command"] == recording.COMMANDS
    labels = [node[0].text.strip() for node in texts if len(node)]
    assert labels[0] == "model"
    assert labels[-3:] == ["model", "report", "next"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built once as its reader builds it. Warnings end the build."""
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONWARNINGS": "ignore"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


class _Page(HTMLParser):
    """What a page refers to, and what can be referred to in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if values.get(name)}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag == "link" and values.get("rel") != "canonical" and "href" in values:
            self.loaded.append(values["href"])
        elif "src" in values:
            self.loaded.append(values["src"])


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, _Page]:
    """Every page of the site, parsed."""
    found = {path: _Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(found) > 100
    return found


def test_every_link_of_the_site_leads_somewhere(pages: dict[Path, _Page]) -> None:
    broken: list[str] = []
    for path, page in pages.items():
        for link in [*page.links, *page.loaded]:
            address = urlsplit(link)
            if address.scheme in ("http", "https", "mailto") and link in page.links:
                continue
            target = (path.parent / unquote(address.path)).resolve() if address.path else path
            target = target / "index.html" if target.is_dir() else target
            missing = address.scheme or not target.exists()
            fragment = unquote(address.fragment)
            if missing or (fragment and target in pages and fragment not in pages[target].anchors):
                broken.append(f"{path.name}: {link}")
    assert not broken


def test_every_name_has_its_place_on_the_site(site: Path, pages: dict[Path, _Page]) -> None:
    for page in api.pages():
        built = pages[(site / page.uri).with_suffix(".html")]
        assert built.anchors >= set(page.objects)
    fields = pages[site / "reference" / "config.html"].anchors
    assert {f"anyformer.config.block.AttentionConfig.{name}" for name in ("heads", "kv_heads", "qk_norm")} <= fields


def test_shapes_and_formulas_are_typeset(site: Path) -> None:
    text = (site / "reference/blocks/attention.html").read_text(encoding="utf-8")
    assert '<span class="shape" title="Tensor">[batch, keys, d_model]</span>' in text
    assert "Tensor</span>, <" not in text
    assert "batch queries d_model" not in text
    assert "batch keys d_model" not in text
    assert "<msqrt>" in text
    assert 'href="../config.html#anyformer.config.block.AttentionConfig"' in text


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    """Where the site is served."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@looks
def test_the_site_in_a_browser(browse: Browse, address: str, look: Look) -> None:
    """Search finds a name, nothing is wider than the window, and no other machine is asked for anything."""
    page = browse(f"{address}/index.html", look)
    for path in ("guide", "families/llama", "reference/blocks/attention", "measurements/training", "index"):
        page.goto(f"{address}/{path}.html", wait_until="load")
        assert page.evaluate("document.documentElement.scrollWidth") <= look.width, path
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(19, 21, 25)" if look.dark else "rgb(251, 250, 248)")
    assert page.evaluate("getComputedStyle(document.querySelector('h1')).fontFamily").startswith("Inter, system-ui")
    if look.phone:
        page.click("label.md-header__button[for=__search]")
    page.locator(".md-search__input").press_sequentially("RMSNorm")  # not fill: the theme reads the query at keyup
    page.wait_for_selector(".md-search-result__item a[href*='reference/blocks/norm.html']")


@pytest.mark.parametrize("share", [6, pytest.param(1, marks=pytest.mark.slow)])
def test_code_is_no_wider_than_its_place(share: int, browse: Browse, site: Path, address: str) -> None:
    """Nobody scrolls sideways to read a line of code in a window of 1280 pixels: on no page, or no sixth one."""
    page = browse(f"{address}/guide.html")
    uris = sorted(str(path.relative_to(site)) for path in site.rglob("*.html") if path.name != "404.html")
    # The page stays, with its styles, and is given the content of all others: loading each would take a minute.
    wide = page.evaluate(
        """async (uris) => {
          const place = document.querySelector(".md-main__inner"), wide = [];
          for (const uri of uris) {
            const text = await (await fetch(uri)).text();
            const other = new DOMParser().parseFromString(text, "text/html");
            const main = other.querySelector(".md-main__inner");
            if (!main) continue;  // a page of its own, such as an example
            main.querySelectorAll("img").forEach((image) => image.removeAttribute("src"));
            place.innerHTML = main.innerHTML;
            const blocks = [...place.querySelectorAll(".md-content pre > code")];
            const over = blocks.filter((code) => code.scrollWidth > code.clientWidth);
            wide.push(...over.map((code) => `${uri}: ${code.textContent.slice(0, 60)}`));
          }
          return wide;
        }""",
        uris[::share],
    )
    assert not wide, "\n".join(wide)


SEARCHES = {
    "learning rate": "training/optimization.html#learning-rate",
    "batch size": "training/optimization.html#batch-size",
    "ner": "finetuning/tasks.html#tagging-named-entities-ner-parts-of-speech",
    "install": "getting-started.html",
    "fine tune": "finetuning.html",
    "lora": "finetuning/lora.html",
    "perplexity": "evaluation.html",
    "gguf": "gguf.html",
    "resume": "training/resume.html",
}
"""What people look for, and where they want to be led first."""


@pytest.mark.slow
def test_search_leads_to_the_guide_also_from_disk(browse: Browse, site: Path) -> None:
    page = browse(f"{site.as_uri()}/index.html")
    found: dict[str, str] = {}
    for query in SEARCHES:
        page.locator(".md-search__input").fill("")
        page.locator(".md-search__input").press_sequentially(query)
        # A link has the words that its page was found by.
        link = page.locator(f".md-search-result__link[href*='h={query.replace(' ', '+')}']").first
        link.wait_for(state="attached")
        target = urlsplit(link.evaluate("(link) => link.href"))
        uri = target.path.removeprefix(f"{urlsplit(site.as_uri()).path}/")
        found[query] = uri + (f"#{target.fragment}" if target.fragment else "")
    assert {query: found[query] for query, wanted in SEARCHES.items() if not found[query].startswith(wanted)} == {}
