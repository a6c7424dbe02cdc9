"""The tests lie where the source does."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Collection
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from anyformer import limits
from anyformer.adapters import config as adapters
from anyformer.data import input_files
from anyformer.tokenizer import template_budget, template_sandbox, training

ROOT = Path(__file__).parents[1]
SOURCE, TESTS = ROOT / "src" / "anyformer", ROOT / "tests"


@pytest.fixture(scope="module")
def trees() -> dict[Path, ast.Module]:
    """The code of each file of the library."""
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(SOURCE.rglob("*.py"))}


def test_tests_mirror_the_source() -> None:
    """tests/PACKAGE/test_MODULE.py tests anyformer/PACKAGE/MODULE.py, or the package of that name."""
    elsewhere = {
        # What no single module does.
        *(
            TESTS / f"test_{what}.py"
            for what in (
                "adding",
                "benchmarks",
                "browser",
                "docs",
                "forked",
                "hostile_folder",
                "messages",
                "meta_device",
                "notebooks",
                "outputs",
                "planted_links",
                "shapes",
                "site",
            )
        ),
        TESTS / "test_structure.py",
        TESTS / "blocks" / "test_equations.py",
        TESTS / "checkpoint" / "test_experts_on_disk.py",
        TESTS / "blocks" / "test_parts.py",
        TESTS / "checkpoint" / "test_foreign_files.py",
        *(TESTS / "cli" / f"test_{what}.py" for what in ("every_command", "loading")),
        TESTS / "compare" / "tasks" / "test_tasks.py",
        TESTS / "families" / "test_config_json.py",
        *(TESTS / "finetuning" / f"test_{what}.py" for what in ("bad_input", "end_to_end", "interchange")),
        *(TESTS / "finetuning" / f"test_{what}.py" for what in ("packing", "parts", "resume")),
        TESTS / "fuzz" / "test_fuzz.py",
        TESTS / "kernels" / "test_training_kernels.py",
        TESTS / "native" / "test_build.py",  # of hatch_build.py
        *(TESTS / "serving" / f"test_{what}.py" for what in ("adapters", "hostile", "lm_eval", "load", "schemathesis")),
        TESTS / "tasks" / "test_adding.py",
        TESTS / "tasks" / "test_rows_of_tasks.py",
        TESTS / "training" / "test_bad_input.py",
        TESTS / "training" / "test_end_to_end.py",
        TESTS / "training" / "test_int8.py",
        TESTS / "training" / "test_threads.py",  # of runs and kernels
        TESTS / "training" / "strategies" / "test_restarts.py",
        # The comparisons with other implementations.
        *(TESTS / "parity").rglob("test_*.py"),
    }
    strays = []
    for path in sorted(set(TESTS.rglob("test_*.py")) - elsewhere):
        module = SOURCE / path.parent.relative_to(TESTS) / path.stem.removeprefix("test_")
        if not module.is_dir() and not module.with_suffix(".py").exists():
            strays.append(str(path.relative_to(ROOT)))
    assert not strays


def _imports(tree: ast.AST, modules: Collection[str]) -> set[str]:
    """The modules of ours that a file imports, in functions and for annotations too."""
    found = set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in modules:
            submodules = {f"{node.module}.{name.name}" for name in node.names}
            found |= submodules.intersection(modules) or {node.module}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}.intersection(modules)
    return found


def test_no_circle_of_imports(trees: dict[Path, ast.Module]) -> None:
    """Neither between packages nor within one; what `anyformer` itself offers is imported when it is asked for."""
    modules = {
        ".".join(("anyformer", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__"): tree
        for path, tree in trees.items()
    }
    del modules["anyformer"]
    TopologicalSorter({name: _imports(tree, modules) for name, tree in modules.items()}).prepare()


def test_no_function_is_written_twice(trees: dict[Path, ast.Module]) -> None:
    """What two modules need is in one that both import."""
    places = defaultdict[str, list[str]](list)
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                text = "\n".join(map(ast.unparse, body))
                if len(text) > 80 and "raise NotImplementedError" not in text:
                    places[f"{ast.unparse(node.args)}\n{text}"].append(str(path.relative_to(SOURCE)))
    assert [paths for paths in places.values() if len(set(paths)) > 1] == []


STARTS = {
    "subprocess": {"Popen", "run", "call", "check_call", "check_output", "getoutput", "getstatusoutput"},
    "os": {"system", "popen", "fork", "forkpty", "posix_spawn", "posix_spawnp", "startfile"},
    "sys": {"executable"},
    "shutil": {"which"},
    "ctypes": {"CDLL", "PyDLL", "cdll"},
    "pickle": {"load", "loads", "Unpickler"},
    "runpy": {"run_path", "run_module"},
}
MODULES = {"multiprocessing", "pty", "runpy", "imp", "code", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
ALLOWED = {
    # The results of `processes.ProcessExecutor` are those of this program.
    "processes.py": {
        *("subprocess.Popen", "subprocess.run", "sys.executable", "shutil.which", "pickle.load", "pickle.loads"),
    },
    # From the package's own folder, and torch's.
    "kernels/cpu/library.py": {"ctypes.CDLL"},
    # The C library of the system.
    "training/memory.py": {"ctypes.CDLL"},
    "native/levels.py": {"ctypes.CDLL"},
}
"""What may start a program or run code, and where."""


def _runs_code(tree: ast.AST) -> set[str]:
    found = set[str]()
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id=module), attr=name):
                starts = name in STARTS.get(module, ()) or (module == "os" and name.startswith(("exec", "spawn")))
                found |= {f"{module}.{name}"} if starts else set()
                if (module, name) == ("torch", "load"):
                    found.add("torch.load")
            case ast.Call(func=ast.Name(id=name)) if name in BUILTINS:
                found.add(name)
            case ast.Import(names=names):
                found |= {name.name for name in names if name.name.partition(".")[0] in MODULES}
            case ast.ImportFrom(module=str(module), names=names):
                root = module.partition(".")[0]
                found |= {module} if root in MODULES else set()
                found |= {f"{module}.{name.name}" for name in names if name.name in STARTS.get(module, ())}
            case ast.keyword(arg=("shell" | "trust_remote_code") as argument, value=ast.Constant(value=True)):
                found.add(f"{argument}=True")
            case _:
                pass
    return found


def test_programs_and_code_are_started_in_one_place(trees: dict[Path, ast.Module]) -> None:
    """By anyformer.processes, so that nothing is imported from the current folder; and nothing is unpickled."""
    found = {}
    for path, tree in trees.items():
        runs = _runs_code(tree)
        if "torch.load" in runs and "weights_only=True" in path.read_text(encoding="utf-8"):
            runs.remove("torch.load")
        name = path.relative_to(SOURCE).as_posix()
        if not runs <= ALLOWED.get(name, set()):
            found[name] = runs - ALLOWED.get(name, set())
    assert not found


def test_values_are_quoted_by_one_function(trees: dict[Path, ast.Module]) -> None:
    """A message cuts what it quotes by `errors.quote` and `errors.cut`, and in no way of its own."""
    strays = [
        f"{path.relative_to(SOURCE)}:{node.lineno}"
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FormattedValue) and _cuts(node)
    ]
    assert not strays


def _cuts(node: ast.FormattedValue) -> bool:
    """Whether a value is quoted as Python writes it, and its end left out."""
    sliced = isinstance(node.value, ast.Subscript) and isinstance(node.value.slice, ast.Slice)
    of_repr = sliced and isinstance(node.value.value, ast.Call) and ast.unparse(node.value.value.func) == "repr"
    return of_repr or (node.conversion == ord("r") and (sliced or node.format_spec is not None))


def test_the_limits_are_those_that_the_page_names() -> None:
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    values = [limits.JSON_BYTES, limits.YAML_BYTES, limits.LOG_BYTES, limits.RECORD_BYTES, limits.DEPTH]
    values += [input_files._EXPANDED_BYTES, input_files._EXPANSION, template_sandbox._LONGEST]
    values += [input_files.ROW_BYTES, input_files.VALUE_BYTES, training.LARGEST]
    values += [adapters.LONGEST_PATTERN, adapters.MOST_NAMES]
    values += [template_budget._BUDGET, template_budget._LARGEST, template_budget._BITS]
    assert [value for value in values if f" {value:,} " not in page] == []


def test_the_first_line_of_a_docstring_names_its_subject(trees: dict[Path, ast.Module]) -> None:
    """A noun phrase or an imperative that stands alone."""
    points = ("What ", "Of ", "Those", "The same", "As many", "It is")
    strays = [
        f"{path.relative_to(SOURCE)}:{node.lineno}: {node.value.value.strip().splitlines()[0]}"
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
        and node.value.value.strip().startswith(points)
    ]
    assert not strays
