"""Whose files are trusted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from anyformer import atomic
from anyformer.data.disk_cache import Cache
from anyformer.errors import UserError

pytestmark = pytest.mark.skipif(os.name != "posix", reason="Windows has no such permissions")
needs_root = pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root may give files away")


def test_a_folder_is_made_for_this_user_alone(tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        made = atomic.private_folder(tmp_path / "a" / "b")
    finally:
        os.umask(mask)
    assert made == (tmp_path / "a" / "b").resolve()
    assert [path.stat().st_mode & 0o777 for path in (made, made.parent)] == [0o700, 0o700]


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


def test_others_may_add_files_beside_it_where_they_can_not_replace_it(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    tmp_path.chmod(0o1777)
    atomic.check_own(tmp_path / "folder")
    with pytest.raises(PermissionError):  # what is in it may be theirs
        atomic.check_own(tmp_path)


def test_a_link_is_followed_to_what_is_trusted(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("open")
    (tmp_path / "open" / "file").touch()
    assert atomic.check_own(tmp_path / "link" / "file") == (tmp_path / "open" / "file").resolve()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(PermissionError):
        atomic.check_own(tmp_path / "link" / "file")


@needs_root
@pytest.mark.parametrize("theirs", ["folder/file", "folder"])
def test_what_belongs_to_somebody_else_is_refused(theirs: str, tmp_path: Path) -> None:
    file = tmp_path / "folder" / "file"
    file.parent.mkdir()
    file.touch()
    os.chown(tmp_path / theirs, 12345, 12345)
    with pytest.raises(PermissionError, match="belongs to another user"):
        atomic.check_own(file)


def test_tokens_are_read_from_a_folder_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cache"
    monkeypatch.setenv("ANYFORMER_CACHE", str(folder))
    assert Cache().folder == folder.resolve()
    folder.chmod(0o777)
    with pytest.raises(UserError, match=r"other users may write to .*cache: chmod go-w it.*--cache"):
        Cache()
    assert Cache(folder).folder == folder  # asked for


def test_there_is_no_cache_in_the_current_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANYFORMER_CACHE", raising=False)
    monkeypatch.setattr(atomic, "user_cache_path", lambda *names, **options: Path("~/.cache/anyformer"))
    with pytest.raises(UserError, match="set ANYFORMER_CACHE"):
        atomic.cache_folder()
