"""What benchmarks do where a peer or a row is missing."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def _benchmark(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_benchmark_that_prints_nothing_is_an_empty_table() -> None:
    read = _benchmark("readme").read
    assert read("") == read("without peers\n") == {}
    assert read("| a | b |\n| --- | ---: |\n| x | 1 |\n") == {"x": {"b": "1"}}


def test_pairs_of_sts_may_have_a_header(tmp_path: Path) -> None:
    embedding = _benchmark("embedding")
    rows = "a,a b,1\nbc,b,2\nabc,def,3\n"

    def encode(texts: list[str]) -> torch.Tensor:
        return torch.tensor([[float(len(text)), float(text.count("b")) + 1] for text in texts])

    found: list[float] = []
    for name, header in (("plain.csv", ""), ("header.csv", "sentence1,sentence2,score\n")):
        (tmp_path / name).write_text(header + rows)
        found.append(embedding.correlation(encode, tmp_path / name))
    assert found[0] == found[1]


def test_ratios_without_peers_are_none() -> None:
    assert all(ratio != ratio for ratio in _benchmark("embedding").ratios({"anyformer int8": [1.0]}).values())
