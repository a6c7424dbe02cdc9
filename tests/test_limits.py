"""What a stranger's file may ask of the program."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from anyformer import limits
from anyformer.errors import UserError

READERS: list[Callable[[Path], Any]] = [
    limits.open_file,
    limits.read_bytes,
    limits.read_text,
    limits.read_json,
    limits.read_object,
    limits.read_yaml,
    limits.check_file,
]

posix = pytest.mark.skipif(os.name != "posix", reason="named pipes and devices as POSIX has them")


@posix
@pytest.mark.parametrize("read", READERS)
@pytest.mark.timeout(20)
def test_what_is_no_file_is_refused_and_not_waited_for(read: Callable[[Path], Any], tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("pipe")
    kinds = {"pipe": "a named pipe", "link": "a named pipe", "folder": "a folder"}
    for name, kind in kinds.items():
        with pytest.raises(UserError, match=f"{name} is not a file but {kind}"):
            read(tmp_path / name)
    with pytest.raises(UserError, match="zero is not a file but a device"):
        read(Path("/dev/zero"))


@posix
def test_a_socket_is_refused(tmp_path: Path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        with pytest.raises(UserError, match="is not a file but a socket"):
            limits.check_file(tmp_path / "socket")
        with pytest.raises(UserError, match="socket"):
            limits.read_bytes(tmp_path / "socket")


def test_what_can_not_be_read_is_said(tmp_path: Path):
    with pytest.raises(UserError, match=r"has no missing\.json\.$"):
        limits.read_json(tmp_path / "missing.json")
    limits.check_file(tmp_path / "missing.json")
    for name in ("null\0", "x" * 5000):
        with pytest.raises(UserError, match="can't be read"):
            limits.read_json(tmp_path / name)
        limits.check_file(tmp_path / name)


def test_a_size_has_a_limit(tmp_path: Path):
    path = tmp_path / "a.json"
    path.write_text('"12345678"')
    assert limits.read_json(path, limit=10) == "12345678"
    with pytest.raises(UserError, match="has 10 bytes, more than the 9 that"):
        limits.read_json(path, limit=9)
    with path.open("wb") as file:
        file.truncate(64 * 10**9)  # sparse: it takes no room
    for read in (limits.read_json, limits.read_text, limits.read_yaml):
        with pytest.raises(UserError, match="64,000,000,000 bytes"):
            read(path)


def test_text_is_utf8(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"ab\xff")
    for read in (limits.read_text, limits.read_yaml):
        with pytest.raises(UserError, match="is not UTF-8 text: byte 2"):
            read(path)
    path.write_bytes(b"\xc3\xa4")
    assert limits.read_text(path) == "ä"


@pytest.mark.parametrize("content", ["", "{", "[1,]", '{"a": }', "1" * 5000, b'"\xff"', b"\xff\xfe"])
def test_what_is_not_json_is_said(content: str | bytes):
    with pytest.raises(UserError, match=r"^config\.json is not JSON: "):
        limits.parse_json(content, "config.json")


@pytest.mark.parametrize(("before", "after"), [("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")])
def test_depth_has_a_limit(before: str, after: str, tmp_path: Path):
    levels = before.count("[") + before.count("{")
    count = limits.DEPTH // levels
    allowed, deep = (before * depth + "1" + after * depth for depth in (count, count + 1))
    path = tmp_path / "deep"
    path.write_text(deep)
    limits.parse_json(allowed, "allowed")
    for content in (deep, before * 10**6 + "1" + after * 10**6):
        with pytest.raises(UserError, match="nested more than 100 levels deep"):
            limits.parse_json(content, "deep")
    with pytest.raises(UserError, match="nested more than 100 levels deep"):
        limits.read_json(path)


def test_objects_are_asked_for(tmp_path: Path):
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(UserError, match="should hold a JSON object, not list"):
        limits.read_object(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{"a": 1}')
    assert limits.read_object(tmp_path / "a.json") == {"a": 1}


def test_yaml_of_plain_values(tmp_path: Path):
    values = {"a": [1, 2.5, "x", None, True], "b": {"c": "1e-3", "d": ""}, "when": "2026-11-27"}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values) + "\nday: 2026-13-45\n")
    assert limits.read_yaml(path) == values | {"day": "2026-13-45"}
    path.write_text(json.dumps(values))
    assert limits.read_yaml(path) == values


@pytest.mark.parametrize(
    "content",
    [
        "a: &a [1]\nb: *a\n",
        "a: &a\n  b: *a\n",
        "\n".join(["a0: &a0 [x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 25))]),
        "<<: *nothing",
        "a: !!python/object/apply:os.system ['true']",
        "a: !!timestamp 2026-13-45",
        "a: !!int x",
        "a: !!float []",
        "a: !!timestamp 2026-11-27",
        "a: !!binary YQ==",
        "a: !!set [b]",
        "a: !unknown 1",
        "[" * 101 + "]" * 101,
        "[" * 10_000,
        "? [a]\n: 1",
        "{",
        "a: b: c",
        "\0",
        "a\t: \x07",
        "a: " + "9" * 5000,
    ],
)
def test_other_yaml_is_refused_at_once(content: str, tmp_path: Path):
    path = tmp_path / "config.yaml"
    path.write_text(content)
    begun = time.monotonic()
    with pytest.raises(UserError, match=r"config\.yaml is (not YAML: |nested more than 100)"):
        limits.read_yaml(path)
    assert time.monotonic() - begun < 5


def test_names_lead_nowhere_else(tmp_path: Path):
    assert limits.path_inside(tmp_path, "a/b.json") == tmp_path / "a" / "b.json"
    for name in ("/etc/passwd", "../a", "a/../../b", "a\0", "x" * 1001):
        with pytest.raises(UserError, match="names a file outside itself"):
            limits.path_inside(tmp_path, name)


@posix
def test_links_lead_nowhere_else(tmp_path: Path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.json").write_text("1")
    model = tmp_path / "model"
    model.mkdir()
    (model / "real.json").write_text("2")
    links = {"a.json": "../other/a.json", "folder": "../other", "out.json": "/dev/null", "sibling.json": "../modelx"}
    for name, target in links.items():
        (model / name).symlink_to(target)
    (model / "inner.json").symlink_to("real.json")
    (model / "broken.json").symlink_to("gone.json")
    for name in (*links, "folder/a.json"):
        with pytest.raises(UserError, match="is a symbolic link out of its folder"):
            limits.path_inside(model, name)
    for name in ("inner.json", "broken.json", "missing.json", "real.json"):
        assert limits.path_inside(model, name) == model / name
    # The folder itself may be reached by a link.
    (tmp_path / "linked").symlink_to("model")
    assert limits.path_inside(tmp_path / "linked", "inner.json")
    # Links that lead to each other are left to whoever opens them.
    (model / "round.json").symlink_to("circle.json")
    (model / "circle.json").symlink_to("round.json")
    limits.path_inside(model, "round.json")


@posix
def test_the_cache_of_the_hub_is_made_of_links(tmp_path: Path):
    repository = tmp_path / "models--a--b"
    snapshot = repository / "snapshots" / "0123"
    (snapshot / "1_Pooling").mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "blobs" / "abc").write_text("{}")
    (repository / "blobs" / "evil").symlink_to("/etc/passwd")
    (tmp_path / "secret").write_text("{}")
    targets = {
        "config.json": "../../blobs/abc",
        "1_Pooling/config.json": "../../../blobs/abc",
        "modules.json": "../../blobs/evil",
        "vocab.json": "../../../secret",
        "merges.txt": "../../refs",
    }
    for name, target in targets.items():
        (snapshot / name).symlink_to(target)
    limits.check_files(snapshot, ("config.json", "1_Pooling/config.json"))
    for name in ("modules.json", "vocab.json", "merges.txt"):
        with pytest.raises(UserError, match="is a symbolic link out of its folder"):
            limits.path_inside(snapshot, name)


@posix
def test_files_are_checked_by_their_names(tmp_path: Path):
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "notes.txt").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "pipe.bin")
    limits.check_files(tmp_path, ("a.json", "*.json", "missing.json"))
    with pytest.raises(UserError, match="out of its folder"):
        limits.check_files(tmp_path, ("a.json", "notes.txt"))
    with pytest.raises(UserError, match="named pipe"):
        limits.check_files(tmp_path, ("*.bin",))
