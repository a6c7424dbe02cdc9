"""Blocks and the model say what is computed; how, and on what processor, is said in `kernels`."""

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
    assert sum(len((ROOT / "blocks" / f"{name}.py").read_text().splitlines()) for name in names) < 300
