"""Every command in every circumstance: closed streams, full devices, no home, read-only folders, ASCII, and signals.

The gate has a share of it; `pytest -m slow` walks all.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

import anyformer as af
from anyformer.cli.main import COMMANDS, main

pytestmark = pytest.mark.skipif(os.name != "posix", reason="streams and signals as POSIX has them")

SOURCE = Path(af.__file__).parents[1]
TEXT = "The cat sat on the mat. a dog ran to my house and then it slept! " * 40
TINY = ["--model.d-model=16", "--model.decoder-layers=1", "--model.attention.heads=2", "--model.feed-forward.width=16"]
TRAIN = ["--tokenizer=char", "--context=16", "--batch-size=2", "--device=cpu", *TINY]
TUNE = ["--batch-size=2", "--device=cpu", "--steps=3", "--name=new"]
ARGUMENTS: Mapping[str, list[str]] = {
    "train": ["gpt2-nano", "--data={place}/text.txt", *TRAIN, "--steps=3", "--name=new"],
    "finetune": [
        "{place}/bert",
        "--data={place}/labels.csv",
        "--steps=3",
        "--batch-size=2",
        "--device=cpu",
        "--name=new",
    ],
    "compare": [
        *("gpt2", "llama", "--data={place}/corpus.txt", "--tokenizer=bpe:300", "--context=16", "--batch-size=2"),
        *("--tokens=60", "--seeds=1", "--device=cpu", "--no-tasks", "--out=new"),
    ],
    "runs": ["{place}/runs"],
    "generate": ["{place}/gpt", "the cat", "--max-new-tokens=4"],
    "chat": ["{place}/gpt", "--max-new-tokens=4"],
    "fill": ["{place}/bert", "the [MASK] sat"],
    "embed": ["{place}/bert", "the cat", "a dog"],
    "classify": ["{place}/classifier", "the cat", "a dog"],
    "show": ["{place}/gpt"],
    "plan": ["{place}/gpt", "--context=16", "--batch-size=2", "--device=cpu"],
    "diff": ["{place}/gpt", "gpt2"],
    "attention": ["{place}/gpt", "the cat sat"],
    "diagram": ["{place}/gpt", "gpt2"],
    "eject": ["{place}/gpt", "--output=ejected.py"],
    "explain": ["{place}/gpt"],
    "evaluate": ["{place}/gpt", "--data={place}/text.txt", "--limit=40"],
    "verify": ["{place}/gpt"],
    "convert": ["{place}/gpt", "integers", "--type=int8"],
    "env": [],
}
TRAINERS = ("train", "finetune")
WRITERS = (*TRAINERS, "convert", "attention", "eject", "explain")
"""Commands that write a folder or a file here."""


ENDING = [name for name in COMMANDS if name != "serve"]
"""Commands that end by themselves; tests/serving has tests of the one that does not."""
GATE = ("diff", "convert")
IN_GATE = (("diff", 0.0), ("convert", 0.05), ("convert", 0.2))
"""Commands that get a signal, and when."""
walked = pytest.mark.parametrize(
    "command", [name if name in GATE else pytest.param(name, marks=pytest.mark.slow) for name in ENDING]
)

_ROOT = hasattr(os, "getuid") and os.getuid() == 0
_FOLDERS = [folder for file in (os.__file__, torch.__file__) for folder in Path(file).resolve().parents]
_READABLE = all(folder.stat().st_mode & 1 for folder in _FOLDERS)
STRANGER = 54321 if _ROOT and _READABLE else None
"""A user without an account, if this is root and Python and its packages lie where others may read them."""


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """Models and a run, in a folder that everybody may read."""
    with tempfile.TemporaryDirectory(prefix="anyformer-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "text.txt").write_text(TEXT)
        (folder / "corpus.txt").write_text(TEXT * 10)
        (folder / "labels.csv").write_text("text,label\n" + "".join(f"the cat {n},{'ab'[n % 2]}\n" for n in range(12)))
        torch.manual_seed(0)
        tokenizer = af.Tokenizer.train([TEXT], "bpe:300")
        sizes = {"vocab_size": tokenizer.vocab_size, "d_model": 16, "decoder_layers": 1}
        gpt = af.preset("gpt2-nano", **sizes).replace(attention={"heads": 2})
        af.save(
            af.build(gpt.replace(special_tokens={"bos": None, "eos": (), "pad": None})),
            folder / "gpt",
            tokenizer=tokenizer,
        )
        pieces = af.Tokenizer.train([TEXT], "wordpiece:80", special="masked")
        bert = af.preset("bert-tiny", vocab_size=pieces.vocab_size, **{"embedding.padding": pieces.pad})
        af.save(af.build(bert.replace(special_tokens={"pad": pieces.pad})), folder / "bert", tokenizer=pieces)
        classifier = bert.replace(head={"kind": "classification", "transform": None, "bias": "none", "pooler": "tanh"})
        af.save(af.build(classifier), folder / "classifier", tokenizer=pieces)
        train = [argument.format(place=folder) for argument in ARGUMENTS["train"]]
        assert main(["train", *train, "--runs", str(folder / "runs")]) == 0
        subprocess.run(["chmod", "-R", "a+rX", name], check=True)
        yield folder


@pytest.fixture
def here() -> Iterator[Path]:
    """The current folder of a command."""
    with tempfile.TemporaryDirectory(prefix="anyformer-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        yield Path(name)
        Path(name).chmod(0o755)


_SERVER = """
import gc, importlib, json, os, sys
import torch
from anyformer.cli.main import COMMANDS, script
for name in COMMANDS:
    importlib.import_module("anyformer.cli." + name)
import anyformer.cli.chat, anyformer.verify, anyformer.evaluation.perplexity, anyformer.training.run
torch.set_num_threads(1)
gc.freeze()  # else each child looks through the objects of what was imported, and copies them by that

def stream(number, path, mode):
    if path is None:
        os.close(number)
        return None
    opened = os.open(path, os.O_RDONLY if mode == "r" else os.O_WRONLY | os.O_CREAT, 0o666)
    os.dup2(opened, number)
    os.close(opened)
    errors = "surrogateescape" if mode == "r" else "strict"
    return os.fdopen(number, mode, closefd=False, encoding=job["encoding"], errors=errors)

for line in sys.stdin:
    job = json.loads(line)
    pid = os.fork()
    if pid == 0:
        for name, value in job["environment"].items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)
        sys.argv = ["anyformer", *job["argv"]]
        # Last to first: the number of one that is closed goes to what is opened next.
        sys.stderr, sys.stdout, sys.stdin = [
            stream(number, job["streams"][number], "r" if number == 0 else "w") for number in (2, 1, 0)
        ]
        sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
        if job["user"] is not None:
            os.setgroups([])
            os.setgid(job["user"])
            os.setuid(job["user"])
        os.chdir(job["here"])
        script()
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
"""A process with everything imported, which forks the commands: an import of torch takes seconds."""


class Started:
    """A command that the server has started."""

    def __init__(self, server: subprocess.Popen[str], streams: list[Path]) -> None:
        self._server, self._streams = server, streams
        self.pid = int(server.stdout.readline())

    def end(self) -> tuple[int, str, str]:
        """The exit status, standard output and standard error."""
        status = int(self._server.stdout.readline())
        out, err = (path.read_text() if path.is_file() else "" for path in self._streams)
        return status, out, err


Start = Callable[..., Started]


@pytest.fixture(scope="module")
def server() -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"ANYFORMER_NATIVE": "0"}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-P", "-c", _SERVER], env=environment, **pipes) as process:
        yield process


@pytest.fixture
def start(server: subprocess.Popen[str], place: Path, here: Path, tmp_path: Path) -> Start:
    def begin(
        command: str,
        stdin: str | None = os.devnull,
        stdout: str | None = "file",
        stderr: str | None = "file",
        encoding: str = "utf-8",
        user: int | None = None,
        argv: list[str] | None = None,
        **environment: str | None,
    ) -> Started:
        files = [tmp_path / "stdout", tmp_path / "stderr"]
        given = [str(file) if name == "file" else name for name, file in zip((stdout, stderr), files, strict=True)]
        arguments = [part.format(place=place) for part in (ARGUMENTS[command] if argv is None else argv)]
        job = {
            "argv": [command, *arguments],
            "streams": [stdin, *given],
            "encoding": encoding,
            "user": user,
            "here": str(here),
            "environment": environment,
        }
        server.stdin.write(json.dumps(job) + "\n")
        server.stdin.flush()
        return Started(server, files)

    return begin


def assert_one_sentence(said: str) -> None:
    assert said.startswith("anyformer: "), said
    assert said.endswith((".\n", "?\n")), said
    assert said.count("\n") == 1, said


def assert_whole(here: Path) -> None:
    """What a command left here can be loaded, and nothing half written is beside it."""
    for model in (here / "integers", here / "runs" / "new" / "model"):
        if model.exists():
            af.load(model)
    runs = here / "runs" / "new"
    assert not runs.exists() or (runs / "config.yaml").exists(), list(runs.iterdir())
    assert not [path for path in here.rglob("*") if "tmp" in path.name], list(here.rglob("*"))


@walked
@pytest.mark.parametrize("closed", [["stdin"], ["stdout"], ["stdin", "stdout", "stderr"]], ids=" ".join)
def test_closed_streams(command: str, closed: list[str], start: Start, here: Path) -> None:
    status, _, err = start(command, **dict.fromkeys(closed)).end()
    assert (status, "Traceback" in err) == (0, False), err
    assert_whole(here)
    assert command not in WRITERS or any(here.iterdir())


@walked
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_device(command: str, start: Start, here: Path, tmp_path: Path) -> None:
    (tmp_path / "question").write_text("the cat\n")
    status, _, err = start(command, stdin=str(tmp_path / "question"), stdout="/dev/full").end()
    assert status == 2, err
    assert err.endswith("anyformer: standard output can't be written: No space left on device.\n")
    assert "Traceback" not in err
    assert "Exception ignored" not in err
    # What was computed is there.
    assert_whole(here)
    assert command not in WRITERS or any(here.iterdir())


@walked
@pytest.mark.parametrize("home", [None, "/nonexistent"])
def test_no_home(command: str, home: str | None, start: Start, here: Path) -> None:
    options = {"HOME": home, "ANYFORMER_CACHE": None, "XDG_CACHE_HOME": None, "HF_HOME": None}
    here.chmod(0o777)
    status, _, err = start(command, user=STRANGER, **options).end()
    assert "Traceback" not in err
    if status != 0:
        assert status == 2, err
        assert_one_sentence(err)
        assert command in TRAINERS, err  # it wants a cache
    assert_whole(here)


@pytest.mark.skipif(_ROOT and STRANGER is None, reason="root may write everywhere")
@walked
def test_read_only_folders(command: str, start: Start, here: Path) -> None:
    options = {"HOME": str(here), "ANYFORMER_CACHE": None, "XDG_CACHE_HOME": None, "HF_HOME": None}
    here.chmod(0o555)
    status, _, err = start(command, user=STRANGER, **options).end()
    assert "Traceback" not in err
    assert status == (2 if command in WRITERS else 0), err
    if status:
        assert_one_sentence(err)
    assert not any(here.iterdir())


@walked
def test_ascii(command: str, start: Start, here: Path, tmp_path: Path) -> None:
    (tmp_path / "question").write_text("the caf\u00e9 cat\n")
    status, _, err = start(command, stdin=str(tmp_path / "question"), encoding="ascii").end()
    assert (status, "Traceback" in err) == (0, False), err
    assert_whole(here)


@pytest.mark.parametrize(
    ("command", "moment"),
    [
        pytest.param(command, moment, marks=[] if (command, moment) in IN_GATE else pytest.mark.slow)
        for command in ENDING
        for moment in (0.0, 0.05, 0.2)
    ],
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals(command: str, number: signal.Signals, moment: float, start: Start, here: Path, tmp_path: Path) -> None:
    argv, stdin = ARGUMENTS[command], os.devnull
    if command in TRAINERS:
        argv = ["--steps=100000" if part == "--steps=3" else part for part in argv]
    if command == "chat":  # it waits for a question
        stdin = str(tmp_path / "pipe")
        os.mkfifo(stdin)
        writer = os.open(stdin, os.O_RDWR)
    process = start(command, stdin=stdin, argv=argv)
    while not _listens(process.pid):
        time.sleep(0.001)
    time.sleep(moment)
    with suppress(ProcessLookupError):  # it has ended
        os.kill(process.pid, number)
    if command == "chat":
        os.close(writer)
    status, out, err = process.end()
    assert "Traceback" not in err
    assert status in ((128 + number,) if command in TRAINERS else (0, 128 + number)), err
    if status and "Stopping after this step" not in err:
        # A chat may have said before that the model has no template.
        assert_one_sentence(err.splitlines(keepends=True)[-1] if command == "chat" else err)
    assert_whole(here)
    if "The model is in" in out:
        assert (here / "runs" / "new" / "checkpoints").is_dir()


def _listens(pid: int) -> bool:
    """Whether a process has a handler for SIGTERM, or is over."""
    try:
        fields = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return True
    caught = next(line for line in fields.splitlines() if line.startswith("SigCgt")) if "SigCgt" in fields else ""
    return "Z (zombie)" in fields or bool(caught and int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)
