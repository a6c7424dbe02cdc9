"""Requests of an attacker, drawn by a seed, and clients that send them."""

from __future__ import annotations

import copy
import json
import random
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any

CHAT: dict[str, Any] = {"model": "gpt", "messages": [{"role": "user", "content": "the cat"}], "max_tokens": 3}
TOOL: dict[str, Any] = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object", "properties": {}}}}
TEXT = {"model": "gpt", "prompt": "the cat", "max_tokens": 3}
SAMPLING: dict[str, Any] = {
    "temperature": 1.0,
    "top_p": 0.5,
    "seed": 3,
    "n": 2,
    "logit_bias": {"5": 1.0},
    "stop": ["a"],
}
TURNS = [
    {"role": "user", "content": [{"type": "text", "text": "a"}]},
    {"role": "assistant", "content": [{"type": "tool_use", "id": "i", "name": "f", "input": {"a": 1}}]},
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "i", "content": "b"}]},
]
ITEMS = [
    {"role": "user", "content": "a"},
    {"type": "function_call", "call_id": "i", "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "i", "output": "b"},
]
BODIES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {**CHAT, **SAMPLING, "logprobs": True, "top_logprobs": 2}),
    ("/v1/chat/completions", {**CHAT, "tools": [{"type": "function", "function": TOOL}], "tool_choice": "auto"}),
    ("/v1/chat/completions", {**CHAT, "response_format": SCHEMA, "stream": True, "metadata": {"a": 1}}),
    ("/v1/completions", {**TEXT, **SAMPLING, "echo": True, "logprobs": 2}),
    ("/v1/completions", {**TEXT, "prompt": [5, 6], "grammar": {"type": "regex", "value": "[a-c]+"}, "prefix_ids": [7]}),
    ("/v1/messages", {"model": "gpt", "messages": TURNS, "max_tokens": 3, "system": "s", "stop_sequences": ["a"]}),
    ("/v1/messages/count_tokens", {"model": "gpt", "messages": TURNS}),
    ("/v1/responses", {"model": "gpt", "input": ITEMS, "max_output_tokens": 3, "stream": True}),
    ("/v1/embeddings", {"model": "bert", "input": ["the cat", "mat"], "encoding_format": "base64"}),
    ("/v1/rerank", {"model": "bert", "query": "the cat", "documents": ["mat", "cat"], "top_n": 1}),
    ("/v1/classify", {"model": "bert", "input": ["a"], "second": ["b"]}),
    ("/v1/fill", {"model": "bert", "text": "the [MASK] sat", "top": 2}),
    ("/tokenize", {"model": "gpt", "prompt": "the cat", "add_special_tokens": True}),
    ("/detokenize", {"model": "gpt", "tokens": [5, 6]}),
]
WRONG: list[Any] = [
    None,
    True,
    0,
    -1,
    2**31,
    2**63,
    10**30,
    1.5,
    -1e308,
    "",
    "x" * 9000,
    "\0",
    "\ud800",
    "../../etc/passwd",
]
WRONG += ["<|endoftext|>", "[MASK]" * 50, [], {}, [[]], [None], {"": None}, [{}] * 50, {"type": "text"}, ["a", 1]]
RAW = [
    "1e400",
    "-1e400",
    "NaN",
    "Infinity",
    "9" * 500,
    "9" * 20_000,
    "[" * 5000,
    "[" * 300 + "]" * 300,
    '"\\udfff"',
    "0x1",
]
RAW += ['{"a":' * 400 + "1" + "}" * 400, "tru", "'a'", "1_000", "-0", "1e-400", "\x00", '"\\u0000"']


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to all values within a value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, each in inner for place in places(each, (*path, key)))]


def hostile_body(chance: random.Random, body: dict[str, Any]) -> bytes:
    """JSON of a request with a few faults."""
    body, raw = json.loads(json.dumps(body)), list[str]()
    for _ in range(chance.randint(1, 3)):
        *path, last = chance.choice(places(body)[1:] or [("model",)])
        inside: Any = body
        for key in path:
            inside = inside[key]
        kind = chance.randrange(5)
        if kind == 0 and isinstance(inside, dict):
            del inside[last]
        elif kind == 1 and isinstance(inside, dict):
            inside[chance.choice(["frobnicate", "", "__proto__", "model_config", "é" * 300, "$ref"])] = 1
        elif kind == 2:
            inside[last] = f"@raw{len(raw)}@"
            raw.append(chance.choice(RAW))
        else:
            inside[last] = copy.deepcopy(chance.choice(WRONG))
    text = json.dumps(body)
    for number, each in enumerate(raw):
        text = text.replace(f'"@raw{number}@"', each)
    made = bytearray(text.encode("utf-8", "surrogatepass"))
    if chance.random() < 0.2 and made:
        for _ in range(chance.randint(1, 4)):
            made[chance.randrange(len(made))] = chance.randrange(256)
    return bytes(made[: chance.randrange(len(made) + 1)] if chance.random() < 0.1 else made)


def hostile_request(chance: random.Random) -> bytes:
    """A request, as it is sent."""
    path, body = chance.choice(BODIES)
    made, method = hostile_body(chance, body), b"POST"
    headers = [b"Host: 127.0.0.1", b"Content-Type: application/json", b"Content-Length: %d" % len(made)]
    kind = chance.randrange(14)
    if kind != 7:
        headers.append(b"Connection: close")
    if kind == 0:
        types = [
            b"text/plain",
            b"multipart/form-data; boundary=x",
            b"application/xml",
            b"application/json; charset=utf-16",
        ]
        headers[1] = b"Content-Type: " + chance.choice([*types, b"", b"\xff\xfe"])
    elif kind == 1:
        headers[2] = b"Content-Length: " + chance.choice(
            [b"-1", b"x", b"9" * 30, b"0", b"1, 2", b"1e3", b"4294967296", b"\xb2"]
        )
    elif kind == 2:
        headers[2], made = b"Transfer-Encoding: chunked", b"5\r\n[1,2,\r\n" * chance.randint(1, 9)  # without an end
    elif kind == 3:
        headers += [
            b"X-%d: %s" % (number, b"y" * chance.choice([1, 500])) for number in range(chance.choice([99, 400]))
        ]
    elif kind == 4:
        headers.append(
            chance.choice([b"X: " + b"z" * 100_000, b"Broken", b": a", b"A\xff: b", b"Transfer-Encoding: gzip"])
        )
    elif kind == 5:
        headers[0] = chance.choice(
            [b"Host: evil.example", b"Host:", b"Host: [::1", b"Host: \xff", b"X: y", b"Host: 127.0.0.1:x"]
        )
        headers.append(
            chance.choice([b"Origin: null", b"Origin: http://[", b"Origin: http://evil.example", b"Origin:"])
        )
    elif kind == 6:
        paths = [
            "/%00",
            "/v1/models/%ff",
            "/v1/models/../../etc/passwd",
            "/" + "a" * 9000,
            "//",
            "*",
            "/docs/%2e%2e/",
            "http://x/",
        ]
        method, path = chance.choice([b"GET", b"PUT", b"HEAD", b"OPTIONS", b"DELETE", b"BREW"]), chance.choice(paths)
    elif kind == 7:
        headers += [b"Connection: Upgrade", b"Upgrade: " + chance.choice([b"websocket", b"h2c"])]
    version = chance.choice([b"HTTP/1.1"] * 9 + [b"HTTP/1.0", b"HTTP/9.9"])
    head = b"\r\n".join([b"%s %s %s" % (method, path.encode(), version), *headers])
    return head + b"\r\n\r\n" + made


def send(port: int, request: bytes, seconds: float = 60) -> int | None:
    """The status that a request is answered with; None: the connection is closed. Raises TimeoutError."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        try:
            connection.sendall(request)
            connection.settimeout(2)
            try:
                head = connection.recv(12)
            except TimeoutError:  # the server waits for the rest of a request that has none
                connection.shutdown(socket.SHUT_WR)
                connection.settimeout(seconds)
                head = connection.recv(12)
            connection.settimeout(2)
            with suppress(TimeoutError):  # a connection that stays open
                while connection.recv(1 << 16):
                    pass
        except (ConnectionError, BrokenPipeError):
            return None
    return int(head[9:12]) if head.startswith(b"HTTP/1.1 ") else None


def leave(chance: random.Random, port: int, wait: Callable[[float], None]) -> None:
    """Ask for long texts, and vanish: before all of the request is sent, while its prompt is read, or in its text."""
    streams = chance.random() < 0.5
    body = {**TEXT, "prompt": "the cat sat " * chance.choice([1, 12]), "max_tokens": 100, "ignore_eos": True, "n": 2}
    sent = json.dumps({**body, "stream": streams}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    request = head + b"Content-Length: %d\r\n\r\n" % len(sent) + sent
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        if chance.random() < 0.5:  # a reset instead of an end
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.sendall(request[: chance.randrange(len(request))] if chance.random() < 0.2 else request)
        if streams and chance.random() < 0.5:
            connection.settimeout(0.5)
            with suppress(TimeoutError, ConnectionError):
                connection.recv(chance.choice([1, 400, 2000]))
        else:
            wait(chance.choice([0, 0.01, 0.05, 0.2]))


STALLS = 5


def stall(port: int, kind: int) -> socket.socket:
    """A client that stops in its request, or, as the last of `STALLS`, reads nothing of its answer; it is left open."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    head = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99\r\n"
    sent = json.dumps({**TEXT, "stream": True, "max_tokens": 60}).encode()
    whole = head.replace(b"99", b"%d" % len(sent)) + b"Content-Type: application/json\r\n\r\n" + sent
    connection.sendall([b"", head[:20], head, head + b"\r\n{", whole][kind])
    return connection
