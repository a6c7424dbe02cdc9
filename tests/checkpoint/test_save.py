"""What saving a model replaces, removes and leaves alone."""

import json
import os
import stat
import tempfile
import weakref
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

import anyformer as af
from anyformer.blocks.quantized import QuantizedMatrix
from anyformer.checkpoint import write_tensors
from anyformer.cli.main import main
from anyformer.kernels.quantization import QuantizedWeight
from anyformer.model import Transformer
from anyformer.quantization import quantized_weights
from tests.examples import examples

posix = pytest.mark.skipif(os.name != "posix", reason="links and permissions as POSIX has them")


@pytest.fixture
def model() -> Transformer:
    torch.manual_seed(0)
    return af.build(af.preset("gpt2-nano", vocab_size=300, d_model=16, decoder_layers=2, feed_forward={"width": 32}))


@pytest.fixture
def pooled() -> Transformer:
    small = {"vocab_size": 300, "d_model": 32, "attention": {"heads": 2}}
    return af.build(af.preset("bert-tiny", **small, pooling={"kind": "first"}))


def _content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


MINE = {
    "model_backup.safetensors": b"mine",
    "model-best.safetensors": b"mine",
    "model-1-of-2.safetensors": b"mine",
    "other.safetensors": b"mine",
    "notes/model.safetensors": b"mine",
    "pytorch_model.bin": b"mine",
}


@pytest.mark.parametrize(
    "names",
    [
        [*MINE],
        ["notes.txt"],
        ["model.safetensors", "model-best.safetensors"],
        ["tokenizer.json", "thesis.txt"],
        ["folder/model.safetensors"],
        [".bashrc"],
    ],
)
def test_a_folder_of_something_else_is_refused(model: Transformer, tmp_path: Path, names: list[str]) -> None:
    target = tmp_path / "target"
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(b"mine")
    before = _content(target)
    with pytest.raises(af.UserError, match="holds something else than a model"):
        af.save(model, target)
    assert _content(target) == before
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


@pytest.mark.parametrize("config", ['{"port": 80}', "[]", "{", ""])
def test_a_config_json_of_something_else_makes_no_model(model: Transformer, tmp_path: Path, config: str) -> None:
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "server.js").write_text("mine")
    before = _content(tmp_path)
    with pytest.raises(af.UserError, match=r"holds something else than a model|is not JSON|hold a JSON object"):
        af.save(model, tmp_path)
    assert _content(tmp_path) == before


@posix
def test_the_root_of_the_file_system_is_refused(model: Transformer) -> None:
    with pytest.raises(af.UserError, match=r"^/ holds something else than a model"):
        af.save(model, "/")


def test_convert_refuses_before_it_reads_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "diary.txt").write_text("mine")
    for arguments in (["missing", str(tmp_path), "--type", "int4"], ["missing.gguf", str(tmp_path)]):
        assert main(["convert", *arguments]) == 2
        assert "holds something else than a model ('diary.txt', for one)" in capsys.readouterr().err


def test_new_and_empty_folders_and_those_of_a_tokenizer_are_taken(model: Transformer, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    words = af.Tokenizer.train(["the cat sat", "on the mat"], "bpe:280")
    words.save(tmp_path / "tokenizer")
    for name in ("README.md", "vocab.json"):
        (tmp_path / "tokenizer" / name).write_text("{}")
    for name in ("new/er", "empty", "tokenizer"):
        af.save(model, tmp_path / name)
        af.load(tmp_path / name)
    assert af.load(tmp_path / "tokenizer")[1] is not None
    assert (tmp_path / "tokenizer" / "README.md").read_text() == "{}"


def test_only_files_of_the_model_that_is_replaced_are_removed(
    model: Transformer, pooled: Transformer, tmp_path: Path
) -> None:
    af.save(pooled, tmp_path, max_shard_size=10_000)
    assert len([*tmp_path.glob("model-*-of-*.safetensors")]) > 1
    # Shards may have other names, and then the index is what names them.
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    index["weight_map"] |= {"a": "part-a.safetensors", "b": "notes.txt", "c": "notes/model.safetensors", "d": "../x"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({"a": torch.zeros(1)}, tmp_path / "part-a.safetensors")
    mine = MINE | {"notes.txt": b"mine"}
    for name, content in mine.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    af.save(model, tmp_path)
    assert {name: content for name, content in _content(tmp_path).items() if name in mine} == mine
    assert _content(tmp_path).keys() - mine == {"config.json", "generation_config.json", "model.safetensors"}
    af.load(tmp_path)


@pytest.mark.parametrize("index", ["{", "[]", '{"weight_map": ["notes.txt"]}', '{"weight_map": {"a": 3}}'])
def test_a_damaged_index_names_nothing(model: Transformer, tmp_path: Path, index: str) -> None:
    af.save(model, tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(index)
    (tmp_path / "notes.txt").write_text("mine")
    af.save(model, tmp_path)
    af.load(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@posix
def test_links_in_the_place_of_files_are_replaced_themselves(
    model: Transformer, pooled: Transformer, tmp_path: Path
) -> None:
    target, victim = tmp_path / "target", tmp_path / "victim"
    af.save(pooled, target)
    victim.mkdir()
    for name in ("config.json", "model.safetensors", "modules.json"):
        (target / name).rename(victim / name)
        (target / name).symlink_to(victim / name)
    before = _content(victim)
    af.save(model, target)
    assert _content(victim) == before
    assert not any(path.is_symlink() for path in target.rglob("*"))
    af.load(target)


@posix
@pytest.mark.parametrize("saved", ["model", "pooled"])
def test_a_linked_folder_is_not_written_to(saved: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    target, victim = tmp_path / "target", tmp_path / "victim"
    af.save(request.getfixturevalue("pooled"), target)
    (target / "1_Pooling").rename(victim)
    (target / "1_Pooling").symlink_to(victim)
    before = _content(victim), _content(target)
    with pytest.raises(af.UserError, match="1_Pooling is a symbolic link out of its folder"):
        af.save(request.getfixturevalue(saved), target)
    assert (_content(victim), _content(target)) == before


@posix
@pytest.mark.parametrize("mask", [0o002, 0o027, 0o077])
def test_permissions_follow_the_umask(model: Transformer, tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        af.save(model, tmp_path / "new" / "one")
        af.save(model, tmp_path / "new" / "one")
        af.save(model, tmp_path / "new" / "shards", max_shard_size=5_000)
    finally:
        os.umask(before)
    made = [*(tmp_path / "new").rglob("*"), tmp_path / "new"]
    assert len(made) > 8
    for path in made:
        full = 0o777 if path.is_dir() else 0o666
        assert stat.S_IMODE(path.stat().st_mode) == full & ~mask, path


def test_a_tokenizer_is_the_third_argument(model: Transformer, tmp_path: Path) -> None:
    tokenizer = af.Tokenizer.train(["the cat sat"], "char")
    af.save(model, tmp_path / "model", tokenizer)
    loaded = af.load(tmp_path / "model")[1]
    assert loaded is not None
    assert loaded.encode("cat") == tokenizer.encode("cat")


def test_a_gguf_file_is_no_directory(model: Transformer, tmp_path: Path) -> None:
    with pytest.raises(af.UserError, match=r"m\.gguf would be a directory of this name: `save_gguf` writes the file"):
        af.save(model, tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())


NUMBERS = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int8, torch.uint8, torch.bool)


@examples(30)
@given(st.lists(st.tuples(st.sampled_from(NUMBERS), st.lists(st.integers(0, 4), max_size=3)), max_size=6))
def test_a_file_is_written_a_tensor_at_a_time_as_safetensors_writes_it(
    tensors: list[tuple[torch.dtype, list[int]]],
) -> None:
    whole = {f"weight {len(tensors) - n} é": torch.ones(shape).to(dtype) for n, (dtype, shape) in enumerate(tensors)}
    with tempfile.TemporaryDirectory() as folder:
        expected, file = Path(folder, "expected"), Path(folder, "file")
        save_file(whole, expected, {"format": "pt"})
        on_meta = {name: tensor.to("meta") for name, tensor in whole.items()}
        write_tensors(file, on_meta, {"format": "pt"}, whole.__getitem__)
        assert file.read_bytes() == expected.read_bytes()


def test_matrices_of_integers_are_unpacked_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[int] = []
    made = list[weakref.ref[torch.Tensor]]()
    unpacked = QuantizedMatrix.unpacked

    def watched(matrix: QuantizedMatrix) -> QuantizedWeight:
        weight = unpacked(matrix)
        alive.append(sum(each() is not None for each in made))
        made.append(weakref.ref(weight.integers))
        return weight

    wide = af.build(af.preset("llama-nano", d_model=32, decoder_layers=2, feed_forward={"width": 64}))
    quantized = af.quantize(wide, "int4")
    monkeypatch.setattr(QuantizedMatrix, "unpacked", watched)
    af.save(quantized, tmp_path / "small")
    assert len(made) == len(list(quantized_weights(quantized)))
    assert max(alive) <= 1
