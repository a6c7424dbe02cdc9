"""Mutations of real files: of their bytes, of their lines, and of the values that they describe."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from pathlib import Path
from random import Random
from typing import Any

import yaml
import zstandard

TEXTS = (
    "",
    "x",
    "\0",
    "\x1b]0;title\x07\x1b[2J",
    "[/b]",
    "a" * 3000,
    "é\u202e\u2028",
    "\ud800",
    "../canary/secret.json",
    "/etc/passwd",
    "/dev/zero",
    "con: [",
    "(a+)+$",
    "nan",
    "2024-13-45",
    "https://example.com/x",
    "float32",
    "gelu",
    "none",
    "__class__",
)
NUMBERS = (
    0,
    1,
    -1,
    2,
    3,
    7,
    255,
    65536,
    2**31,
    2**63,
    -(2**63),
    10**12,
    10**30,
    10**400,
    0.0,
    0.5,
    -0.5,
    1e-300,
    1e308,
)
OTHERS = (None, True, False, [], {}, [[]], [None], {"": 0}, [0] * 5000, ["x"] * 50, float("nan"), float("inf"))
PIECES = (
    *(b"\0", b"\xff", b"\xff\xff\xff\xff\xff\xff\xff\x7f", b"\n", b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\"),
    *(b"\xef\xbb\xbf", b"\xc3", b"1e999", b"-", b"9" * 5000, b"[" * 3000, b"\x1b[2J", b"\r", b"\t", b"'", b"&a", b"*a"),
)
TEMPLATES = (
    "{{ '%1000000000d' % 1 }}",
    "{{ 'x'|center(1000000000) }}",
    "{{ 'x'.center(1000000000) }}",
    "{{ messages|tojson(indent=1000000000) }}",
    "{{ ('a\\nb' * 1000)|indent(1000000) }}",
    "{{ 3 ** (10 ** 7) }}",
    "{{ (2 ** 30000000) // (3 ** 10000000) }}",
    "{% set n = namespace(x=[1]) %}{% for i in range(40) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x|length }}",
    "{% set n = namespace(x='a') %}{% for i in range(40) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x[::-1] }}",
    "{% set x = 'a' * 20000000 %}{% for i in range(100000) %}{{ x == x[:-1] }}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% macro f(x) %}{{ f(x) }}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages[0].content.format(messages) }}",
    "{{ raise_exception('no') }}",
    "{{ strftime_now('%Y' * 1000) }}",
    "{{ range(10**9)|list|length }}",
    "{% include '/etc/passwd' %}",
    "{{ 'a'.ljust(10**9) ~ 'b'.zfill(10**9) }}",
    "{{ '{:>1000000000}'.format('x') }}",
    "{{ 'ab'|replace('a', 'c' * 10000000)|replace('c', 'd' * 10000000) }}",
    "{{ ['a' * 100000] * 100000 | join('x') }}",
)


def mutate(path: Path, chance: Random) -> None:
    """Change a file in one to three places, by what its name says it is; at times put something else in its place."""
    if chance.random() < 0.06:
        _replace(path, chance)
        return
    for _ in range(chance.choice((1, 1, 2, 3))):
        content = path.read_bytes()
        if path.suffix in (".gz", ".zst") and chance.random() < 0.6:
            _write(path, _pack(path.suffix, mutate_bytes(_unpack(path.suffix, content), chance)))
        elif path.suffix == ".jinja" and chance.random() < 0.7:
            _write(path, _insert_line(content, chance.choice(TEMPLATES).encode(), chance))
        elif path.suffix == ".safetensors" and chance.random() < 0.7:
            _write(path, _mutate_safetensors(content, chance))
        elif path.suffix in (".json", ".yaml", ".job") and chance.random() < 0.8:
            _write(path, _mutate_document(content, path.suffix, chance))
        elif path.suffix == ".jsonl" and chance.random() < 0.7:
            _write(path, _mutate_lines(content, chance))
        else:
            _write(path, mutate_bytes(content, chance))


def _replace(path: Path, chance: Random) -> None:
    kind = chance.choice(("pipe", "folder", "sparse", "zeros", "secret", "itself", "missing"))
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "sparse":
        with path.open("wb") as file:
            file.truncate(64 << 30)
    elif kind == "zeros":
        path.symlink_to("/dev/zero")
    elif kind == "secret":
        # From any depth below the folder of the case.
        path.symlink_to(next(p for p in path.parents if p.name == "case").parent / "canary" / "secret.json")
    elif kind == "itself":
        path.symlink_to(path)


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def mutate_bytes(content: bytes, chance: Random) -> bytes:
    """Change some bytes."""
    # What says how the rest is to be read stands at the beginning of most formats, and at the end of some.
    size = len(content)
    near = chance.choice((min(size, 64), min(size, 2048), size))
    at = chance.randrange(near + 1)
    if chance.random() < 0.15:
        at = size - at
    end = min(size, at + chance.choice((1, 2, 4, 8, 100)))
    kind = chance.randrange(8)
    if kind == 0 and size:
        at = min(at, size - 1)
        return content[:at] + bytes([content[at] ^ (1 << chance.randrange(8))]) + content[at + 1 :]
    if kind == 1:
        return content[:at]
    if kind == 2:
        return content[:at] + content[end:]
    if kind == 3:
        return content[:at] + content[at:end] * chance.choice((2, 50)) + content[end:]
    if kind == 4:
        number = chance.choice([n for n in NUMBERS if isinstance(n, int) and 0 <= n < 2**64])
        length = chance.choice((4, 8))
        return content[:at] + (number % 256**length).to_bytes(length, "little") + content[at + length :]
    if kind == 5:
        return content[:at] + chance.choice(PIECES) + content[at:]
    if kind == 6:
        return content[:at] + chance.choice(PIECES) + content[end:]
    return chance.choice((b"", b"\0" * 64, content[:at] + bytes(size - at), content + content))


def mutate_value(value: Any, chance: Random) -> Any:
    """Change a value somewhere inside."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(sorted(value, key=str))
        kind = chance.random()
        if kind < 0.1:
            return {name: each for name, each in value.items() if name != key}
        if kind < 0.15:
            return {**value, chance.choice(TEXTS): value[key]}
        if kind < 0.2:
            return {**value, key: value[chance.choice(sorted(value, key=str))]}
        return {**value, key: mutate_value(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.85:
        at = chance.randrange(len(value))
        kind = chance.random()
        if kind < 0.1:
            return value[:at] + value[at + 1 :]
        if kind < 0.2:
            return value[:at] + value[at : at + 1] * chance.choice((2, 100)) + value[at:]
        return [*value[:at], mutate_value(value[at], chance), *value[at + 1 :]]
    kind = chance.random()
    if kind < 0.35:
        return chance.choice(NUMBERS)
    if kind < 0.6:
        return chance.choice(TEXTS)
    if kind < 0.65:
        return _nested(chance.choice((20, 90, 2000)), chance.random() < 0.5)
    return chance.choice(OTHERS)


def _nested(depth: int, objects: bool) -> Any:
    value: Any = 0
    for _ in range(min(depth, 900)):
        value = {"a": value} if objects else [value]
    return value


def _mutate_document(content: bytes, suffix: str, chance: Random) -> bytes:
    try:
        value = yaml.safe_load(content) if suffix == ".yaml" else json.loads(content)
        changed = mutate_value(value, chance)
        text = yaml.safe_dump(changed, sort_keys=False) if suffix == ".yaml" else json.dumps(changed)
    except (ValueError, RecursionError, yaml.YAMLError):
        return mutate_bytes(content, chance)
    return text.encode("utf-8", errors="replace")


def _mutate_lines(content: bytes, chance: Random) -> bytes:
    lines = content.splitlines(keepends=True) or [b""]
    at = chance.randrange(len(lines))
    kind = chance.random()
    if kind < 0.7:
        lines[at] = _mutate_document(lines[at], ".json", chance) + b"\n"
    elif kind < 0.8:
        del lines[at]
    elif kind < 0.9:
        lines.insert(at, lines[chance.randrange(len(lines))])
    else:
        lines[at] = mutate_bytes(lines[at], chance)
    return b"".join(lines)


def _insert_line(content: bytes, line: bytes, chance: Random) -> bytes:
    lines = content.splitlines(keepends=True)
    lines.insert(chance.randrange(len(lines) + 1), line)
    return b"".join(lines)


def _mutate_safetensors(content: bytes, chance: Random) -> bytes:
    length = int.from_bytes(content[:8], "little")
    try:
        header = json.dumps(mutate_value(json.loads(content[8 : 8 + length]), chance)).encode()
    except (ValueError, RecursionError):
        return mutate_bytes(content, chance)
    said = len(header) if chance.random() < 0.9 else chance.choice((0, 2**40, 2**63, len(header) + 1))
    return said.to_bytes(8, "little") + header + content[8 + length :]


def _unpack(suffix: str, content: bytes) -> bytes:
    try:
        return gzip.decompress(content) if suffix == ".gz" else zstandard.ZstdDecompressor().decompress(content)
    except (OSError, EOFError, zlib.error, zstandard.ZstdError):
        return content


def _pack(suffix: str, content: bytes) -> bytes:
    return gzip.compress(content, 1) if suffix == ".gz" else zstandard.ZstdCompressor().compress(content)
