"""Blocks and the model say what is computed; how, and on what processor, is said in `kernels`."""

import ast
import re
from pathlib import Path

import pytest

import anyformer

ROOT = Path(anyformer.__file__).parent
FILES = [*sorted((ROOT / "blocks").glob("*.py")), ROOT / "model.py"]
WORDS = (
    "device.type",
    "autocast",
    "is_compiling",
    "requires_grad",
    "autograd",
    "__class__ =",
    "TorchFunctionMode",
    "amx",
    "avx",
)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_word_of_processors_or_autograd(file: Path) -> None:
    text = file.read_text().lower()
    assert [word for word in WORDS if word.lower() in text] == []


def test_the_four_files_of_a_block_are_short() -> None:
    names = ("attention", "norm", "feed_forward", "block")
    assert sum(len((ROOT / "blocks" / f"{name}.py").read_text().splitlines()) for name in names) < 400


def test_blocks_do_not_say_how_a_batch_is_laid_out() -> None:
    words = re.compile(r"\b(packing|packed|selected|unpadded)\b", re.IGNORECASE)
    assert {file.name: words.findall(file.read_text()) for file in FILES if words.search(file.read_text())} == {}


@pytest.mark.parametrize(
    ("method", "choices", "lines"),
    [
        ("blocks/attention.py:MultiHeadAttention.forward", 1, 6),  # the cache
        ("blocks/attention.py:MultiHeadAttention.project", 2, 5),
        ("blocks/block.py:TransformerBlock.forward", 7, 14),
        ("blocks/stack.py:Stack.forward", 2, 8),
        ("model.py:Transformer.forward", 15, 30),
    ],
)
def test_forward_reads_as_an_equation(method: str, choices: int, lines: int) -> None:
    """The most choices (branches, loops, conditions) of a method, and lines of its code."""
    body = _body(*method.split(":"))
    found = [node for part in body for node in ast.walk(part) if isinstance(node, _CHOICES)]
    assert len(found) <= choices
    assert body[-1].end_lineno is not None
    assert body[-1].end_lineno - body[0].lineno + 1 <= lines


_CHOICES = (ast.If, ast.IfExp, ast.For, ast.While, ast.BoolOp, ast.Match, ast.Try, ast.comprehension)


def _body(file: str, name: str) -> list[ast.stmt]:
    """The statements of a method, without its docstring."""
    wanted, method = name.split(".")
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.ClassDef) and node.name == wanted:
            return next(part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == method).body[
                1:
            ]
    raise AssertionError(name)


def test_choices_are_counted() -> None:
    code = ast.parse("x = a if b else c\nif x and y:\n    pass\n")
    assert sum(isinstance(node, _CHOICES) for node in ast.walk(code)) == 3
