"""Files and folders that are replaced whole or not at all."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from anyformer import atomic
from anyformer.data.disk_cache import Cache
from anyformer.errors import UserError


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(("content", "stored"), [("ä\n", b"\xc3\xa4\n"), (b"\x00\r\n", b"\x00\r\n"), ("\ud800", b"?")])
def test_a_file_is_replaced(tmp_path: Path, content: str | bytes, stored: bytes):
    for _ in range(2):
        atomic.write(tmp_path / "file", content)
        assert (tmp_path / "file").read_bytes() == stored
    assert _names(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError(), OSError(errno.ENOSPC, "No space left on device")])
def test_an_error_leaves_the_old_content(tmp_path: Path, error: BaseException):
    (tmp_path / "file").write_text("old")
    expected = UserError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected), atomic.replacing(tmp_path / "file") as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise error
    assert _names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_the_folder_must_exist_or_is_made(tmp_path: Path):
    with pytest.raises(UserError, match=r"nowhere/file can't be written: No such file or directory\.$"):
        atomic.write(tmp_path / "nowhere" / "file", "text")
    with atomic.replacing(tmp_path / "nowhere" / "file", make_parents=True) as temporary:
        temporary.write_text("text")
    assert (tmp_path / "nowhere" / "file").read_text() == "text"


@pytest.mark.skipif(os.name != "posix", reason="there is no umask")
@pytest.mark.parametrize("mask", [0o002, 0o022, 0o027, 0o077])
def test_permissions_follow_the_umask(tmp_path: Path, mask: int):
    before = os.umask(mask)
    try:
        atomic.write(tmp_path / "file", "text")
        atomic.append(tmp_path / "log", "text")
        with atomic.temporary_folder(tmp_path / "folder") as folder:
            folder.rename(tmp_path / "folder")
    finally:
        os.umask(before)
    for name in ("file", "log"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~mask
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o777 & ~mask


def test_temporary_names_differ_and_are_never_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with atomic.temporary_folder(tmp_path / "a") as one, atomic.temporary_folder(tmp_path / "a") as other:
        assert one != other
        assert one.parent == other.parent == tmp_path
    monkeypatch.setattr(atomic.secrets, "token_hex", lambda size: "same")
    with atomic.replacing(tmp_path / "b") as temporary:
        temporary.write_text("mine")
        with pytest.raises(UserError, match="File exists"), atomic.replacing(tmp_path / "b"):
            pass
    assert (tmp_path / "b").read_text() == "mine"
    assert _names(tmp_path) == ["b"]


def test_a_folder_is_moved_whole(tmp_path: Path):
    with atomic.temporary_folder(tmp_path / "deep" / "folder") as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_text("text")
        atomic.move(folder, tmp_path / "deep" / "folder")
    assert (tmp_path / "deep" / "folder" / "inner" / "file").read_text() == "text"
    with pytest.raises(OSError, match="not empty"), atomic.temporary_folder(tmp_path / "deep" / "folder") as folder:
        atomic.move(folder, tmp_path / "deep" / "folder")
    assert _names(tmp_path / "deep") == ["folder"]


@pytest.mark.skipif(os.name != "posix", reason="links and named pipes as POSIX has them")
def test_links_are_replaced_and_never_followed(tmp_path: Path):
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("mine")
    (tmp_path / "file").symlink_to("victim/file")
    atomic.write(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "new"
    assert not (tmp_path / "file").is_symlink()
    (tmp_path / ".file.1.tmp").symlink_to("victim")
    (tmp_path / ".file.2.tmp").symlink_to("victim/file")
    atomic.remove_abandoned(tmp_path, age=0)
    assert (victim / "file").read_text() == "mine"
    assert _names(victim) == ["file"]


@pytest.mark.skipif(os.name != "posix", reason="links and named pipes as POSIX has them")
@pytest.mark.timeout(20)
def test_links_and_pipes_are_not_added_to(tmp_path: Path):
    atomic.append(tmp_path / "file", "ä\n")
    atomic.append(tmp_path / "file", "\ud800")
    assert (tmp_path / "file").read_bytes() == b"\xc3\xa4\n?"
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "link").symlink_to("victim")
    (tmp_path / "dangling").symlink_to("elsewhere")
    for name in ("link", "dangling"):
        with pytest.raises(UserError, match=f"{name} is a symbolic link"):
            atomic.append(tmp_path / name, "text")
    assert (tmp_path / "victim").read_text() == "mine"
    assert not (tmp_path / "elsewhere").exists()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="No such device"):  # nobody reads it
        atomic.append(tmp_path / "pipe", "text")


@pytest.mark.skipif(os.name != "posix", reason="links and named pipes as POSIX has them")
@pytest.mark.parametrize("target", ["../outside", "../outside/file", "../gone", "/", "../../{name}/outside"])
@pytest.mark.parametrize("place", ["a", "kind/a", "kind/entry/a", "kind/entry/deeper/a"])
def test_a_directory_with_a_link_out_of_it_is_not_opened(tmp_path: Path, place: str, target: str):
    directory = tmp_path / "directory"
    (directory / "kind" / "entry" / "deeper").mkdir(parents=True)
    (directory / "kind" / "entry" / "file").touch()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").touch()
    logs = directory / "wandb" / "run-20261129_173835-x" / "logs"
    logs.mkdir(parents=True)
    (directory / "wandb" / "latest-run").symlink_to("run-20261129_173835-x")
    (logs / "debug-core.log").symlink_to(tmp_path / "outside" / "file")
    assert atomic.open_directory(directory) == directory
    depth = place.count("/")
    up = target if target == "/" else "../" * depth + target.format(name=tmp_path.name)
    (directory / place).symlink_to(up)
    with pytest.raises(UserError, match="a is a symbolic link, by which something elsewhere"):
        atomic.open_directory(directory)
    (tmp_path / "link").symlink_to(directory)
    with pytest.raises(UserError, match="a is a symbolic link"):
        atomic.open_directory(tmp_path / "link")
    # Only what is between the root and an entry, and in the entry, is looked at.
    parts = ("kind", "entry", "file")[: depth + 1]
    if depth < 2:
        assert atomic.open_directory(directory, *parts) == directory.joinpath(*parts)


@pytest.mark.skipif(os.name != "posix", reason="links and named pipes as POSIX has them")
def test_no_part_on_the_way_is_a_link(tmp_path: Path):
    (tmp_path / "root" / "kind" / "entry").mkdir(parents=True)
    (tmp_path / "root" / "other").symlink_to("kind")
    (tmp_path / "root" / "kind" / "linked").symlink_to("entry")
    (tmp_path / "root" / "kind" / "entry" / "file").touch()
    (tmp_path / "root" / "kind" / "entry" / "again").symlink_to("file")
    for parts in (("other", "entry"), ("kind", "linked"), ("kind", "entry"), ("kind", "entry", "again")):
        with pytest.raises(UserError, match=r"(other|linked|again) is a symbolic link"):
            atomic.open_directory(tmp_path / "root", *parts)
    assert atomic.open_directory(tmp_path / "root", "kind", "missing") == tmp_path / "root" / "kind" / "missing"


_WRITES = """
import sys
from pathlib import Path
from anyformer import atomic
print("go", flush=True)
for number in range(10**6):
    atomic.write(Path(sys.argv[1]), str(number % 10) * 100_000)
"""


@pytest.mark.parametrize("delay", [0.0, 0.01, 0.02, 0.05])
def test_a_kill_leaves_old_or_new_content(tmp_path: Path, delay: float):
    file = tmp_path / "file"
    file.write_text("x" * 100_000)
    process = subprocess.Popen([sys.executable, "-c", _WRITES, str(file)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "go\n"
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    text = file.read_text()
    assert len(text) == 100_000
    assert len(set(text)) == 1
    atomic.remove_abandoned(tmp_path, age=0)
    assert _names(tmp_path) == ["file"]


def test_only_what_is_old_is_removed(tmp_path: Path):
    for name, age in ((".a.1.tmp", 2 * 86400), (".b.1.tmp", 2 * 86400), (".a.2.tmp", 60), ("a.tmp", 2 * 86400)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age, time.time() - age))
    atomic.remove_abandoned(tmp_path)
    assert _names(tmp_path) == [".a.2.tmp", "a.tmp"]
    atomic.remove_abandoned(tmp_path, age=0)
    assert _names(tmp_path) == ["a.tmp"]


@pytest.mark.skipif(sys.platform != "linux", reason="other platforms have folders of their own")
def test_the_cache_folder_is_the_environments_or_the_users(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("ANYFORMER_CACHE", raising=False)
    assert atomic.cache_folder() == Path.home() / ".cache" / "anyformer"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert atomic.cache_folder() == Path("/x/anyformer")
    monkeypatch.setenv("ANYFORMER_CACHE", "/y")
    assert atomic.cache_folder() == Path("/y")


posix = pytest.mark.skipif(os.name != "posix", reason="Windows has no such permissions")
needs_root = pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root may give files away")


@posix
def test_a_folder_is_made_for_this_user_alone(tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        made = atomic.private_folder(tmp_path / "a" / "b")
    finally:
        os.umask(mask)
    assert made == (tmp_path / "a" / "b").resolve()
    assert [path.stat().st_mode & 0o777 for path in (made, made.parent)] == [0o700, 0o700]


@posix
@pytest.mark.parametrize("shared", ["folder/file", "folder", "."])
@pytest.mark.parametrize("mode", [0o757, 0o775])
def test_what_others_may_write_is_refused(
    shared: str, mode: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic, "_is_own_group", lambda number: False)
    file = tmp_path / "folder" / "file"
    file.parent.mkdir()
    file.touch()
    assert atomic.check_own(file) == file.resolve()
    (tmp_path / shared).chmod(mode)
    with pytest.raises(PermissionError, match=f"may write to {(tmp_path / shared).resolve()}: chmod"):
        atomic.check_own(file)


@posix
def test_others_may_add_files_beside_it_where_they_can_not_replace_it(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    tmp_path.chmod(0o1777)
    atomic.check_own(tmp_path / "folder")
    with pytest.raises(PermissionError):  # what is in it may be theirs
        atomic.check_own(tmp_path)


@posix
def test_a_link_is_followed_to_what_is_trusted(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("open")
    (tmp_path / "open" / "file").touch()
    assert atomic.check_own(tmp_path / "link" / "file") == (tmp_path / "open" / "file").resolve()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(PermissionError):
        atomic.check_own(tmp_path / "link" / "file")


@posix
@needs_root
@pytest.mark.parametrize("theirs", ["folder/file", "folder"])
def test_what_belongs_to_somebody_else_is_refused(theirs: str, tmp_path: Path) -> None:
    file = tmp_path / "folder" / "file"
    file.parent.mkdir()
    file.touch()
    os.chown(tmp_path / theirs, 12345, 12345)
    with pytest.raises(PermissionError, match="belongs to another user"):
        atomic.check_own(file)


@posix
def test_tokens_are_read_from_a_folder_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cache"
    monkeypatch.setenv("ANYFORMER_CACHE", str(folder))
    assert Cache().folder == folder.resolve()
    folder.chmod(0o777)
    with pytest.raises(UserError, match=r"other users may write to .*cache: chmod go-w it.*--cache"):
        Cache()
    assert Cache(folder).folder == folder  # asked for


@posix
def test_there_is_no_cache_in_the_current_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANYFORMER_CACHE", raising=False)
    monkeypatch.setattr(atomic, "user_cache_path", lambda *names, **options: Path("~/.cache/anyformer"))
    with pytest.raises(UserError, match="set ANYFORMER_CACHE"):
        atomic.cache_folder()
