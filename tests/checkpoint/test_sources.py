"""Model directories that came from a stranger: what is in them leads nowhere else, and nothing is waited for."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import anyformer as af
from anyformer.cli.main import main
from anyformer.spec import read_config
from anyformer.tokenizer.files import TOKENIZER_FILES

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="links and named pipes as POSIX has them"),
    pytest.mark.timeout(60),
]

Plant = Callable[[Path], None]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has every file that is read."""
    place = tmp_path_factory.mktemp("foreign") / "model"
    small = {"vocab_size": 300, "d_model": 32, "encoder_layers": 1, "attention": {"heads": 2}}
    model = af.build(af.preset("bert-tiny", **small, pooling={"kind": "first"}))
    words = af.Tokenizer.train(["the cat sat", "on the mat"], "bpe:280")
    af.save(model, place, tokenizer=af.Tokenizer(words.backend, {**words.config, "chat_template": "{{ messages }}"}))
    return place


def _pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def _link_out(path: Path) -> None:
    outside = path.parents[2] / f"{path.parts[-3]}-{path.name}"
    outside.write_bytes(path.read_bytes() if path.exists() else b"{}")
    path.unlink(missing_ok=True)
    path.symlink_to(outside)


def _device(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


PLANTS = {
    _pipe: "is not a file but a named pipe",
    _link_out: "is a symbolic link out of its folder",
    _device: "is a symbolic link out of its folder",
}


@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.parametrize(
    "name",
    [
        *("config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json"),
        *("pytorch_model.bin", "pytorch_model.bin.index.json"),
        *("modules.json", "1_Pooling/config.json", "sentence_bert_config.json"),
        "config_sentence_transformers.json",
        *TOKENIZER_FILES,
    ],
)
def test_every_file_of_a_model_is_one_of_its_folder(name: str, plant: Plant, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "model")
    plant(tmp_path / "model" / name)
    with pytest.raises(af.UserError, match=f"{name} {PLANTS[plant]}"):
        af.load(tmp_path / "model", allow_pickle=True)
    if name in TOKENIZER_FILES:
        with pytest.raises(af.UserError, match=f"{name} {PLANTS[plant]}"):
            af.Tokenizer.load(tmp_path / "model")


@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
def test_so_is_every_shard(kind: str, plant: Plant, whole: Path, tmp_path: Path) -> None:
    place = tmp_path / "model"
    shutil.copytree(whole, place)
    (place / "model.safetensors").unlink()
    (place / f"{kind}.index.json").write_text(json.dumps({"weight_map": {"a": "first.bin", "b": "second.bin"}}))
    torch.save({"a": torch.zeros(1)}, place / "first.bin")
    if kind == "model.safetensors":
        shutil.copyfile(whole / kind, place / "first.bin")
    plant(place / "second.bin")
    with pytest.raises(af.UserError, match=f"second.bin {PLANTS[plant]}"):
        af.load(place, allow_pickle=True)


@pytest.mark.parametrize("plant", PLANTS)
def test_a_config_that_is_only_shown(
    plant: Plant, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in (tmp_path / "a", tmp_path / "run" / "model"):
        shutil.copytree(whole, place)
        plant(place / "config.json")
        shown = place.parent if place.name == "model" else place
        with pytest.raises(af.UserError, match=r"named pipe|symbolic link out of its folder"):
            read_config(str(shown))
        assert main(["show", str(shown)]) == 2
        assert "config.json" in capsys.readouterr().err


def test_the_model_of_a_run_is_its_own(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").symlink_to(whole)
    with pytest.raises(af.UserError, match=r"model is a symbolic link out of its folder"):
        af.load(tmp_path / "run")


def test_so_is_a_gguf_file(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    (tmp_path / "folder" / "a.gguf").symlink_to(tmp_path / "a.gguf")
    with pytest.raises(af.UserError, match=r"a.gguf is a symbolic link out of its folder"):
        af.load(tmp_path / "folder")
    _pipe(tmp_path / "folder" / "a.gguf")
    with pytest.raises(af.UserError, match=r"a.gguf is not a file but a named pipe"):
        af.load(tmp_path / "folder")
    with pytest.raises(af.UserError, match=r"a.gguf is a file, but neither"):
        af.load(tmp_path / "folder" / "a.gguf")


def test_folders_of_pooling_lead_nowhere_else(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "model")
    (tmp_path / "model" / "1_Pooling").rename(tmp_path / "outside")
    (tmp_path / "model" / "1_Pooling").symlink_to(tmp_path / "outside")
    with pytest.raises(af.UserError, match=r"1_Pooling.* is a symbolic link out of its folder"):
        af.load(tmp_path / "model")


def test_links_that_stay_inside_and_what_nobody_reads_are_no_harm(whole: Path, tmp_path: Path) -> None:
    place = tmp_path / "model"
    shutil.copytree(whole, place)
    (place / "model.safetensors").rename(place / "weights")
    (place / "model.safetensors").symlink_to("weights")
    (place / "README.md").symlink_to("/etc/hostname")
    _pipe(place / "notes.txt")
    (tmp_path / "link").symlink_to(place)
    for path in (place, tmp_path / "link"):
        assert af.load(path)[1] is not None


def test_the_cache_of_the_hub_is_read(whole: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "0123", tmp_path / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    for number, path in enumerate(each for each in whole.rglob("*") if each.is_file()):
        shutil.copyfile(path, blobs / str(number))
        link = snapshot / path.relative_to(whole)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blobs / str(number), link.parent))
    model, tokenizer = af.load(snapshot)
    assert tokenizer is not None
    assert model.config.pooling.kind == "first"
    af.save(model, tmp_path / "copy", tokenizer=tokenizer)
    assert not any(path.is_symlink() for path in (tmp_path / "copy").rglob("*"))
