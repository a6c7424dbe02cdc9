"""Whoever attacks a server gets an error, and nobody else notices."""

from __future__ import annotations

import contextlib
import gc
import logging
import random
import threading
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from anyformer.serving import serve
from anyformer.serving.state import Server
from tests.serving.hostile import STALLS, hostile_request, leave, send, stall
from tests.serving.running import running, small_models

PLAIN = {"model": "gpt", "prompt": "the cat", "max_tokens": 9, "temperature": 0}


def resident(process: int | str = "self") -> int:
    """Bytes of memory of a process."""
    gc.collect()
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * 4096


@contextlib.contextmanager
def healthy(port: int) -> Generator[list[float]]:
    """Ask after the server's health all the time; the seconds that the answers took."""
    over, seconds = threading.Event(), list[float]()

    def ask() -> None:
        while not over.is_set():
            began = time.perf_counter()
            assert send(port, b"GET /health HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n") == 200
            seconds.append(time.perf_counter() - began)
            over.wait(0.05)

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        try:
            yield seconds
        finally:
            over.set()
            asking.result()


def wait_until_idle(server: Server) -> None:
    """Wait until all slots are free."""
    worker, end = server.models["gpt"].worker, time.monotonic() + 60
    engine = worker.engine
    assert engine is not None
    while engine.running or engine.waiting or worker.streams:
        assert time.monotonic() < end, (engine.running, engine.waiting, worker.streams)
        time.sleep(0.02)


def attack(client: httpx.Client, server: Server, seed: int, requests: int, leaving: int, stalling: int) -> list[Any]:
    """Attack a server; returns the statuses of its answers when it has nothing to do any more."""
    chance, port = random.Random(seed), client.base_url.port
    assert port is not None
    before = client.post("/v1/completions", json=PLAIN).json()["choices"]
    made = [hostile_request(chance) for _ in range(requests)]
    seeds = [random.Random(chance.random()) for _ in range(leaving)]
    with contextlib.ExitStack() as stalled, healthy(port), ThreadPoolExecutor(16) as pool:
        for number in range(stalling):
            stalled.enter_context(stall(port, number % STALLS))
        leavers = [pool.submit(leave, each, port, time.sleep) for each in seeds]
        statuses = list(pool.map(lambda request: send(port, request), made))
        for leaver in leavers:
            leaver.result()
    wait_until_idle(server)
    assert client.post("/v1/completions", json=PLAIN).json()["choices"] == before
    return statuses


def check(statuses: list[Any], caplog: pytest.LogCaptureFixture) -> None:
    assert {status for status in statuses if status is not None and status >= 500} == set()
    assert statuses.count(400) > len(statuses) // 4
    faults = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR or record.exc_info]
    assert faults == []


def test_an_attack(caplog: pytest.LogCaptureFixture) -> None:
    with running(small_models(), slots=4, queue=8) as (client, server):
        check(attack(client, server, 0, requests=60, leaving=8, stalling=8), caplog)


@pytest.mark.slow
def test_a_long_attack(caplog: pytest.LogCaptureFixture) -> None:
    with running(small_models(), slots=4, queue=32) as (client, server):
        attack(client, server, 1, requests=300, leaving=40, stalling=100)
        size = resident()
        statuses = attack(client, server, 2, requests=1000, leaving=200, stalling=100)
        check(statuses, caplog)
        assert resident() - size < 64 << 20
        assert statuses.count(None) < 200  # requests without an end, and clients that send on behind a refusal


def test_a_client_that_stalls_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "REQUEST_SECONDS", 0.2)
    with running(small_models()) as (client, _):
        port = client.base_url.port
        assert port is not None
        for kind in range(STALLS - 1):
            with stall(port, kind) as stalled:
                while stalled.recv(1 << 16):  # until the server closes it
                    pass
