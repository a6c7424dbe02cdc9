from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from anyformer.data.disk_cache import Cache, identity, key
from anyformer.errors import UserError


def write(text: str):
    return lambda folder: (folder / "a.txt").write_text(text)


def read(folder: Path) -> str:
    try:
        text = (folder / "a.txt").read_text()
    except OSError as error:
        raise UserError("damaged") from error
    if text == "rubbish":
        raise UserError("damaged")
    return text


def fails(folder: Path) -> None:
    raise AssertionError("this is in the cache")


def test_an_entry_is_made_once(tmp_path: Path):
    cache = Cache(tmp_path / "deep" / "cache")
    assert cache.entry("kind", "k", write("one"), read) == "one"
    assert cache.entry("kind", "k", fails, read) == "one"
    assert cache.entry("kind", "other", write("two"), read) == "two"
    assert sorted(path.name for path in (tmp_path / "deep" / "cache" / "kind").iterdir()) == ["k", "other"]


@pytest.mark.parametrize("damage", ["rubbish", None])
def test_a_damaged_entry_is_made_again(tmp_path: Path, damage: str | None):
    cache = Cache(tmp_path)
    cache.entry("kind", "k", write("one"), read)
    path = tmp_path / "kind" / "k" / "a.txt"
    path.unlink() if damage is None else path.write_text(damage)
    assert cache.entry("kind", "k", write("new"), read) == "new"
    assert [path.name for path in (tmp_path / "kind").iterdir()] == ["k"]


def test_of_two_that_make_one_entry_the_first_wins(tmp_path: Path):
    cache = Cache(tmp_path)

    def slow(folder: Path) -> None:
        write("slow")(folder)
        assert Cache(tmp_path).entry("kind", "k", write("fast"), read) == "fast"

    assert cache.entry("kind", "k", slow, read) == "fast"
    assert [path.name for path in (tmp_path / "kind").iterdir()] == ["k"]


def test_a_failure_leaves_nothing(tmp_path: Path):
    def make(folder: Path) -> None:
        write("half")(folder)
        raise UserError("no more")

    with pytest.raises(UserError, match="no more"):
        Cache(tmp_path).entry("kind", "k", make, read)
    assert not list((tmp_path / "kind").iterdir())


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"can't be written: No space left on device\. Free .* --cache") as error:
        Cache(tmp_path).entry("kind", "k", write("one"), read)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "kind").iterdir())


def test_a_folder_that_can_not_be_made(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"The cache folder .*file can't be written: "):
        Cache(tmp_path / "file").entry("kind", "k", write("one"), read)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_read_only_cache_serves_what_it_has(tmp_path: Path):
    cache = Cache(tmp_path)
    cache.entry("kind", "k", write("one"), read)
    (tmp_path / "kind").chmod(0o500)
    try:
        assert cache.entry("kind", "k", fails, read) == "one"
        with pytest.raises(UserError, match="can't be written: Permission denied"):
            cache.entry("kind", "other", write("two"), read)
    finally:
        (tmp_path / "kind").chmod(0o700)


_MAKES = """
import sys, time
from pathlib import Path
from anyformer.data.disk_cache import Cache

def make(folder):
    for number in range(200):
        (folder / str(number)).write_text("x" * 1000)
        if number == 100:
            print("half", flush=True)
        time.sleep(0.001)

Cache(sys.argv[1]).entry("kind", "k", make, lambda folder: None)
print("whole", flush=True)
"""


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.1, 0.2])
def test_a_kill_leaves_an_entry_whole_or_absent(tmp_path: Path, delay: float):
    process = subprocess.Popen([sys.executable, "-c", _MAKES, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "half\n"
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    place = tmp_path / "kind" / "k"
    if place.exists():
        assert {path.name for path in place.iterdir()} == {str(number) for number in range(200)}

    def make(folder: Path) -> None:
        (folder / "199").write_text("again")

    assert Cache(tmp_path).entry("kind", "k", make, lambda folder: (folder / "199").read_text()) in (
        "again",
        "x" * 1000,
    )


def test_what_a_kill_left_goes_after_a_day(tmp_path: Path):
    cache = Cache(tmp_path)
    for name, age in ((".new.old.tmp", 2 * 86400), (".new.now.tmp", 60)):
        folder = tmp_path / "kind" / name
        folder.mkdir(parents=True)
        (folder / "half").touch()
        for path in (folder / "half", folder):
            os.utime(path, (time.time() - age, time.time() - age))
    cache.entry("kind", "k", write("one"), read)
    assert sorted(path.name for path in (tmp_path / "kind").iterdir()) == [".new.now.tmp", "k"]


def test_a_file_is_made_once_and_content_names_another(tmp_path: Path):
    cache = Cache(tmp_path)
    first = cache.file("kind", "a.txt", lambda place: place.write_text("one"))
    assert cache.file("kind", "a.txt", fails) == first
    assert first.read_text() == "one"

    def kept(place: Path) -> str:
        place.write_text("content")
        return "name-of-content"

    assert cache.keep("kind", kept) == cache.keep("kind", kept) == tmp_path / "kind" / "name-of-content"
    assert sorted(path.name for path in (tmp_path / "kind").iterdir()) == ["a.txt", "name-of-content"]


def test_keys_and_identities(tmp_path: Path):
    assert key("a", "b") == key("a", "b")
    assert len({key("a", "b"), key("ab"), key("a", "b", None), key("a", ("b",))}) == 4
    path = tmp_path / "a.txt"
    path.write_text("hello")
    first = identity([path])
    assert identity([path]) == first
    os.utime(path, ns=(1, 1))
    assert identity([path]) != first
    path.write_text("hello!")
    os.utime(path, ns=(1, 1))
    assert len({first, identity([path]), identity([path, path])}) == 3
    with pytest.raises(UserError, match=r"gone\.txt can't be read"):
        identity([tmp_path / "gone.txt"])
