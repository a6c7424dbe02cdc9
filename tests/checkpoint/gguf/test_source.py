"""GGUF files as models: where they are found, what is refused, and quantized tensors on their way in."""

import shutil
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

import anyformer as af
from anyformer.blocks.quantized import dequantize
from anyformer.checkpoint.gguf.architectures import ARCHITECTURES
from anyformer.checkpoint.gguf.container import Container
from anyformer.checkpoint.gguf.source import GGUFSource, quantized
from anyformer.cli.main import main
from anyformer.kernels.quantization import QuantizedWeight
from tests.checkpoint.gguf import sample_files


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return sample_files.tiny_llama(tmp_path / "tiny.gguf")


def changed(
    path: Path, metadata: dict[str, Any], *, without: str = "", extra: dict[str, np.ndarray] | None = None
) -> Path:
    """The file with other metadata, without one tensor or with more, all in floating point."""
    old, tensors = Container(path), gguf.GGUFReader(path).tensors
    floats = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in tensors if t.name != without}
    plain = {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in old.metadata.items()}
    return sample_files.write(path.with_name("changed.gguf"), {**plain, **metadata}, {**floats, **(extra or {})})


def test_a_file_and_a_directory_with_nothing_else(tiny: Path) -> None:
    model, tokenizer = af.load(tiny)
    assert tokenizer is not None
    assert not model.training
    assert {weight.dtype for weight in model.state_dict().values()} == {torch.float32}
    assert model.config.special_tokens.eos == (2,)
    again, _ = af.load(tiny.parent, dtype="bfloat16")
    for name, weight in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight.bfloat16())


def test_what_is_stored_in_16_bits_stays_so(tmp_path: Path) -> None:
    model = af.build(af.preset("gpt2-nano", vocab_size=30, decoder_layers=1)).half()
    path = tmp_path / "half.gguf"
    af.save_gguf(model, path, kind="f16")
    loaded, _ = af.load(path, dtype="float16")
    assert all(torch.equal(loaded.state_dict()[name], weight) for name, weight in model.state_dict().items())


def test_tensors_go_one_by_one(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is turned into the asked format before the next is read."""
    read: list[str] = []
    plain = GGUFSource.read

    def noted(self: GGUFSource, name: str) -> torch.Tensor | QuantizedWeight:
        read.append(name)
        return plain(self, name)

    monkeypatch.setattr(GGUFSource, "read", noted)
    af.load(tiny)
    assert sorted(read) == sorted(Container(tiny).tensors)


@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
@pytest.mark.parametrize("part", ["attn_q", "attn_k", "ffn_up"])
@pytest.mark.parametrize("rows", [1, 16, 30, 64])
def test_integers_of_another_shape_are_refused(part: str, rows: int, quantize: str | None, tmp_path: Path) -> None:
    path = sample_files.tiny_llama(tmp_path / "tiny.gguf", **{part: rows})
    with pytest.raises(af.UserError, match=rf"{part}.*\[{rows}, 32\].*wants \[32, 32\]"):
        af.load(path, quantize=quantize)


@pytest.mark.parametrize("name", ["blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.ffn_up.weight"])
def test_groups_move_with_their_rows(name: str, tiny: Path) -> None:
    """Integers, scales and minima through the table of names are the model's weight, without ever being floats."""
    model, _ = af.load(tiny)
    source = GGUFSource(tiny)
    weight = source.read(name)
    assert isinstance(weight, QuantizedWeight)
    line = next(
        line for line in ARCHITECTURES["llama"].rows(model.config) if line.theirs == name.replace("blk.0", "blk.{i}")
    )
    integers, scales, minima = (None if part is None else line.operation.read(part, 1)[0] for part in weight)
    assert integers is not None
    assert scales is not None
    assert weight.bits == (8 if integers.dtype == torch.int8 else 4)
    made = dequantize(QuantizedWeight(integers, scales, minima), torch.float32)
    expected = model.state_dict()[line.ours[0].replace("{i}", "0")]
    assert torch.allclose(made, expected, rtol=1e-6, atol=1e-6)
    assert quantized(Container(tiny), "blk.0.ffn_down.weight") is None  # Q5_1
    assert isinstance(source.read("blk.0.ffn_down.weight"), torch.Tensor)


def test_a_directory_with_several(tiny: Path) -> None:
    shutil.copy(tiny, tiny.with_name("other.gguf"))
    with pytest.raises(af.UserError, match=r"has 2 GGUF files: name one of them, such as .*other\.gguf"):
        af.load(tiny.parent)


def test_another_file(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("GGUF")
    with pytest.raises(af.UserError, match=r"neither a model directory nor a \.gguf file"):
        af.load(tmp_path / "notes.txt")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another architecture": ({"general.architecture": "mamba"}, "The GGUF architecture 'mamba' is not supported"),
    "a part": ({"split.count": 3}, "one of 3 parts; join them"),
    "experts": ({"llama.expert_count": 8}, r"blk\.0\.ffn_gate_inp\.weight is missing|is unknown to"),
    "experts of another kind": (
        {"general.architecture": "gemma", **{f"gemma.{key}": 1 for key in ("expert_count", "block_count")}},
        "mixture of experts|is missing",
    ),
    "more layers than tensors": ({"llama.block_count": 9999}, "says 9999 layers"),
    "no heads": ({"llama.attention.head_count": 0}, "missing or misshapen|heads: must be positive"),
    "a text for a number": ({"llama.block_count": "one"}, "llama.block_count should be one positive number, not 'one'"),
    "an infinite size": ({"llama.feed_forward_length": float("inf")}, "wants a whole number"),
    "an end that is true": ({"tokenizer.ggml.eos_token_id": True}, "special_tokens.eos: wants a whole number"),
    "numbers for a kind of tokenizer": (
        {"tokenizer.ggml.model": [1, 2]},
        r"tokenizer model '\[1 2\]' is not supported",
    ),
    "different widths": ({"llama.attention.key_length": 16}, "of different widths"),
    "an unknown scaling": (
        {"llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": 2.0},
        "rope scaling 'longrope'",
    ),
    "an unknown tokenizer": ({"tokenizer.ggml.model": "rwkv"}, "tokenizer model 'rwkv' is not supported"),
    "an unknown cut": ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "poro"}, "pre-tokenizer 'poro'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name(case: str, tiny: Path) -> None:
    metadata, message = REFUSED[case]
    path = changed(tiny, metadata)
    with pytest.raises(af.UserError, match=message) as caught:
        af.load(path)
    assert "changed.gguf" in str(caught.value)


def test_missing_and_unknown_tensors(tiny: Path) -> None:
    with pytest.raises(af.UserError, match=r"blk\.0\.ffn_up\.weight is missing"):
        af.load(changed(tiny, {}, without="blk.0.ffn_up.weight"))
    with pytest.raises(af.UserError, match=r"token_embd\.weight is missing"):
        af.load(changed(tiny, {}, without="token_embd.weight"))
    extra = {"blk.0.ssm_a": np.zeros(4, np.float32)}
    with pytest.raises(af.UserError, match=r"blk\.0\.ssm_a is unknown to a GGUF llama model"):
        af.load(changed(tiny, {}, extra=extra))
    with pytest.raises(af.UserError, match="does not fit its metadata"):
        af.load(changed(tiny, {"llama.embedding_length": 64}))


def test_a_repeated_head_is_the_table(tiny: Path) -> None:
    table = gguf.quants.dequantize(*next((t.data, t.tensor_type) for t in gguf.GGUFReader(tiny).tensors))
    assert af.load(changed(tiny, {}, extra={"output.weight": table}))[0].config.embedding.tied
    assert not af.load(changed(tiny, {}, extra={"output.weight": table + 1}))[0].config.embedding.tied


def test_without_the_package(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    floats = changed(tiny, {})
    monkeypatch.setitem(sys.modules, "gguf", None)
    af.load(floats)
    with pytest.raises(af.UserError, match=r"pip install 'anyformer\[gguf\]'"):
        af.load(tiny)


def test_on_the_command_line(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(tiny)]) == 0
    assert "decoder_layers" in capsys.readouterr().out
    assert main(["generate", str(tiny), "ab", "--max-new-tokens", "4"]) == 0
    assert capsys.readouterr().out
    tiny.write_bytes(tiny.read_bytes()[:100])
    assert main(["show", str(tiny)]) == 2
    assert "not a whole GGUF file" in capsys.readouterr().err
