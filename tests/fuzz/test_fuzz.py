"""Damaged and hostile files: a command ends in time with an answer or a sentence, and touches nothing else.

A quarter of a few examples is drawn by the tests of every change, all of them (some 20,000) by ``pytest -m slow``.
"""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzz.mutations import mutate
from tests.fuzz.seeds import TARGETS, make_seeds
from tests.fuzz.worker import SECONDS

pytestmark = pytest.mark.skipif(not hasattr(os, "fork") or not Path("/proc").exists(), reason="needs Linux")
_SHARE, _ALL = 4 * 15, 625
_SECRET = '{"secret": 1}'
_HANGS = 3 * SECONDS
"""Seconds on the clock: other programs may share the cores, so processor time is what counts otherwise."""
_ESCAPES = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Commands:
    """A worker that runs commands, and the folder that they are run in."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("seeds", "case", "canary", "temporary"):
            (root / name).mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ANYFORMER_NATIVE", "0")
            make_seeds(root / "seeds")
        self.secret = root / "canary" / "secret.json"
        environment = os.environ | {
            "TMPDIR": str(root / "temporary"),
            "ANYFORMER_CACHE": str(root / "temporary"),
            "ANYFORMER_NATIVE": "0",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.worker", str(root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            bufsize=0,
            cwd=Path(__file__).parents[2],
        )
        self._rest = b""
        assert self._answer(300) == {"ready": True}

    def run(self, argv: list[str], text: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"argv": argv, "input": text}).encode() + b"\n")
        pid = self._answer(60)["pid"]
        answer = self._answer(_HANGS)
        if answer is None:
            os.kill(pid, signal.SIGKILL)
            self._answer(60)
            return {"signal": f"no answer after {_HANGS} seconds"}
        return answer

    def _answer(self, seconds: float) -> Any:
        assert self._process.stdout is not None
        while b"\n" not in self._rest:
            if not select.select([self._process.stdout], [], [], seconds)[0]:
                return None
            block = os.read(self._process.stdout.fileno(), 1 << 16)
            assert block, "the worker has ended"
            self._rest += block
        line, self._rest = self._rest.split(b"\n", 1)
        return json.loads(line)

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    made = Commands(tmp_path_factory.mktemp("fuzz"))
    yield made
    made.close()


def check(commands: Commands, name: str, chance: Random) -> None:
    target = TARGETS[name]
    commands.secret.write_text(_SECRET, encoding="utf-8")
    case = commands.root / "case"
    for inside in case.iterdir():
        shutil.rmtree(inside)
    folder = case / target.folder
    shutil.copytree(commands.root / "seeds" / target.folder, folder)
    changed = chance.choice(sorted(folder.glob(chance.choice(target.files))))
    mutate(changed, chance)
    command = chance.choice(target.commands).replace("{}", str(folder))
    argv = command.replace("{seeds}", str(commands.root / "seeds")).split()
    try:
        judge(commands, argv, changed)
    except AssertionError as error:
        error.add_note(f"{argv}; {changed} is {describe(changed)}")
        raise


def judge(commands: Commands, argv: list[str], changed: Path) -> None:
    """Run a command, and raise AssertionError where it doesn't end as it should."""
    answer = commands.run(argv, "the cat\n")
    assert "signal" not in answer, answer["signal"]
    assert not answer["failure"], answer["failure"]
    assert answer["seconds"] < SECONDS, answer
    # A file that the command line names may be a link; those that a folder holds are a stranger's.
    assert not answer["touched"] or (changed.is_symlink() and str(changed) in argv), answer
    assert commands.secret.read_text(encoding="utf-8") == _SECRET
    assert answer["status"] in (0, 2), answer
    assert "Traceback" not in answer["stderr"], answer["stderr"]
    if answer["status"] == 2:
        sentence = answer["stderr"].splitlines()[-1]
        assert re.match("anyformer( [a-z]+)?: ", sentence), f"no sentence: {answer['stderr']}"
        assert len(sentence) < 3000, f"a long sentence: {sentence}"
        assert "a" * 201 not in sentence, f"a long quote: {sentence}"
        assert not _ESCAPES.search(sentence), f"escapes: {sentence!r}"


def describe(path: Path) -> str:
    """What a test that fails shows of a file."""
    if path.is_symlink():
        return f"a link to {path.readlink()}"
    if not path.is_file():
        return "no file"
    with path.open("rb") as file:
        return f"{path.stat().st_size} bytes, {file.read(3000)!r}"


_settings = settings(
    max_examples=_SHARE,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize("name", TARGETS)
@_settings
@given(seed=st.integers(0, 2**32))
def test_damaged_files(commands: Commands, name: str, seed: int) -> None:
    check(commands, name, Random(seed))


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_thousands_of_damaged_files(commands: Commands, name: str) -> None:
    for seed in range(_ALL):
        check(commands, name, Random(f"{name} {seed}"))
