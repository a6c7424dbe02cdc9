"""Checks of one implementation against another: token ids and tensors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from anyformer.tokenizer import Tokenizer

SAMPLES = (
    "The quick brown fox jumps over the lazy dog.",
    "def add(a, b):\n    return a + b  # 1, 2, 3\n",
    "Grüße aus Köln: 12,50 € kosten 3 Stück.",
    "   Spaces,\ttabs and\n\nnew lines   ",
    "日本語のテキスト 🙂",
)
NEW_TOKENS = 20


@dataclass(frozen=True)
class Check:
    """One comparison and its outcome."""

    name: str
    equal: bool
    detail: str


def compare_tokens(encode: Callable[[str], list[int]], ours: Tokenizer) -> Check:
    """Whether a tokenizer gives the ids of another one's `encode`."""
    for text in SAMPLES:
        expected, got = encode(text), ours.encode(text)
        if expected != got:
            return Check("token ids", False, f"{text!r} is {expected} there and {got} here")
    return Check("token ids", True, f"{len(SAMPLES)} texts, {ours.vocab_size} tokens")


def compare_tensors(name: str, expected: Sequence[Tensor], got: Sequence[Tensor], tolerance: float) -> Check:
    """Whether tensors are equal up to a tolerance, relative to the largest value of each."""
    if len(expected) != len(got):
        return Check(name, False, f"{len(expected)} there and {len(got)} here")
    worst = max(float((a - b).abs().max() / a.abs().max().clamp(min=1e-30)) for a, b in zip(expected, got, strict=True))
    return Check(name, worst <= tolerance, f"largest difference {worst:.1e} of the largest value")
