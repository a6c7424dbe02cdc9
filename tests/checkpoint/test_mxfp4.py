"""Experts in MXFP4 are what transformers makes of them, int8 keeps them, and damaged files are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GptOssConfig, GptOssForCausalLM
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from anyformer.blocks.experts import Experts
from anyformer.blocks.linear import GroupedLinear
from anyformer.checkpoint import load, save
from anyformer.checkpoint.mxfp4 import decode
from anyformer.errors import UserError
from anyformer.kernels.quantization import QuantizedWeight, dequantize
from anyformer.model import Transformer
from tests.oracle import needs_newer_transformers

OPTIONS: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 64,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_local_experts": 3,
    "num_experts_per_tok": 2,
    "sliding_window": 3,
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A published directory in small: bfloat16, and experts in MXFP4."""
    torch.manual_seed(0)
    model = GptOssForCausalLM(GptOssConfig(**OPTIONS)).bfloat16()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    model.save_pretrained(tmp_path)
    tensors, path = {}, tmp_path / "model.safetensors"
    for name, tensor in load_file(path).items():
        if not name.endswith("_proj"):
            tensors[name] = tensor
            continue
        experts, inputs, outputs = tensor.shape
        tensors[f"{name}_blocks"] = torch.randint(256, (experts, outputs, inputs // 32, 16), dtype=torch.uint8)
        tensors[f"{name}_scales"] = torch.randint(119, 125, (experts, outputs, inputs // 32), dtype=torch.uint8)
    save_file(tensors, path, {"format": "pt"})
    change(tmp_path, quantization_config={"quant_method": "mxfp4"})
    return tmp_path


def change(directory: Path, **fields: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def experts(model: Transformer) -> list[Tensor]:
    """The matrices of the first layer's experts, in floating point."""
    assert model.decoder is not None
    block = model.decoder.blocks[0].feed_forward
    assert isinstance(block, Experts)
    parts: list[Any] = [part for part in (block.gate, block.up, block.down) if isinstance(part, GroupedLinear)]
    return [part.weight.detach() if isinstance(part.weight, Tensor) else part.weight.dequantize() for part in parts]


@pytest.mark.parametrize("exponents", [(104, 144), (0, 255)])
def test_every_code_and_scale_is_the_value_that_transformers_gives_it(exponents: tuple[int, int]) -> None:
    blocks = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(1, exponents[1] - exponents[0], 1, 1)
    scales = torch.arange(*exponents, dtype=torch.uint8)[None, :, None].repeat(1, 1, 16)
    found = decode(blocks, scales)
    if isinstance(found, QuantizedWeight):
        found = dequantize(QuantizedWeight(found.integers[0].T, found.scales[0].T, None), torch.float32)[None].mT
    assert torch.equal(found.bfloat16(), convert_moe_packed_tensors(blocks, scales))


@needs_newer_transformers
def test_a_directory_is_what_transformers_makes_of_it(directory: Path, tmp_path: Path) -> None:
    model, _ = load(directory)
    assert model.dtype == torch.bfloat16
    save(model, tmp_path / "saved")
    assert "quantization_config" not in json.loads((tmp_path / "saved" / "config.json").read_text())
    stored, saved = load_file(directory / "model.safetensors"), load_file(tmp_path / "saved" / "model.safetensors")
    for name, tensor in saved.items():
        packed = f"{name}_blocks" in stored
        theirs = (
            convert_moe_packed_tensors(stored[f"{name}_blocks"], stored[f"{name}_scales"]) if packed else stored[name]
        )
        assert torch.equal(tensor, theirs), name
    theirs = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    tokens = torch.randint(48, (2, 9))
    with torch.no_grad():
        torch.testing.assert_close(model.float()(tokens).logits, theirs(tokens).logits, rtol=1e-4, atol=1e-5)


def test_int8_keeps_the_weights_and_int4_rounds_them(directory: Path) -> None:
    exact = experts(load(directory, "float32")[0])
    for matrix, kept in zip(exact, experts(load(directory, "float32", quantize="int8")[0]), strict=True):
        assert torch.equal(matrix, kept)
    for matrix, rounded in zip(exact, experts(load(directory, "float32", quantize="int4")[0]), strict=True):
        assert 0 < float((matrix - rounded).norm() / matrix.norm()) < 0.1


@pytest.mark.parametrize(
    ("part", "changed", "words"),
    [
        ("scales", None, "gate_up_proj_scales is missing"),
        ("scales", lambda scales: scales[:, :-1], "don't fit each other"),
        ("scales", lambda scales: scales.float(), "don't fit each other"),
        ("scales", lambda scales: torch.full_like(scales, 255), "not finite"),
        ("blocks", lambda blocks: blocks[..., :8], "don't fit each other"),
    ],
)
def test_damaged_experts_are_refused(directory: Path, part: str, changed: Any, words: str) -> None:
    path, name = directory / "model.safetensors", f"model.layers.0.mlp.experts.gate_up_proj_{part}"
    tensors = load_file(path)
    tensor = tensors.pop(name)
    if changed is not None:
        tensors[name] = changed(tensor).contiguous()
    save_file(tensors, path)
    with pytest.raises(UserError, match=words):
        load(directory)


def test_experts_of_another_count_are_refused(directory: Path) -> None:
    change(directory, num_local_experts=4)
    with pytest.raises(UserError, match=r"(experts|router)\S* has shape \[3, .* does not fit this config.json"):
        load(directory)
