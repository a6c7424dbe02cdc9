"""A stranger's model in a stranger's folder, which is the current one as well: nothing of it is run.

Nor is anything else opened or written. Python's own hook for audits tells which modules are imported, files opened,
programs started and addresses contacted.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import torch

import anyformer as af

pytestmark = pytest.mark.skipif(os.name != "posix", reason="paths and programs of POSIX")
ROOT = Path(__file__).parents[1]

HOOK = """
import json, os, sys
_log = os.open(os.environ["AUDIT_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
_kept = ("open", "import", "subprocess.Popen", "socket.connect", "socket.getaddrinfo", "ctypes.dlopen", "os.system",
         "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod")
def _hook(event, arguments):
    if event in _kept:
        where = os.getcwd() if event == "open" or event.startswith("os.") else ""
        plain = [os.fsdecode(a) if isinstance(a, bytes) else a if isinstance(a, (str, int, type(None))) else repr(a)
                 for a in arguments]
        if event == "subprocess.Popen":
            plain = [os.fspath(arguments[0]) if arguments[0] else None, [os.fsdecode(a) for a in arguments[1]]]
        os.write(_log, (json.dumps([event, where, plain]) + chr(10)).encode())
sys.addaudithook(_hook)
"""
"""A sitecustomize, so that every Python that is started has it."""

SCRIPT = "import sys\nfrom anyformer.cli.main import script\nsys.exit(script())\n"
"""What pip makes of an entry point: Python puts the folder of the script first on the path, not the current one."""

PROGRAMS = ("g++", "gcc", "c++", "cc", "clang++", "as", "ld", "ldconfig", "git", "uname", "lscpu", "nvidia-smi", "sh")
CONTENT = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"),
    *("config.yaml", "metrics.jsonl", "model", "checkpoints", "text.txt", "labels.csv"),
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


@dataclass
class Hostile:
    """A folder that holds a model, or a run, and a decoy for every module and program."""

    folder: Path
    around: Path
    marker: Path

    def fill(self) -> None:
        """Put the decoys into it."""
        code = f"with open({str(self.marker)!r}, 'a') as marker: marker.write(__file__ + chr(10))\n"
        packages = ("anyformer", "ziglang", "deepspeed", "custom_generate")
        names = {*sys.stdlib_module_names, *packages_distributions()}
        names |= {"sitecustomize", "usercustomize", "wandb", "triton", "peft", "kernels"}
        for name in filter(str.isidentifier, names.difference(packages)):
            (self.folder / f"{name}.py").write_text(code)
        for name in packages:
            (self.folder / name).mkdir()
            for file in ("__init__", "__main__", "generate"):
                (self.folder / name / f"{file}.py").write_text(code)
        for name in PROGRAMS:
            (self.folder / name).write_text(f"#!/bin/sh\necho $0 >> {self.marker}\n")
            (self.folder / name).chmod(0o700)

    def run(self, *arguments: str, target: Path | None = None, path: str | None = None) -> list[Any]:
        """Run a command there, and look at all it did; `target` is what it may write, beside caches."""
        script, log = self.around / "bin" / "anyformer", self.around / "log"
        hook, home, temporary = (self.around / name for name in ("hook", "home", "temporary"))
        for folder in (script.parent, hook, home, temporary):
            folder.mkdir(exist_ok=True)
        script.write_text(SCRIPT)
        (hook / "sitecustomize.py").write_text(HOOK)
        log.unlink(missing_ok=True)
        cache = Path(os.environ["ANYFORMER_CACHE"]).resolve()
        changes = {
            "PYTHONPATH": os.pathsep.join([str(hook), str(ROOT / "src")]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "AUDIT_LOG": str(log),
            "HOME": str(home),
            "TMPDIR": str(temporary),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "PATH": os.environ["PATH"] if path is None else path,
        }
        environment = {**os.environ, **changes}
        # Torch has put the second there for itself; the first would hide what is forgotten.
        for name in ("PYTHONSAFEPATH", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
            environment.pop(name, None)
        command = [sys.executable, str(script), *arguments]
        done = subprocess.run(
            command, cwd=self.folder, env=environment, input="", capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        events = [json.loads(line) for line in log.read_text().splitlines()]
        assert any(event == "open" for event, *_ in events)
        assert not self.marker.exists(), self.marker.read_text()
        self._check(events, [home, temporary, cache, *([] if target is None else [target])])
        return events

    def _check(self, events: list[Any], writable: list[Path]) -> None:
        installed = {Path(path).resolve() for path in sysconfig.get_paths().values()}
        installed |= {Path(path).resolve() for path in (sys.prefix, sys.base_prefix, ROOT / "src")}
        system = [Path(name) for name in ("/proc", "/sys", "/dev", "/etc", "/usr", "/lib", "/lib64", "/bin", "/sbin")]
        readable = [*installed, *system, *writable, *(self.around / name for name in ("hook", "bin", "text.txt"))]
        readable += [self.folder / name for name in CONTENT]
        for event, where, arguments in events:
            if event == "import":
                assert not str(arguments[1] or "").startswith(str(self.folder)), arguments
            elif event == "open" and isinstance(arguments[0], str):
                file = Path(where, arguments[0]).resolve()
                writes = bool((arguments[2] or 0) & _WRITING) and file != Path(os.devnull)
                allowed = writable if writes else readable
                assert any(map(file.is_relative_to, allowed)), ("written" if writes else "read", file)
            elif event in ("os.remove", "os.rmdir") and arguments[1] != -1:
                pass  # named within a folder that is being removed, and was itself looked at
            elif event.startswith("os."):
                changed = [Path(where, each).resolve() for each in arguments[:2] if isinstance(each, str)]
                assert all(any(file.is_relative_to(each) for each in writable) for file in changed), (event, arguments)
            elif event == "subprocess.Popen":
                program, command = arguments
                if Path(command[0]).name.startswith("python"):
                    assert command[1] == "-P" or "-m" not in command[:4], command
                assert not str(program).startswith(str(self.folder)), command
            elif event.startswith("socket."):
                assert "127.0.0.1" in str(arguments) or "localhost" in str(arguments), arguments
            elif event == "ctypes.dlopen" and arguments[0] is not None:
                assert not str(arguments[0]).startswith((str(self.folder), ".")), arguments


@pytest.fixture
def hostile(tmp_path: Path) -> Hostile:
    made = Hostile(tmp_path / "hostile", tmp_path, tmp_path / "marker")
    made.folder.mkdir()
    return made


def _save(folder: Path, preset: str, **changes: Any) -> None:
    torch.manual_seed(0)
    objective = {"bert-tiny": "masked", "t5-nano": "span_corruption"}.get(preset, "causal")
    tokenizer = af.Tokenizer.train(["hello there, general text\n"] * 9, "bpe:400", special=objective)
    layers = {"encoder_layers": 1} if preset == "bert-tiny" else {"decoder_layers": 1}
    config = af.preset(preset, vocab_size=tokenizer.vocab_size, **layers)
    af.save(af.build(config.replace(**changes)), folder, tokenizer=tokenizer)


def test_generate(hostile: Hostile) -> None:
    _save(hostile.folder, "llama-nano")
    hostile.fill()
    hostile.run("generate", ".", "hello", "--max-new-tokens", "2")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "arguments"),
    [
        ("llama-nano", "show ."),
        ("llama-nano", "diff . gpt2"),
        ("llama-nano", "generate . hello --max-new-tokens 2 --quantize int8"),
        ("llama-nano", "chat . --max-new-tokens 2"),
        ("llama-nano", "evaluate . --data text.txt"),
        ("llama-nano", "verify ."),
        ("llama-nano", "convert . TARGET --type int8"),
        ("llama-nano", "convert . TARGET.gguf"),
        ("bert-tiny", "fill . hello[MASK]"),
        ("bert-tiny", "embed . hello"),
        ("bert-tiny", "classify . hello --second there"),
        ("bert-tiny", "finetune . --data labels.csv --steps 1 --device cpu --runs TARGET"),
        ("bert-tiny", "verify ."),
        ("t5-nano", "generate . hello --max-new-tokens 2"),
    ],
)
def test_every_command(hostile: Hostile, tmp_path: Path, preset: str, arguments: str) -> None:
    head = {"kind": "classification", "transform": None, "bias": "none", "pooler": "tanh"}
    _save(hostile.folder, preset, **({"head": head} if arguments.startswith("classify") else {}))
    (hostile.folder / "text.txt").write_text("hello there, general text\n" * 20)
    (hostile.folder / "labels.csv").write_text(
        "text,label\n" + "".join(f"hello {n},{'ab'[n % 2]}\n" for n in range(12))
    )
    hostile.fill()
    target = tmp_path / "made"
    target.mkdir()
    words = arguments.replace("TARGET", str(target / "model")).split()
    hostile.run(*words, target=target)


@pytest.fixture
def resumable(hostile: Hostile, capsys: pytest.CaptureFixture[str]) -> Hostile:
    """A run that isn't at its end."""
    from anyformer.cli import train

    text = hostile.around / "text.txt"
    text.write_text("hello there, general text\n" * 200)
    flags = "--tokenizer char --context 16 --batch-size 4 --steps 4 --save-every 2 --device cpu --dtype float32"
    shape = "--model.d-model 16 --model.decoder-layers 1 --model.attention.heads 2 --model.feed-forward.width 16"
    shape += " --keep-optimizer"
    shutil.rmtree(hostile.folder)
    place = ["--runs", str(hostile.folder.parent), "--name", hostile.folder.name]
    assert train.run(["gpt2-nano", "--data", str(text), *flags.split(), *shape.split(), *place]) == 0
    shutil.rmtree(hostile.folder / "checkpoints" / "step-00000004")
    hostile.fill()
    return hostile


@pytest.mark.parametrize("flags", ["", pytest.param("--engine ddp --processes 2", marks=pytest.mark.slow)])
def test_train_resume(resumable: Hostile, flags: str) -> None:
    """It writes into the run, whose decoys stay as they are."""
    before = {path: path.read_bytes() for path in resumable.folder.glob("*.py")}
    resumable.run("train", "--resume", ".", *flags.split(), target=resumable.folder)
    assert {path: path.read_bytes() for path in resumable.folder.glob("*.py")} == before
