"""`anyformer serve` under mixed load for a while: memory, slots and latencies stay as they are.

`ANYFORMER_LOAD_SECONDS=1800 pytest -m slow tests/serving/test_load.py` takes half an hour.
"""

from __future__ import annotations

import os
import random
import re
import signal
import statistics
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

import anyformer as af
from tests.serving.hostile import CHAT, SCHEMA, TEXT, hostile_request, leave, send
from tests.serving.running import command, small_models
from tests.serving.test_hostile import resident

SECONDS = float(os.environ.get("ANYFORMER_LOAD_SECONDS", "60"))
WAVES = 12
CLIENTS = 12
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {**TEXT, "max_tokens": 40, "ignore_eos": True}),
    ("/v1/completions", {**TEXT, "prompt": "the cat sat on the mat " * 20, "echo": True, "logprobs": 1}),
    ("/v1/completions", {**TEXT, "grammar": {"type": "regex", "value": "[a-c]{3,9}"}, "max_tokens": 20}),
    ("/v1/chat/completions", {**CHAT, "stream": True, "n": 3, "temperature": 0.7, "max_tokens": 30}),
    ("/v1/chat/completions", {**CHAT, "response_format": SCHEMA}),
    ("/v1/messages", {**CHAT, "stream": True}),
    ("/v1/responses", {"model": "gpt", "input": "the cat", "max_output_tokens": 9}),
    ("/v1/embeddings", {"model": "bert", "input": ["the cat", "mat"] * 8}),
    ("/v1/fill", {"model": "bert", "text": "the [MASK] sat"}),
    ("/v1/completions", {**TEXT, "model": "none"}),
]


def wave(url: str, seed: int, until: float) -> tuple[list[float], Counter[int | None]]:
    """Seconds of the first kind of request, and the statuses of all, of a client in a part of the time."""
    chance, seconds, statuses = random.Random(seed), list[float](), Counter[int | None]()
    port = httpx.URL(url).port
    assert port is not None
    with httpx.Client(base_url=url, timeout=300) as client:
        while time.monotonic() < until:
            if chance.random() < 0.1:
                leave(chance, port, time.sleep)
                continue
            if chance.random() < 0.1:
                statuses[send(port, hostile_request(chance))] += 1
                continue
            number = chance.randrange(len(REQUESTS))
            began = time.perf_counter()
            statuses[client.post(REQUESTS[number][0], json=REQUESTS[number][1]).status_code] += 1
            if number == 0:
                seconds.append(time.perf_counter() - began)
    return seconds, statuses


def wait_until_idle(url: str) -> None:
    """Wait until no text runs or waits."""
    end, counts = time.monotonic() + 60, ["1"]
    while any(float(count) for count in counts):
        assert time.monotonic() < end, counts
        time.sleep(0.02)
        counts = re.findall(r"texts_(?:running|waiting)\{.*?\} (\S+)", httpx.get(f"{url}/metrics").text)
        assert len(counts) == 2


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 600)
def test_mixed_load(tmp_path: Path) -> None:
    sizes, medians, statuses = list[int](), list[float](), Counter[int | None]()
    for name, (model, tokenizer) in small_models().items():
        af.save(model, tmp_path / name, tokenizer=tokenizer)
    models = {name: tmp_path / name for name in ("gpt", "bert")}
    with (
        command(models, "--slots", "8", "--queue", "32") as (process, url),
        ThreadPoolExecutor(CLIENTS) as pool,
    ):
        for number in range(WAVES):
            until = time.monotonic() + SECONDS / WAVES
            found = list(pool.map(lambda seed, end=until: wave(url, seed, end), range(number, number + CLIENTS)))
            medians.append(statistics.median(second for seconds, _ in found for second in seconds))
            statuses += sum((each for _, each in found), Counter())
            wait_until_idle(url)
            sizes.append(resident(process.pid) >> 20)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert process.stderr is not None
        said = process.stderr.read()
    print(f"MiB {sizes}, seconds {[round(each, 3) for each in medians]}, answers {dict(statuses)}")
    assert max(sizes[-3:]) - max(sizes[1:4]) < 32
    assert min(medians[-4:]) < 1.5 * statistics.median(medians[1:5])
    assert not [status for status in statuses if status is not None and status >= 500]
    assert statuses[200] > statuses.total() / 2
    assert said == ""
