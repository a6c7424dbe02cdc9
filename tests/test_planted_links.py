"""A stranger's directory with a symbolic link in it: no command that goes on with it changes anything elsewhere.

Directories of every kind are made once. Then links are planted at each level, in the place of what is there and of what
would be made: to a copy of the same thing outside, to other files and folders, and to nothing.
"""

from __future__ import annotations

import os
import shutil
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import anyformer as af
from anyformer.cli.main import main
from anyformer.compare.compare import compare
from tests.compare.texts import text
from tests.finetuning import toys

pytestmark = pytest.mark.skipif(os.name != "posix", reason="links as POSIX has them")

DEVICE = "--device cpu --dtype float32"
SIZE = "--model.d-model 8 --model.decoder-layers 1 --model.attention.heads 2 --model.feed-forward.width 8"
TRAIN = f"train gpt2-nano --data TEXT --tokenizer char --context 8 --batch-size 2 --save-every 1 {SIZE} {DEVICE}"
FINETUNE = f"finetune base --data TEXT --task text --context 16 --lora 2 --batch-size 2 --save-every 1 {DEVICE}"
COMPARE = (
    "compare gpt2-nano:d_model=8,decoder_layers=1 --vary norm.kind=layer,rms --match none --data TEXT "
    f"--tokenizer bpe:300 --tokens 60 --seeds 1 --context 16 --batch-size 2 --no-tasks {DEVICE} --out comparison"
)
GENERATE = "generate base --file prompts.txt --max-new-tokens 1 --device cpu --batch-size 1"
MAKE = (
    f"{TRAIN} --steps 2 --runs . --name run --cache cache",
    f"{FINETUNE} --steps 2 --runs . --name tuned",
    COMPARE,
    "convert run model --type int8",
    f"{GENERATE} --out answers/a.jsonl",
)
GOES_ON: Mapping[str, Sequence[str]] = {
    "run": ("train --resume run --steps 3",),
    "tuned": ("finetune --resume tuned --steps 3",),
    "comparison": (COMPARE,),
}
"""Commands that go on with a directory, and refuse one with a link."""
WRITES: Mapping[str, Sequence[str]] = {
    "run": ("report run", "runs run --html report.html", "convert run new --type int8"),
    "tuned": ("report tuned",),
    "model": ("convert run model --type int8",),
    "answers": (f"{GENERATE} --out answers/a.jsonl",),
    "cache": (f"{TRAIN} --steps 1 --runs new --cache cache",),
}
"""Commands that need some of a directory, or replace what is in it, whatever they make of a link."""
MADE: Mapping[str, Sequence[str]] = {
    "run": (".lock", "wandb", "tensorboard", "evaluation.json", "checkpoints/step-00000003", "wandb/run-1/files"),
    "tuned": ("before.json", "checkpoints/.step-00000003.x.tmp"),
    "comparison": (
        "jobs/1-other",
        "jobs/.0-norm.kind=layer-seed0.lock",
        "jobs/0-norm.kind=layer-seed0/checkpoints/step-00000009",
    ),
    "cache": ("tokens/other", "sources"),
    "model": ("1_Pooling", "model.safetensors.index.json", "generation_config.json"),
    "answers": (".a.jsonl.lock", "b.jsonl"),
}
"""What isn't there yet, and may be made."""


def _contents(folder: Path) -> dict[str, Any]:
    return {
        str(path.relative_to(folder)): path.readlink() if path.is_symlink() else path.is_dir() or path.read_bytes()
        for path in folder.rglob("*")
    }


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a directory of each kind, and what they were made from."""
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("text.txt").write_text(text(100))
        Path("prompts.txt").write_text("the cat\nthe dog\n")
        model, tokenizer = toys.decoder()
        af.save(model, "base", tokenizer=tokenizer)
        for command in MAKE:
            assert _run(folder, command) == 0, command
    return folder


def _run(world: Path, command: str) -> int:
    """Run a command. Its text has one path, of which a comparison remembers that it is the same."""
    return main(command.replace("TEXT", str(world / "text.txt")).split())


def _places(world: Path, kind: str) -> list[str]:
    there = sorted(str(path.relative_to(world / kind)) for path in (world / kind).rglob("*"))
    return [*there, *MADE[kind]]


def _plant(directory: Path, outside: Path, place: str, target: str) -> None:
    """Put a link in the place of what is in a directory: to nothing, a file, a folder, or a copy of the same."""
    outside.mkdir()
    (outside / "file").write_text("mine")
    (outside / "folder").mkdir()
    (outside / "folder" / "file").write_text("mine")
    path = directory / place
    path.parent.mkdir(parents=True, exist_ok=True)
    if target == "copy" and (path.exists() or path.is_symlink()):
        path.rename(outside / "copy")
    elif path.exists() or path.is_symlink():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.symlink_to(outside / target)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_nothing_elsewhere_is_changed(
    world: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str], data: st.DataObject
) -> None:
    kind = data.draw(st.sampled_from(sorted(MADE)))
    place = data.draw(st.sampled_from(_places(world, kind)))
    _check(world, tmp_path_factory.mktemp("case"), capsys, kind, place, data.draw(st.sampled_from(TARGETS)))


TARGETS = ("copy", "folder", "file", "nothing")


@pytest.mark.parametrize(
    ("kind", "place", "target"),
    [
        ("comparison", "jobs", "folder"),
        ("comparison", "jobs/0-norm.kind=layer-seed0", "folder"),
        ("comparison", "jobs/0-norm.kind=layer-seed0", "copy"),
        ("comparison", ".lock", "file"),
        ("comparison", "data", "copy"),
        ("cache", "tokens", "folder"),
    ],
)
def test_nothing_elsewhere_is_changed_by_links_that_once_did(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, place: str, target: str
) -> None:
    _check(world, tmp_path, capsys, kind, place, target)


def _check(world: Path, scratch: Path, capsys: pytest.CaptureFixture[str], kind: str, place: str, target: str) -> None:
    shutil.copytree(world / kind, scratch / kind)
    for jobs in (scratch / kind).glob("jobs/*.json"):
        jobs.unlink()  # there is something left to do
    for each in world.iterdir():
        if each.name != kind:
            (scratch / each.name).symlink_to(each)
    outside = scratch / "outside"
    _plant(scratch / kind, outside, place, target)
    before = _contents(outside), _contents(world)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(scratch)
        for command in (*GOES_ON.get(kind, ()), *WRITES.get(kind, ())):
            capsys.readouterr()
            status, message = _run(world, command), capsys.readouterr().err
            assert status in (0, 2), command
            if status:
                assert message.count("\n") == 1, message
            if command in GOES_ON.get(kind, ()):
                assert "symbolic link" in message, (command, message)
            assert (_contents(outside), _contents(world)) == before, command


def test_a_folder_that_nobody_named_is_no_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name follows from the request, so a stranger can plant it in the current folder."""
    monkeypatch.chdir(tmp_path)
    Path("elsewhere").mkdir()
    Path("link").symlink_to("elsewhere")
    monkeypatch.setattr("anyformer.compare.compare.default_folder", lambda request: Path("link"))
    with pytest.raises(af.UserError, match="link is a symbolic link"):
        compare(["gpt2-nano", "llama-nano"])
    assert not any(Path("elsewhere").iterdir())


def test_a_linked_lock_truncates_nothing(tmp_path: Path) -> None:
    """Whoever plants a link after a directory was opened finds that the lock isn't taken through it."""
    (tmp_path / "victim").write_text("mine")
    for name in ("victim", "nothing"):
        lock = tmp_path / f"{name}.lock"
        lock.symlink_to(tmp_path / name)
        with pytest.raises(OSError):
            FileLock(lock).acquire(timeout=0)
    assert (tmp_path / "victim").read_text() == "mine"
    assert not (tmp_path / "nothing").exists()
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (floor,) = (each.partition(">=")[2] for each in project["dependencies"] if each.startswith("filelock>="))
    # 3.16.0 to 3.20.0 open what a link leads to, and truncate it.
    assert tuple(map(int, floor.split("."))) >= (3, 20, 1)
