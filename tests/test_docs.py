"""The documentation is true: links lead somewhere, tables are current, code runs, command lines parse."""

import importlib.util
import io
import json
import pkgutil
import re
import shlex
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import pytest
import torch

import anyformer as af
from anyformer.analysis import part_costs
from anyformer.cli.main import COMMANDS, main
from anyformer.cli.options import Parser
from anyformer.families import ALIASES, FAMILIES, PRESETS
from anyformer.tasks import TASKS
from tests.finetuning.example_files import make as make_example_files

ROOT = Path(__file__).parents[1]
README, DOCS = ROOT / "README.md", ROOT / "docs"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
CURRENT_PAGES = [page for page in PAGES if page.name != "CHANGELOG.md"]
"""Those that don't name what is gone."""
FAMILY_PAGES = sorted((DOCS / "families").glob("*.md"))


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _fences(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def _prose(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", _prose(_read(page))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{target} does not exist"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", _read(linked), re.MULTILINE)
            assert anchor in map(_anchor, headings), f"{target}: there is no such heading"


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_paths_exist(page: Path) -> None:
    """Files of the repository that the prose names."""
    text = _read(page)
    made = set(re.findall(r'^```\w+ title="(.+)"$', text, re.MULTILINE))
    for path in re.findall(r"`((?:src|tests|docs|benchmarks)/[\w./-]+\.\w+)`", text):
        assert "NAME" in path or path in made or (ROOT / path).exists(), f"{path} does not exist"
    packages = "|".join(path.parent.name for path in (ROOT / "src" / "anyformer").glob("*/__init__.py"))
    for path in re.findall(rf"`((?:{packages})/[a-z0-9_/]+\.(?:py|cpp|h))`", text):
        assert (ROOT / "src" / "anyformer" / path).exists(), f"{path} does not exist"


def test_the_map_is_true() -> None:
    """The tree in the README has every package of the library, and nothing that does not exist."""
    tree = re.search(r"^src/anyformer/\n((?:  .*\n)+)((?:\S.*\n)+)", _read(README), re.MULTILINE)
    assert tree is not None
    inside, beside = (re.findall(r"^ *([\w./]+)", part, re.MULTILINE) for part in tree.groups())
    root = ROOT / "src" / "anyformer"
    for path in [*(root / name for name in inside if "." in name or "/" in name), *(ROOT / name for name in beside)]:
        assert path.exists(), f"{path} does not exist"
    assert {path.parent.name + "/" for path in root.glob("*/__init__.py")} <= set(inside)


@pytest.mark.parametrize("page", CURRENT_PAGES, ids=_name)
def test_names_exist(page: Path) -> None:
    """Names of the library that the pages use: `af.NAME`, and dotted names from `anyformer` on."""
    # What pages on adding add is run by tests/test_adding.py.
    text = _prose(_read(page)) if page.parent.name == "adding" else _read(page)
    for name in re.findall(r"\baf\.(\w+)", text):
        assert hasattr(af, name), f"there is no anyformer.{name}"
    for name in re.findall(r"`anyformer((?:\.\w+)+)(?:\([^`]*\))?`", text):
        pkgutil.resolve_name("anyformer" + name)
    for module, names in re.findall(r"^from (anyformer[\w.]*) import ([\w, ]+)$", text, re.MULTILINE):
        for name in names.split(", "):
            assert hasattr(import_module(module), name), f"there is no {module}.{name}"


OTHERS_FLAGS = {"--max-tokens", "--merge", "--no_local_rank"}
"""Of fairseq, llama.cpp and DeepSpeed."""


def _help_of(command: str) -> str:
    shown = io.StringIO()
    with redirect_stdout(shown), suppress(SystemExit):
        import_module(f"anyformer.cli.{command}").run(["--help"])
    return shown.getvalue()


def test_flags_exist() -> None:
    """Flags that the prose names are those of a command or of a benchmark."""
    known = set(OTHERS_FLAGS)
    programs = [*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "src" / "anyformer" / "cli").glob("*.py")]
    for text in [*map(_help_of, COMMANDS), *map(_read, programs)]:
        known |= set(re.findall(r"--[a-z][\w-]*", text))
    for page in CURRENT_PAGES:
        for flag in re.findall(r"`(--[a-z][\w-]*)", _prose(_read(page))):
            assert flag in known, f"{_name(page)}: there is no flag {flag}"


def test_benchmarks_take_these_flags() -> None:
    pages = [page for page in PAGES if page.parent.name != "adding"]  # what those add is run by tests/test_adding.py
    found = re.findall(r"python (benchmarks/\w+\.py)([^\n`#]*)", "".join(map(_read, pages)))
    assert found
    for path, arguments in found:
        text = _read(ROOT / path)
        for flag in re.findall(r"(--[a-z][\w-]*)", arguments.partition(" -- ")[0]):
            assert f'"{flag}"' in text, f"{path} has no flag {flag}"


@pytest.mark.parametrize("page", sorted((DOCS / "measurements").glob("[!R]*.md")), ids=_name)
def test_measurements_name_their_commit(page: Path) -> None:
    for section in re.split(r"^## ", _read(page), flags=re.MULTILINE)[1:]:
        assert re.search(r"`[0-9a-f]{7}`", section), f"{section.splitlines()[0]}: at which commit?"


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_diffs", DOCS / "make_diffs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", FAMILY_PAGES, ids=_name)
def test_tables_are_current(page: Path) -> None:
    script, text = _script(), _read(page)
    assert script.BEGIN in text
    table = text.partition(script.BEGIN)[2].partition(script.END)[0]
    assert re.search(r"^\| `[\w.]+` \| .+ \| .+ \|$", table, re.MULTILINE), "the table is empty"
    assert script.filled(text) == text, "run `python docs/make_diffs.py`"


@pytest.mark.parametrize("page", FAMILY_PAGES, ids=_name)
def test_every_family_shows_its_blocks(page: Path) -> None:
    assert f"]({page.stem}.svg)" in _read(page)
    assert _read(page.with_suffix(".svg")) == _script().family_picture(page), "run `python docs/make_diffs.py`"


def test_examples_of_diagrams_are_current() -> None:
    found = _script().examples()
    assert len(found) >= 4
    assert {path.name for path in (DOCS / "diagrams").iterdir()} == {path.name for path in found}
    for path, text in found.items():
        assert f"](diagrams/{path.name})" in _read(DOCS / "diagrams.md")
        assert _read(path) == text, "run `python docs/make_diffs.py`"


def test_a_stale_table_is_noticed() -> None:
    script, text = _script(), _read(DOCS / "families" / "llama.md")
    stale = text.replace("| `norm.kind` | layer | rms |", "| `norm.kind` | layer | layer |")
    stale = stale.replace(
        "| `llama-2-7b` | 6,738,415,616 | 524,288 bytes |", "| `llama-2-7b` | 7,000,000,000 | 1 bytes |"
    )
    assert "7,000,000,000" in stale
    assert "layer | layer" in stale
    assert script.filled(stale) == text


def test_every_family_and_preset_is_described() -> None:
    readme, pages = _read(README), {page.stem: _read(page) for page in FAMILY_PAGES}
    for family in FAMILIES.values():
        if family.presets:
            assert f"`model_type: {family.model_type}`" in pages[family.model_type]
            assert f"[`{family.model_type}`](docs/families/{family.model_type}.md)" in readme
    for alias, name in ALIASES.items():
        described = alias in pages or f"`{alias}`" in pages[PRESETS[name].model_type]
        assert described, f"{alias} has no page"
    for name in PRESETS:
        assert f"`{name}`" in readme, f"README does not mention {name}"
        assert any(f"| `{name}` |" in text for text in pages.values()), f"no page gives the size of {name}"
    initialization = _read(DOCS / "initialization.md")
    for name, config in PRESETS.items():
        rows = [
            line for line in initialization.splitlines() if line.startswith("|") and f"`{config.init.kind}`" in line
        ]
        wanted = {f"`{config.model_type}`", f"`{name}`"}
        assert any(wanted & set(re.findall(r"`[^`]+`", line.split("|")[1])) for line in rows), f"{name}: {config.init}"


def test_counts_in_prose_are_exact() -> None:
    def count(name: str, **changes: Any) -> str:
        return f"{sum(part.parameters for part in part_costs(af.preset(name, **changes), 16)):,}"

    bare = {"kind": "none", "transform": None, "bias": "none"}
    for page, shown in {
        "bert": count("bert-base", head={**bare, "pooler": "tanh"}),
        "distilbert": count("distilbert-base", head=bare),
    }.items():
        assert shown in _read(DOCS / "families" / f"{page}.md")


def test_numbers_of_model_types_are_current() -> None:
    for page, text in _script().counted().items():
        assert "model types](#families)" in text
        assert _read(page) == text, "run `python docs/make_diffs.py`"


def test_the_picture_is_true() -> None:
    root = ElementTree.parse(DOCS / "block.svg").getroot()
    texts = ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]
    models = [af.preset(name) for name in ("transformer-base", "gpt2", "bert-base", "t5-small", "llama-3.2-1b")]
    rows = {
        "encoder + decoder": [f"{c.encoder_layers} + {c.decoder_layers}" for c in models],
        "norm": [f"{c.norm.kind}, {c.norm.placement}" for c in models],
        "position": [c.position.kind for c in models],
        "feed-forward": [c.feed_forward.activation + (", gated" if c.feed_forward.gated else "") for c in models],
    }
    for heading, wanted in rows.items():
        place = max(index for index, text in enumerate(texts) if text == heading)
        assert texts[place + 1 : place + 6] == wanted
    place = max(index for index, text in enumerate(texts) if text == "attention")
    for text, config in zip(texts[place + 1 : place + 6], models, strict=True):
        assert text.startswith(f"{config.attention.heads} heads")
        assert ("scale 1" in text) == (config.attention.scale == 1.0)
        assert ("8 kv" in text) == (config.attention.kv_heads == 8)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the examples speak of: a trained run, a GGUF file, a sentence encoder, a text."""
    monkeypatch.chdir(tmp_path)
    text = "def main(): return x\nclass A: pass\nOnce upon a time there was a cat and a kitten.\n" * 200
    (tmp_path / "notes.txt").write_text(text)
    tokenizer = af.Tokenizer.train([text], "bpe:300")
    sizes: dict[str, Any] = {"d_model": 32, "vocab_size": tokenizer.vocab_size, "max_length": 64}
    decoder = af.preset("llama-nano", **sizes, decoder_layers=2, attention={"heads": 2, "kv_heads": 2, "head_dim": 16})
    torch.manual_seed(0)
    af.save(af.build(decoder), tmp_path / "runs" / "llama-nano-1" / "model", tokenizer=tokenizer)
    af.save_gguf(af.build(decoder), tmp_path / "model.gguf", tokenizer=tokenizer)
    tokenizer = af.Tokenizer.train([text], "wordpiece:200", special="masked")
    sizes["vocab_size"] = tokenizer.vocab_size
    encoder = af.preset("bert-tiny", **sizes, pooling={"kind": "mean", "normalize": True}, attention={"heads": 2})
    af.save(af.build(encoder), tmp_path / "sentence-encoder", tokenizer=tokenizer)
    return tmp_path


FINETUNING = [DOCS / "finetuning.md", *sorted((DOCS / "finetuning").glob("*.md"))]
"""Pages whose examples, commands too, run on files of their own."""


@pytest.fixture
def shorter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """The folder of fine-tuning's examples; makes an example a short run."""
    monkeypatch.chdir(tmp_path)
    make_example_files(tmp_path)
    # What takes the time of a run as short as these is left out.
    monkeypatch.setattr("anyformer.finetuning.measure._general_text", lambda *_: None)
    return lambda text: re.sub(r"(minutes|epochs)([= ])\d+", r"steps\g<2>2", text)


@pytest.mark.parametrize("page", [page for page in FINETUNING if _fences(_read(page), "python")], ids=_name)
def test_python_of_finetuning_runs(
    page: Path, shorter: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    namespace: dict[str, Any] = {"__name__": "docs"}
    for number, code in enumerate(_fences(_read(page), "python")):
        exec(compile(shorter(code), f"{_name(page)}, block {number + 1}", "exec"), namespace)
    capsys.readouterr()


@pytest.mark.slow
def test_commands_of_finetuning_run(shorter: Callable[[str], str], capsys: pytest.CaptureFixture[str]) -> None:
    ran: set[str] = set()
    text = "".join(fence for page in FINETUNING for fence in _fences(_read(page), "sh"))
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(shorter(line))
        assert words.pop(0) == "anyformer"
        if "--processes" not in words:
            assert main(words) == 0, f"{line}: {capsys.readouterr().err}"
            said = re.findall(r"^data +(\w+),", capsys.readouterr().out, re.MULTILINE)
            ran.update(said)
    assert ran >= set(TASKS)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page not in FINETUNING and _fences(_read(page), "python")], ids=_name
)
def test_python_runs(page: Path, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from anyformer.blocks.feed_forward import ACTIVATIONS
    from anyformer.blocks.norm import NORMS

    namespace: dict[str, Any] = {"__name__": "docs"}
    with patch.dict(ACTIVATIONS), patch.dict(NORMS):
        for number, code in enumerate(_fences(_read(page), "python")):
            exec(compile(code, f"{_name(page)}, block {number + 1}", "exec"), namespace)
    capsys.readouterr()
    if '"copy"' in _read(page):
        assert json.loads((workplace / "copy" / "config.json").read_text())["model_type"] == "llama"


class _UnderstoodError(Exception):
    """The arguments were understood; the work itself is not for here."""


def _command_lines() -> list[tuple[str, str]]:
    found: dict[str, str] = {}
    for page in (page for page in PAGES if page.parent.name != "adding"):  # see test_adding.py
        text = _read(page)
        lines = [line for fence in _fences(text, "sh") for line in fence.replace("\\\n", " ").splitlines()]
        lines = [part for line in lines for part in line.split("&&")] + re.findall(r"`(anyformer [^`]+)`", _prose(text))
        for line in lines:
            words = shlex.split(line, comments=True)
            if words and words[0] == "anyformer":
                found.setdefault(shlex.join(words[1:]), _name(page))
    return sorted(found.items())


@pytest.mark.parametrize(("line", "page"), _command_lines())
def test_command_lines_parse(line: str, page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command, *arguments = shlex.split(line)
    if command.startswith("-"):
        assert command in ("--help", "--version")
        return
    assert command in COMMANDS, f"{page}: there is no command {command}"
    if not arguments and command != "train":
        return  # a mention, in prose
    module, real = import_module(f"anyformer.cli.{command}"), Parser.values

    def given(*arguments: Any) -> Any:
        real(*arguments)
        raise _UnderstoodError

    monkeypatch.setattr(Parser, "values", given)
    with pytest.raises(SystemExit if "--help" in arguments else _UnderstoodError):
        module.run(arguments)


def test_command_lines_are_found() -> None:
    commands = {line.split()[0] for line, _ in _command_lines()}
    assert commands >= set(COMMANDS)


START_PAGES = [DOCS / "training.md", DOCS / "finetuning.md"]


@pytest.mark.parametrize("page", START_PAGES, ids=_name)
def test_a_start_page_fits_a_screen_and_leads_to_every_topic(page: Path) -> None:
    text = _read(page)
    assert len(text.split()) <= 320
    assert len(text.splitlines()) <= 60
    assert "```text\n" in text, "it shows no output"
    topics = set(re.findall(rf"\]\(({page.stem}/\w+\.md)\)", text))
    assert topics == {f"{page.stem}/{path.name}" for path in (DOCS / page.stem).glob("*.md")}
    assert len(topics) >= 4


GUIDES = sorted({*DOCS.glob("*.md"), *(DOCS / "training").glob("*.md"), *(DOCS / "finetuning").glob("*.md")})
_FIGURE = re.compile(
    r"\d[\d.,]* (?:ms|us|tokens/s|sentences/s|GB/s|[GT]FLOP/s|times as (?:fast|long|much))\b|\d% more tokens/s"
    r"|\b(?:half|quarters?|thirds?|fifths?|tenths?|0\.\d+) of (?:the|its|\w+'s) (?:time|speed)\b"
)


@pytest.mark.parametrize("page", [page for page in GUIDES if page.stem != "what-did-not-help"], ids=_name)
def test_guides_have_no_measurements(page: Path) -> None:
    """Speeds depend on a machine and a commit: docs/measurements has them, with both."""
    assert _FIGURE.findall(_prose(_read(page))) == []


def test_decisions_are_numbered() -> None:
    numbers = [int(path.name[:4]) for path in sorted((DOCS / "decisions").glob("*.md"))]
    assert numbers == list(range(1, len(numbers) + 1))
    for path in (DOCS / "decisions").glob("*.md"):
        assert _read(path).startswith(f"# {int(path.name[:4])}. ")
