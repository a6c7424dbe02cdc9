"""Experts of files that were cut, or of another number than the config says: one sentence, before memory is taken."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import anyformer as af
from anyformer.checkpoint.gguf.container import Container
from anyformer.cli.main import main
from anyformer.families import from_huggingface
from tests.checkpoint.gguf import sample_files

COUNTS = {
    **dict.fromkeys(("mixtral", "granitemoe", "gpt_oss"), "num_local_experts"),
    **dict.fromkeys(("qwen3_moe", "olmoe"), "num_experts"),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3"), "n_routed_experts"),
}
"""The field with the number of experts of each type that has them."""
SIZES: dict[str, int | None] = {
    **dict.fromkeys(("hidden_size", "vocab_size"), 16),
    **dict.fromkeys(("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "num_experts_per_tok"), 2),
    **dict.fromkeys(("intermediate_size", "moe_intermediate_size", "head_dim", "kv_lora_rank", "v_head_dim"), 8),
    **dict.fromkeys((*COUNTS.values(), "qk_rope_head_dim", "qk_nope_head_dim"), 4),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace", "bos_token_id", "eos_token_id"), 1),
    **dict.fromkeys(("q_lora_rank", "pad_token_id"), None),
}


def tiny(name: str) -> af.Transformer:
    """A model of a type with four experts."""
    return af.build(from_huggingface({"model_type": name, **SIZES}))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experts")
    for name in COUNTS:
        af.save(tiny(name), folder / name)
    return folder


def edited(
    source: Path, folder: Path, config: dict[str, object], change: Callable[[dict[str, Tensor]], object]
) -> Path:
    """The directory with other fields and weights."""
    folder.mkdir()
    raw = json.loads((source / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**raw, **config}), encoding="utf-8")
    weights = load_file(source / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def expert(weights: dict[str, Tensor]) -> str:
    """The name of the last tensor that belongs to experts."""
    return max(name for name in weights if "expert" in name or "block_sparse_moe.input" in name)


CUTS: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "a tensor is shorter": lambda weights: weights.update({(name := expert(weights)): weights[name][:-1].clone()}),
    "a tensor is missing": lambda weights: weights.pop(expert(weights)),
    "a tensor is a number": lambda weights: weights.update({expert(weights): torch.zeros(())}),
    "a tensor is empty": lambda weights: weights.update({expert(weights): torch.zeros(0, 8)}),
}


def assert_refused(path: Path, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(path), "x", "--device=cpu"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("anyformer: "), error
    assert re.search(said, error), error
    assert error.count("\n") == 1


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", COUNTS)
def test_a_cut_stack(name: str, cut: str, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = expert(load_file(saved / name / "model.safetensors"))
    assert_refused(edited(saved / name, tmp_path / "cut", {}, CUTS[cut]), re.escape(wanted), capsys)


@pytest.mark.parametrize("count", [3, 5, 10_000])
@pytest.mark.parametrize("name", COUNTS)
def test_another_number_of_experts(
    name: str, count: int, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = edited(saved / name, tmp_path / "other", {COUNTS[name]: count}, lambda weights: None)
    assert_refused(path, r"model\.layers\.|matrices of experts", capsys)


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [1, 10**9, "four", None, 2.5])
def test_no_number_of_experts(
    name: str, value: object, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = edited(saved / name, tmp_path / "other", {COUNTS[name]: value}, lambda weights: None)
    assert_refused(path, r"feed_forward\.experts\.count", capsys)


def test_experts_larger_than_memory(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Petabytes that the config speaks of and the file doesn't have."""
    sizes: dict[str, object] = {"num_local_experts": 10_000, "intermediate_size": 100_000_000}
    assert_refused(
        edited(saved / "mixtral", tmp_path / "huge", sizes, lambda weights: None),
        r"model\.layers\.|matrices of experts",
        capsys,
    )


@pytest.mark.parametrize(("key", "value"), [("expert_count", 3), ("expert_count", 5), ("expert_used_count", 9)])
@pytest.mark.parametrize("cut", [False, True])
def test_experts_in_gguf(key: str, value: int, cut: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mixtral.gguf"
    af.save_gguf(tiny("mixtral"), path)
    metadata = Container(path).metadata
    tensors = {each.name: each.data.reshape(each.shape[::-1]) for each in gguf.GGUFReader(path).tensors}
    stack = next(name for name in tensors if "ffn_up_exps" in name)
    if cut:
        tensors[stack] = tensors[stack][:3]
    architecture = metadata["general.architecture"]
    changes = {} if cut else {f"{architecture}.{key}": value}
    changed = sample_files.write(tmp_path / "changed.gguf", {**metadata, **changes}, tensors)
    assert_refused(changed, re.escape(stack) if cut else "expert", capsys)
