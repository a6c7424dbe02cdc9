"""Files of mixtures of experts and of latent attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import anyformer as af
from anyformer.checkpoint.gguf.container import Container
from anyformer.checkpoint.gguf.mixtures import join_latent
from anyformer.checkpoint.gguf.source import dense
from tests.checkpoint.gguf import sample_files

pytest.importorskip("gguf")
SMALL: dict[str, Any] = {
    "vocab_size": 40,
    "d_model": 32,
    "decoder_layers": 2,
    "max_length": 64,
    "attention.heads": 2,
    "feed_forward.width": 32,
    "feed_forward.experts.count": 4,
    "feed_forward.experts.used": 2,
}
LATENT: dict[str, Any] = {
    "attention.head_dim": 24,
    "attention.latent.rank": 32,
    "attention.latent.query_rank": 32,
    "attention.latent.rotary_dim": 8,
    "attention.latent.value_dim": 32,
    "attention.scale": None,
    "position.scaling": None,
    "other_layers.feed_forward.width": 64,
    "other_layers.first": "o",
    "feed_forward.experts.groups": 1,
    "feed_forward.experts.used_groups": 1,
}
PRESETS = {
    "mixtral-8x7b": {"attention.kv_heads": 1},
    "qwen3-30b-a3b": {"attention.kv_heads": 1, "attention.head_dim": 32},
    "olmoe-1b-7b": {},
    "granite-3.0-1b-a400m": {"attention.kv_heads": 1, "attention.head_dim": None},
    "deepseek-v2": LATENT,
    "deepseek-v3": LATENT,
}


def model_of(name: str, **changes: Any) -> af.Transformer:
    torch.manual_seed(0)
    model = af.build(af.preset(name, **{**SMALL, **PRESETS[name], **changes})).eval()
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.normal_(std=0.1)
    return model


@pytest.mark.parametrize("name", PRESETS)
def test_weights_return_bit_for_bit(name: str, tmp_path: Path) -> None:
    model = model_of(name)
    af.save_gguf(model, tmp_path / "model.gguf", kind="f32")
    back, _ = af.load(tmp_path / "model.gguf")
    assert back.config.model_type == model.config.model_type
    for key, weight in model.state_dict().items():
        assert torch.equal(back.state_dict()[key], weight), key


def test_integers_of_experts_are_kept(tmp_path: Path) -> None:
    model = model_of("mixtral-8x7b")
    written = af.save_gguf(model, tmp_path / "model.gguf", kind="q8_0")
    assert written.formats["F32"] == 2 * 2 + 1 + 2  # norms and routers
    floats, _ = af.load(tmp_path / "model.gguf")
    integers, _ = af.load(tmp_path / "model.gguf", quantize="int8")
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        expected, found = floats(tokens).logits, integers(tokens).logits
    assert expected is not None
    assert found is not None
    assert (found - expected).abs().max() <= 0.02 * expected.abs().max()


def files_of(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    container = Container(path)
    return dict(container.metadata), {name: dense(container, name).numpy() for name in container.tensors}


def test_older_files_have_one_matrix_from_latents(tmp_path: Path) -> None:
    model = model_of("deepseek-v3")
    af.save_gguf(model, tmp_path / "model.gguf", kind="f32")
    metadata, tensors = files_of(tmp_path / "model.gguf")
    for layer in range(2):
        key, value = (torch.from_numpy(tensors.pop(f"blk.{layer}.attn_{part}_b.weight")) for part in "kv")
        tensors[f"blk.{layer}.attn_kv_b.weight"] = join_latent(key, value).numpy()
    for part in ("key", "value"):
        metadata[f"deepseek2.attention.{part}_length"] = metadata.pop(f"deepseek2.attention.{part}_length_mla")
    older, _ = af.load(sample_files.write(tmp_path / "older.gguf", metadata, tensors))
    for name, weight in model.state_dict().items():
        assert torch.equal(older.state_dict()[name], weight), name


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"norm.eps": 1e-5}, "have an epsilon of 1e-06"),
        ({"attention.latent.query_rank": None}, "26 or 27 layers for a Lite"),
        ({"feed_forward.experts.groups": 2, "feed_forward.experts.used_groups": 1}, "experts.group_best = 1"),
        ({"feed_forward.experts.shared": 0}, "without shared experts"),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(af.UserError, match=reason):
        af.save_gguf(model_of("deepseek-v2", **changes), tmp_path / "model.gguf", kind="f32")


def test_shared_keys_of_an_olmoe_are_refused(tmp_path: Path) -> None:
    with pytest.raises(af.UserError, match="no heads share keys"):
        af.save_gguf(model_of("olmoe-1b-7b", **{"attention.kv_heads": 1}), tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("name", "rows", "reason"),
    [
        ("blk.1.attn_k_b.weight", 1, r"two parts of blk\.1\.attn_kv_b\.weight do not fit each other"),
        ("blk.1.ffn_up_exps.weight", 3, r"blk\.1\.ffn_up_exps\.weight has shape \[3, 32, 32\], which does not fit"),
        ("blk.1.ffn_down_exps.weight", 0, r"ffn_down_exps\.weight is missing"),
    ],
)
def test_truncated_stacks_are_refused(name: str, rows: int, reason: str, tmp_path: Path) -> None:
    af.save_gguf(model_of("deepseek-v2"), tmp_path / "model.gguf", kind="f32")
    metadata, tensors = files_of(tmp_path / "model.gguf")
    tensors = {key: tensor[:rows] if key == name else tensor for key, tensor in tensors.items() if key != name or rows}
    with pytest.raises(af.UserError, match=reason):
        af.load(sample_files.write(tmp_path / "cut.gguf", metadata, tensors))


@pytest.mark.parametrize("count", [3, 10_000, 10**9])
def test_a_wrong_number_of_experts_is_refused(count: int, tmp_path: Path) -> None:
    af.save_gguf(model_of("mixtral-8x7b"), tmp_path / "model.gguf", kind="f32")
    metadata, tensors = files_of(tmp_path / "model.gguf")
    metadata["llama.expert_count"] = count
    with pytest.raises(af.UserError, match=r"ffn_gate_inp\.weight has shape|count"):
        af.load(sample_files.write(tmp_path / "wrong.gguf", metadata, tensors))
