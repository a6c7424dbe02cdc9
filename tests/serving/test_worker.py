"""Whatever else a server does, a text is the same; and clients may leave at any moment."""

import asyncio
import json
import re
import threading
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from random import Random
from typing import Any

import httpx
import pytest

import anyformer as af
from anyformer.serving.state import Server
from anyformer.serving.worker import BatchedCalls, Worker
from tests.serving.running import running, small_models

Running = tuple[httpx.Client, Server]


@pytest.fixture(scope="module", params=[None, "prompt", "model"])
def served(request: pytest.FixtureRequest) -> Generator[Running]:
    draft = small_models()["gpt"][0] if request.param == "model" else request.param
    with running(small_models(), draft=draft, slots=3, context=128) as both:
        yield both


def test_texts_are_those_of_generate_whatever_else_runs(served: Running) -> None:
    client, server = served
    model, tokenizer = server.models["gpt"].model, server.models["gpt"].tokenizer
    draw = Random(0)
    asked: list[dict[str, Any]] = [
        {
            "prompt": draw.choice(["the cat", "a mat on the mat on the mat " * 5, "sat"]),
            "max_tokens": draw.randint(1, 20),
            **draw.choice([{"temperature": 0}, {"temperature": 1.2, "seed": draw.randint(0, 9)}]),
        }
        for _ in range(24)
    ]

    def ask(body: dict[str, Any]) -> str:
        time.sleep(draw.random() / 20)
        answer = client.post("/v1/completions", json={"model": "gpt", "ignore_eos": True, **body})
        return answer.json()["choices"][0]["text"]

    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(ask, asked))
    for body, text in zip(asked, texts, strict=True):
        options: Any = {"max_new_tokens": body["max_tokens"], "temperature": float(body["temperature"])}
        expected = af.generate(model, tokenizer, [body["prompt"]], stop_at_eos=False, seed=body.get("seed"), **options)
        assert text == expected[0], body
    counts = dict(re.findall(r'anyformer_(\w+)_tokens_total{model="gpt"} (\S+)', client.get("/metrics").text))
    assert 0 <= float(counts["accepted"]) <= float(counts["guessed"])
    engine = server.models["gpt"].worker.engine
    assert engine is not None
    assert (float(counts["guessed"]) > 0) == (engine.draft is not None)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_while_its_prompt_is_read_frees_its_slot(stream: bool) -> None:
    with running(small_models(), slots=2) as (client, server):
        worker = server.models["gpt"].worker
        engine = worker.engine
        assert engine is not None
        step, read, engine.chunk = engine._step, list[int](), 8

        def slow(tokens: Any, *arguments: Any, **options: Any) -> Any:
            read.append(tokens.shape[1])
            time.sleep(0.02)
            return step(tokens, *arguments, **options)

        engine._step = slow  # type: ignore[assignment]
        ids = list(range(5, 245))  # 30 chunks
        body = {"model": "gpt", "prompt": ids, "max_tokens": 5, "stream": stream, "n": 3}
        with suppress(httpx.ReadTimeout), httpx.Client(base_url=client.base_url, timeout=0.2) as leaving:
            leaving.post("/v1/completions", json=body)
        left, end = len(read), time.monotonic() + 20
        while engine.running or engine.waiting or worker.streams:
            assert time.monotonic() < end
            time.sleep(0.001)
        assert len(read) < left + 5
        assert sum(read) < len(ids)


def test_tokens_that_come_fast_share_events_but_the_first_and_the_last_wait_for_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    body = {"model": "gpt", "prompt": "the cat", "max_tokens": 60, "logprobs": 0, "ignore_eos": True, "temperature": 0}
    monkeypatch.setattr("anyformer.serving.worker.EVENTS_PER_SECOND", 1e-3)
    with running(small_models(), slots=2) as (client, _):
        whole = client.post("/v1/completions", json=body).json()["choices"][0]
        lines = client.post("/v1/completions", json={**body, "stream": True}).text.split("data: ")[1:-1]
    events = [json.loads(line)["choices"][0] for line in lines]
    assert len(events) == 2
    assert sum(len(event["logprobs"]["tokens"]) for event in events) == 60
    assert "".join(event["text"] for event in events) == whole["text"]
    assert events[1]["finish_reason"] == "length"


def test_embeddings_that_are_answered_together_do_not_share_a_fault() -> None:
    """Neither a client that leaves nor a crash in one request is noticed by the others."""

    def answer(items: Sequence[int]) -> Sequence[int]:
        if 13 in items:
            raise RuntimeError("13")
        return [10 * item for item in items]

    async def ask() -> list[Any]:
        worker = Worker(small_models()["gpt"][0], None, 4)
        worker.start(asyncio.get_running_loop())
        free = threading.Event()
        worker.put(lambda: [free.wait()].clear())
        calls = BatchedCalls(worker, answer)
        asked = [asyncio.create_task(calls(items)) for items in ([1], [2, 3], [13], [4])]  # type: ignore[arg-type]
        await asyncio.sleep(0.01)
        asked[0].cancel()
        await asyncio.sleep(0.01)
        free.set()
        answers = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 20)
        later = await asyncio.wait_for(calls([5]), 20)
        worker.stop()
        return [*answers, later]

    left, *answers = asyncio.run(ask())
    assert isinstance(left, asyncio.CancelledError)
    assert answers[0] == [20, 30]
    assert str(answers[1]) == "13"
    assert answers[2:] == [[40], [50]]
