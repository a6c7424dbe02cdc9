"""What of the library is public, read from its sources: the pages of the reference are made from it.

The names of `anyformer` have a page each; those of the modules below have one a module.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import griffe

SOURCES = Path(__file__).parents[2] / "src"

NAMES = {
    "Models": "preset build ModelConfig Transformer ModelOutput diff",
    "Files": "load load_with_head save save_gguf save_adapter merge quantize Tokenizer",
    "Text": "generate generate_samples generate_stream generate_ids GenerationConfig BatchingEngine score fill embed",
    "Tasks": "train TrainResult finetune FinetuneResult classify tag evaluate",
    "Comparing": "compare attention Attention diagram plan TrainingPlan eject explain",
    "Errors": "UserError",
}
"""The names of `anyformer`, by what they are for; those that are missing here come last."""

MODULES = {
    "Architecture": "config families model analysis blocks/*",
    "Computation": "kernels quantization adapters",
    "Files and text": "checkpoint tokenizer data.documents data.corpus data.token_files data.batches data.objectives "
    "data.batch",
    "Training": "training.config training.run training.train training.optimizer training.schedule "
    "training.losses finetuning.config runs.directory runs.metrics runs.listing runs.tracking",
    "Use": "generation evaluation evaluation.harness",
    "Comparison": "compare.experiment compare.result compare.verdicts learn.diagram learn.eject learn.explain",
    "Shared": "errors schema limits",
}
"""Public modules, by what they are for; a package stands for what its `__all__` has, PACKAGE/* for its modules."""


@dataclass(frozen=True)
class Page:
    """A page of the reference."""

    uri: str
    title: str
    section: str
    about: str
    """Its first sentence."""
    objects: list[str] = field(default_factory=list[str])
    """What it documents: full names, of where each is defined."""
    elsewhere: list[str] = field(default_factory=list[str])
    """Public names of the module that have a page of their own."""
    module: str = ""
    """The module whose docstring it begins with; empty on the page of one name."""


@cache
def package() -> griffe.Module:
    """The library, parsed and not imported."""
    found = griffe.load("anyformer", search_paths=[SOURCES], docstring_parser="google", resolve_aliases=False)
    assert isinstance(found, griffe.Module)
    return found


def module(path: str) -> griffe.Module:
    """A module by its name within `anyformer`; empty: `anyformer` itself."""
    found = package()
    for part in filter(None, path.split(".")):
        found = found.modules[part]
    return found


def defined(holder: griffe.Module, name: str) -> griffe.Object:
    """What a module calls by a name, where it is defined: imports are followed."""
    target = holder.imports.get(name)
    if target is None:
        found = holder.members[name]
        assert isinstance(found, griffe.Object)
        return found
    path, _, name = target.partition(".")[2].rpartition(".")
    return defined(module(path), name)


def public(holder: griffe.Module) -> list[griffe.Object]:
    """What a module offers: what its `__all__` has, or what it defines and describes without an underscore."""
    if holder.exports is not None:
        return [defined(holder, str(name)) for name in holder.exports]
    return [
        member
        for name, member in holder.members.items()
        if not member.is_alias
        and not member.is_module
        and not name.startswith("_")
        and isinstance(member, griffe.Object)
        and member.has_docstring
    ]


def sentence(found: griffe.Object) -> str:
    """The first sentence of a docstring."""
    text = found.docstring.value if found.docstring else ""
    first = " ".join(text.split("\n\n")[0].split())
    return first.split(". ")[0].rstrip(".:") + "."


def _modules(names: str) -> Iterator[str]:
    for name in names.split():
        if not name.endswith("/*"):
            yield name
            continue
        parent = name.removesuffix("/*")
        yield from (f"{parent}.{child}" for child in sorted(module(parent).modules))


@cache
def pages() -> list[Page]:
    """All pages of the reference, in the order of the navigation."""
    found: list[Page] = []
    own_page: set[str] = set()
    listed = " ".join(NAMES.values()).split()
    others = [str(name) for name in package().exports or () if name not in listed]
    for section, names in {**NAMES, "More": " ".join(others)}.items():
        for name in names.split():
            what = defined(package(), name)
            own_page.add(what.path)
            found.append(Page(f"reference/anyformer/{name}.md", name, section, sentence(what), [what.path]))
    for section, names in MODULES.items():
        for name in _modules(names):
            holder = module(name)
            paths = list(dict.fromkeys(each.path for each in public(holder)))
            here = [path for path in paths if path not in own_page]
            own_page.update(here)
            there = [path for path in paths if path not in here]
            uri = f"reference/{name.replace('.', '/')}.md"
            found.append(Page(uri, name, section, sentence(holder), here, there, holder.path))
    return found
