"""Runs that are killed at any moment, and resumed, end like one that was left alone."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from tests.training.conftest import metrics

TIMES = ("elapsed", "tokens_per_second", "flops_per_second", "started", "peak_flops_per_second", "engine")

_DRIVER = """
import gc, json, os, sys
from importlib import import_module
from anyformer.console import Console
from anyformer.runs import report
from anyformer.training import run
from anyformer.errors import UserError
command = import_module("anyformer.cli." + sys.argv[1])
if sys.argv[1] == "finetune":
    import anyformer.finetuning.recipe, rouge_score.rouge_scorer
gc.freeze()  # else each child looks through the objects of what was imported, and copies them by that
for line in sys.stdin:
    argv, limit = json.loads(line)
    child = os.fork()
    if child == 0:
        import resource, torch
        torch.set_num_threads(int(sys.argv[2]))
        if limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        try:
            status = command.run(argv)
        except UserError as error:
            print(error, file=sys.stderr, flush=True)
            status = 2
        os._exit(status)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""

Starts = Callable[..., tuple[int, Callable[[], int]]]


@contextmanager
def driver(command: str, threads: int = 1) -> Generator[Starts]:
    """Starts `anyformer COMMAND` in a process that has imported torch already: its pid, and what waits for its
    status."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with subprocess.Popen(
        [sys.executable, "-c", _DRIVER, command, str(threads)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        write, read = process.stdin, process.stdout

        def start(*argv: str, limit: int = 0) -> tuple[int, Callable[[], int]]:
            write.write(json.dumps([argv, limit]) + "\n")
            write.flush()
            return int(read.readline()), lambda: int(read.readline())

        yield start
        write.close()


def _log(run: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key not in TIMES} for line in metrics(run)]


def assert_same(run: Path, other: Path) -> None:
    """Log, model and the whole state of training are equal."""
    for ours, theirs in zip_longest(_log(run), _log(other)):
        assert ours == theirs, (ours, theirs)
    last = max(path.name for path in (other / "checkpoints").iterdir())
    files = [
        path.relative_to(other) for place in ("model", f"checkpoints/{last}") for path in (other / place).iterdir()
    ]
    weights = [file for file in files if file.suffix == ".safetensors"]
    assert len(weights) >= 2
    for name in weights:
        ours, theirs = load_file(run / name), load_file(other / name)
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert ours[key].tobytes() == theirs[key].tobytes(), key


def places(folder: Path, name: str) -> list[str]:
    """Flags for a run of this name."""
    return ["--runs", str(folder / "runs"), "--name", name]


def places_with_cache(folder: Path, name: str) -> list[str]:
    """Flags for a run of this name, with a cache of its own."""
    return [*places(folder, name), "--cache", str(folder / f"cache-{name}")]


def assert_survives(
    flags: Sequence[str],
    folder: Path,
    starts: Starts,
    kills: int,
    seed: int,
    check: Callable[[Path], None],
    where: Callable[[Path, str], list[str]],
) -> None:
    """Kill a run so often, and compare it with one that was left alone.

    Args:
        check: raises AssertionError if a model directory is damaged.
        where: the flags for the places of a run of this name.
    """
    begun = time.monotonic()
    _, status = starts(*flags, *where(folder, "whole"))
    assert status() == 0
    length = time.monotonic() - begun
    whole, cut = folder / "runs" / "whole", folder / "runs" / "cut"
    chance = random.Random(seed)

    def go() -> tuple[int, Callable[[], int]]:
        if (cut / "config.yaml").exists():
            return starts("--resume", str(cut))
        # It was killed before it had said what to do.
        shutil.rmtree(cut, ignore_errors=True)
        return starts(*flags, *where(folder, "cut"))

    for _ in range(kills):
        pid, status = go()
        _wait_for_a_moment(chance, cut, folder / "cache-cut", length / 2)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        ended = status() == 0
        if (cut / "model").exists():
            check(cut / "model")
        if ended:
            # It was done before it could be killed: begin another.
            assert_same(cut, whole)
            for place in (cut, folder / "cache-cut"):
                shutil.rmtree(place, ignore_errors=True)
    _, status = go()
    assert status() == 0
    assert_same(cut, whole)


def _wait_for_a_moment(chance: random.Random, run: Path, cache: Path, length: float) -> None:
    """Any time, or in the middle of tokenizing or of a checkpoint."""
    until = time.monotonic() + chance.uniform(0, length)
    watched = chance.choice([None, (run / "checkpoints", ".step-*.tmp"), (run, ".model.*"), (cache, "**/.*")])
    while time.monotonic() < until:
        if watched is not None and any(watched[0].glob(watched[1])):
            return
        time.sleep(0.001)
