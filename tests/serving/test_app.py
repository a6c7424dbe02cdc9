"""Chat, completions and their relatives say what the library says; and whoever leaves frees a slot."""

import base64
import json
import re
import socket
import threading
import time
from collections.abc import Generator
from contextlib import suppress
from typing import Any

import httpx
import pytest
import torch

import anyformer as af
from anyformer.generation import generate_ids
from anyformer.serving.state import Server
from tests.serving.hostile import send
from tests.serving.running import running, small_models
from tests.serving.talking import models

Running = tuple[httpx.Client, Server]


@pytest.fixture(scope="module")
def served() -> Generator[Running]:
    with running(small_models(), slots=4, queue=4, max_n=4) as both:
        yield both


def post(served: Running, path: str, status: int = 200, **body: Any) -> Any:
    answer = served[0].post(path, json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def events(served: Running, path: str, **body: Any) -> list[Any]:
    """The chunks of a streamed answer, which ends as it should."""
    with served[0].stream("POST", path, json={"stream": True, **body}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def model_of(served: Running, name: str = "gpt") -> tuple[Any, Any]:
    one = served[1].models[name]
    return one.model, one.tokenizer


def test_completions_are_those_of_generate(served: Running) -> None:
    model, tokenizer = model_of(served)
    text = post(served, "/v1/completions", model="gpt", prompt="the cat", max_tokens=9, temperature=0)
    assert text["choices"][0]["text"] == af.generate(model, tokenizer, ["the cat"], max_new_tokens=9)[0]
    usage = text["usage"]
    assert usage["prompt_tokens"] == len(tokenizer.encode("the cat"))
    assert usage["prompt_tokens"] + usage["completion_tokens"] == usage["total_tokens"] <= 11


def test_a_stream_says_the_same_in_pieces(served: Running) -> None:
    body: dict[str, Any] = {"model": "gpt", "prompt": ["the cat", "on the"], "max_tokens": 8, "seed": 3, "n": 2}
    whole = post(served, "/v1/completions", **body, logprobs=2)["choices"]
    pieces = events(served, "/v1/completions", **body, logprobs=2, stream_options={"include_usage": True})
    assert pieces[-1]["choices"] == []
    assert pieces[-1]["usage"]["completion_tokens"] <= 32
    for choice in whole:
        own = [piece["choices"][0] for piece in pieces[:-1] if piece["choices"][0]["index"] == choice["index"]]
        assert "".join(piece["text"] for piece in own) == choice["text"]
        assert [token for piece in own for token in piece["logprobs"]["tokens"]] == choice["logprobs"]["tokens"]
        assert own[-1]["finish_reason"] == choice["finish_reason"]
    assert len({choice["text"] for choice in whole[:2]}) == 2


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_old_clients_get_no_chunks(served: Running, version: bytes) -> None:
    body = json.dumps({"model": "gpt", "prompt": "the cat", "max_tokens": 3, "stream": True}).encode()
    head = b"POST /v1/completions HTTP/%b\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    with socket.create_connection(("127.0.0.1", served[0].base_url.port)) as connection:
        connection.sendall(head % version + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert (b"chunked" in head.lower()) == (version == b"1.1")
    assert body.startswith(b"data: {") == (version == b"1.0")
    assert body.endswith(b"data: [DONE]\n\n" if version == b"1.0" else b"data: [DONE]\n\n\r\n0\r\n\r\n")


def test_prompts_are_scored(served: Running) -> None:
    model, tokenizer = model_of(served)
    ids = tokenizer.encode("the cat sat on the mat")
    (choice,) = post(served, "/v1/completions", model="gpt", prompt=ids, max_tokens=0, echo=True, logprobs=2)["choices"]
    with torch.no_grad():
        log_p = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    scores = choice["logprobs"]["token_logprobs"]
    assert scores[0] is None
    assert scores[1:] == pytest.approx(
        [float(row[token]) for row, token in zip(log_p, ids[1:], strict=False)], abs=1e-4
    )
    assert choice["text"] == "the cat sat on the mat"
    assert choice["logprobs"]["top_logprobs"][0] is None


def test_chat_is_the_template_s(served: Running) -> None:
    model, tokenizer = model_of(served)
    messages = [
        {"role": "system", "content": "sat"},
        {"role": "user", "content": [{"type": "text", "text": "the cat"}]},
    ]
    body: dict[str, Any] = {"model": "gpt", "messages": messages, "max_tokens": 7, "temperature": 0}
    answer = post(served, "/v1/chat/completions", **body, logprobs=True, top_logprobs=3)["choices"][0]
    ids = tokenizer.encode("<system>sat\n<user>the cat\n<assistant>", special=False)
    new = generate_ids(model, torch.tensor([ids]), max_new_tokens=7)[0].tolist()
    assert answer["message"]["content"] == tokenizer.decode(ids + new)[len(tokenizer.decode(ids)) :]
    content = answer["logprobs"]["content"]
    assert bytes(byte for token in content for byte in token["bytes"]).decode(errors="replace")
    assert all(len(token["top_logprobs"]) == 3 for token in content)
    pieces = [event["choices"][0] for event in events(served, "/v1/chat/completions", **body)]
    assert pieces[0]["delta"]["role"] == "assistant"
    assert "".join(piece["delta"].get("content", "") for piece in pieces) == answer["message"]["content"]
    assert pieces[-1]["finish_reason"] == answer["finish_reason"]


def test_vectors_are_those_of_embed(served: Running) -> None:
    model, tokenizer = model_of(served, "bert")
    texts = ["the cat", "on the mat sat"]
    found = post(served, "/v1/embeddings", model="bert", input=texts)
    expected = af.embed(model, tokenizer, texts)
    assert torch.allclose(torch.tensor([each["embedding"] for each in found["data"]]), expected, atol=1e-6)
    ids = [tokenizer.encode(text) for text in texts]
    for given, count in ((ids, 2), (ids[0], 1)):
        again = post(served, "/v1/embeddings", model="bert", input=given)
        vectors, before = (
            torch.tensor([each["embedding"] for each in data["data"][:count]]) for data in (again, found)
        )
        assert torch.allclose(vectors, before, atol=1e-6)
        assert len(again["data"]) == count
        assert count == 1 or again["data"] == found["data"]  # a batch of one is multiplied otherwise
        assert again["usage"]["prompt_tokens"] == sum(map(len, ids[:count]))
    packed = post(served, "/v1/embeddings", model="bert", input=texts[0], encoding_format="base64")["data"][0]
    vector = torch.frombuffer(bytearray(base64.b64decode(packed["embedding"])), dtype=torch.float32)
    assert torch.allclose(vector, expected[0], atol=1e-6)
    ranked = post(served, "/v1/rerank", model="bert", query="the cat", documents=[texts[1], texts[0]], top_n=1)
    assert ranked["results"][0]["index"] == 1
    assert ranked["results"][0]["relevance_score"] == pytest.approx(1, abs=1e-5)


def test_masks_are_filled(served: Running) -> None:
    model, tokenizer = model_of(served, "bert")
    (mask,) = post(served, "/v1/fill", model="bert", text="the [MASK] sat", top=2)["data"]
    expected = af.fill(model, tokenizer, "the [MASK] sat", top=2)[0]
    assert [candidate["text"] for candidate in mask] == [candidate.text for candidate in expected]


def test_tokens_come_and_go(served: Running) -> None:
    tokens = post(served, "/tokenize", model="gpt", prompt="the cat")["tokens"]
    assert post(served, "/detokenize", model="gpt", tokens=tokens)["prompt"] == "the cat"
    listed = served[0].get("/v1/models").json()["data"]
    assert [(model["id"], model["capabilities"]) for model in listed] == [
        ("gpt", ["chat", "completion", "embedding"]),
        ("bert", ["embedding", "fill"]),
    ]
    assert served[0].get("/health").json() == {"status": "ok"}
    assert served[0].head("/health").status_code == 200
    assert "anyformer_requests_total" in served[0].get("/metrics").text


def test_tokens_of_prompts_are_counted(served: Running) -> None:
    def counts() -> list[int]:
        text = served[0].get("/metrics").text
        found = dict(re.findall(r'anyformer_(\w*)prompt_tokens_total{model="gpt"} (\S+)', text))
        return [int(float(found.get(kind, 0))) for kind in ("", "cached_")]

    prompt = [5 + number % 200 for number in range(40)]
    before = counts()
    post(served, "/v1/completions", model="gpt", prompt=[prompt, prompt[::-1]], max_tokens=1)
    post(served, "/v1/completions", model="gpt", prompt=[*prompt, 7], max_tokens=1)
    assert [after - count for after, count in zip(counts(), before, strict=True)] == [121, 40]


PLAIN = {"model": "gpt", "prompt": "the cat", "max_tokens": 3}
CHAT = {"model": "gpt", "messages": [{"role": "user", "content": "a"}]}
REFUSED = [
    ("/v1/completions", PLAIN | {"suffix": "x"}, 400, "suffix"),
    ("/v1/completions", PLAIN | {"best_of": 3}, 400, "best_of"),
    ("/v1/completions", PLAIN | {"model": "gtp"}, 404, "model"),
    ("/v1/completions", PLAIN | {"model": "bert"}, 400, "model"),
    ("/v1/completions", PLAIN | {"temperature": -1}, 400, "temperature"),
    ("/v1/completions", PLAIN | {"temperature": "NaN"}, 400, "temperature"),
    ("/v1/completions", PLAIN | {"n": 5}, 400, "n"),
    ("/v1/completions", PLAIN | {"prompt": []}, 400, "prompt"),
    ("/v1/completions", PLAIN | {"prompt": [10**30]}, 400, "prompt"),
    ("/v1/completions", PLAIN | {"prompt": [299 + 10**6]}, 400, "prompt"),
    ("/v1/completions", PLAIN | {"prompt": "the cat " * 300}, 400, "prompt"),
    ("/v1/completions", PLAIN | {"max_tokens": 0}, 400, "max_tokens"),
    ("/v1/completions", PLAIN | {"logit_bias": {"x": 1}}, 400, "logit_bias"),
    ("/v1/completions", PLAIN | {"logit_bias": {"99999": 1}}, 400, None),
    ("/v1/completions", PLAIN | {"stop": ""}, 200, None),
    ("/v1/completions", PLAIN | {"stop": [""]}, 400, None),
    ("/v1/completions", PLAIN | {"stop": "x" * 1_000_000}, 400, "stop"),
    ("/v1/completions", PLAIN | {"prompt": "x" * 1_000_000}, 400, "prompt"),
    ("/v1/completions", PLAIN | {"prompt": [[]] * 100_000}, 400, "prompt"),
    ("/v1/completions", PLAIN | {"grammar": {"type": "regex", "value": "((a{1000}){1000}){1000}"}}, 400, "grammar"),
    ("/v1/chat/completions", CHAT | {"messages": []}, 400, "messages"),
    ("/v1/chat/completions", CHAT | {"functions": []}, 400, "functions"),
    ("/v1/chat/completions", CHAT | {"store": True}, 400, "store"),
    ("/v1/embeddings", {"model": "bert", "input": ""}, 400, "input"),
    ("/v1/embeddings", {"model": "bert", "input": "a", "dimensions": 7}, 400, "dimensions"),
    ("/v1/embeddings", {"model": "bert", "input": "a", "dimensions": 32}, 200, None),
    ("/v1/embeddings", {"model": "bert", "input": [3, 1 << 40]}, 400, "input"),
    ("/v1/embeddings", {"model": "bert", "input": [[3], [5_000]]}, 400, "input"),
    ("/v1/embeddings", {"model": "bert", "input": [[3] * 100]}, 400, "input"),
    ("/v1/classify", {"model": "gpt", "input": "a"}, 400, "model"),
    ("/v1/fill", {"model": "bert", "text": "no mask"}, 400, "text"),
    ("/v1/nothing", {}, 404, None),
]


@pytest.mark.parametrize(("path", "body", "status", "param"), REFUSED)
def test_a_field_is_honored_or_refused_by_its_name(
    served: Running, path: str, body: dict[str, Any], status: int, param: str | None
) -> None:
    answer = served[0].post(path, json=body)
    assert answer.status_code == status, answer.text
    if status != 200:
        error = answer.json()["error"]
        assert error["message"].endswith((".", "?"))
        if param is not None:
            assert (error["param"] or "").startswith(param), error


def wait_until(condition: Any) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_slot(served: Running, stream: bool) -> None:
    client, server = served
    worker = server.models["gpt"].worker
    engine = worker.engine
    assert engine is not None
    body = {"model": "gpt", "prompt": "the", "max_tokens": 200, "ignore_eos": True, "stream": stream, "n": 4}
    step = engine._step

    def slow(*arguments: Any, **options: Any) -> Any:
        time.sleep(0.05)
        return step(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "_step", slow)
        with suppress(httpx.ReadTimeout), httpx.Client(base_url=client.base_url, timeout=0.5) as leaving:
            if stream:
                with leaving.stream("POST", "/v1/completions", json=body) as answer:
                    next(answer.iter_lines())
            else:
                leaving.post("/v1/completions", json=body)
        wait_until(lambda: engine.running == engine.waiting == worker.streams == 0)


def test_a_full_queue_is_429(served: Running) -> None:
    client, server = served
    worker = server.models["gpt"].worker
    body = {"model": "gpt", "prompt": "the", "max_tokens": 150, "ignore_eos": True, "n": 4}
    answers: list[httpx.Response] = []
    goes_on = threading.Event()

    def hold() -> None:
        goes_on.wait(60)

    worker._jobs.put(hold)  # no text ends before all have come
    threads = [
        threading.Thread(target=lambda: answers.append(client.post("/v1/completions", json=body))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: len(answers) >= 4)
    finally:
        goes_on.set()
        for thread in threads:
            thread.join(60)
    # Four texts have slots, and four may wait.
    assert sorted(answer.status_code for answer in answers) == [200, 200, 429, 429, 429, 429]
    assert all("retry-after" in answer.headers for answer in answers if answer.status_code == 429)
    wait_until(lambda: worker.streams == 0)


def test_a_text_counts_once_while_it_is_prepared(served: Running) -> None:
    client, server = served
    worker = server.models["gpt"].worker
    engine = worker.engine
    assert engine is not None
    submit, goes_on = engine.submit, threading.Event()

    def slow(*arguments: Any, **options: Any) -> Any:
        request = submit(*arguments, **options)
        if engine.waiting % 4 == 0:
            goes_on.wait(60)  # it is in the engine, and the event loop doesn't know yet
        return request

    body = {"model": "gpt", "prompt": "the", "max_tokens": 2, "n": 4}
    answers: list[httpx.Response] = []
    threads = [
        threading.Thread(target=lambda: answers.append(client.post("/v1/completions", json=body))) for _ in range(2)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "submit", slow)
        worker._jobs.put(lambda: goes_on.wait(60) and None)  # no text gets a slot before both have come
        try:
            for number, thread in enumerate(threads, start=1):
                thread.start()
                wait_until(lambda number=number: answers or engine.waiting == 4 * number)
        finally:
            goes_on.set()
            for thread in threads:
                thread.join(60)
    assert [answer.status_code for answer in answers] == [200, 200]


def test_strangers_stay_out() -> None:
    with running(small_models(), key="secret", allow_origin=("https://good.example",)) as (client, _):
        assert client.get("/v1/models").status_code == 401
        assert client.get("/health").status_code == 200
        assert client.get("/v1/models", headers={"Authorization": "bearer secret"}).status_code == 200
        headers = {"Authorization": "Bearer secret"}
        assert client.get("/v1/models", headers=headers).status_code == 200
        assert client.get("/v1/models", headers={"x-api-key": "secret"}).status_code == 200
        assert client.get("/v1/models", headers={"x-api-key": "secre\u0301t".encode()}).status_code == 401
        assert client.get("/v1/models", headers=headers | {"Host": "evil.example"}).status_code == 403
        for origin in ("https://evil.example", "null", "http://["):
            assert client.get("/v1/models", headers=headers | {"Origin": origin}).status_code == 403
        answer = client.get("/v1/models", headers=headers | {"Origin": "https://good.example"})
        assert answer.headers["access-control-allow-origin"] == "https://good.example"
        assert client.options("/v1/models", headers={"Origin": "https://good.example"}).status_code == 200


def test_large_and_broken_bodies() -> None:
    with running(small_models(), max_body=10_000) as (client, _):
        assert client.post("/v1/completions", content=b"x" * 10_001).status_code == 413
        assert client.post("/v1/completions", content=iter([b"x" * 6_000] * 2)).status_code == 411
        half = b'{"model": "gpt", "prompt": "a", "\\udfff": 1}'
        for body in (
            half,
            b"[" * 9_000,
            b'{"model": 1e999999}',
            b"\xff\xfe",
            b'{"a":' + b"9" * 9_000 + b"}",
            b"",
            b"null",
        ):
            answer = client.post("/v1/completions", content=body, headers={"Content-Type": "application/json"})
            assert answer.status_code == 400, answer.text
            assert "Traceback" not in answer.text
        for kind in ({}, {"Content-Type": "application/x-www-form-urlencoded"}):  # as curl says where nobody does
            answer = client.post("/v1/completions", content=b'{"model": "gpt", "prompt": "a"}', headers=kind)
            assert "Content-Type: application/json" in answer.json()["error"]["message"]


def test_a_simple_client_reads_why_its_body_is_refused() -> None:
    with running(small_models(), max_body=10_000) as (client, _):
        head = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 8000000\r\n\r\n"
        assert send(client.base_url.port or 0, head + b"x" * 8_000_000) == 413


@pytest.mark.parametrize(
    ("count", "schema"), [(2000, {"type": "integer"}), (800, {"type": "string", "pattern": "^[a-z]{3}$"})]
)
def test_a_schema_of_many_properties_is_obeyed(count: int, schema: dict[str, Any]) -> None:
    properties = {f"p{number}": schema for number in range(count)}
    form = {"type": "object", "properties": properties}
    body = CHAT | {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": form}}}
    with running(models()) as (client, _):
        answer = client.post("/v1/chat/completions", json=body | {"max_tokens": 2})
        assert answer.status_code == 200, answer.text


def test_the_log_says_why_a_request_failed(served: Running, caplog: pytest.LogCaptureFixture) -> None:
    client, server = served
    engine = server.models["gpt"].worker.engine

    def fail(*arguments: Any, **options: Any) -> Any:
        raise ValueError("for this reason")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "_step", fail)
        answer = client.post("/v1/completions", json=PLAIN)
    name = answer.headers["x-request-id"]
    assert answer.status_code == 500
    assert name in answer.json()["error"]["message"]
    assert name in caplog.text
    assert "for this reason" in caplog.text


def test_tokens_that_were_read_before_are_counted(served: Running) -> None:
    body = {"model": "gpt", "messages": [{"role": "user", "content": "the cat sat on the mat " * 5}], "max_tokens": 2}
    details = [post(served, "/v1/chat/completions", **body)["usage"]["prompt_tokens_details"] for _ in range(2)]
    assert details[0]["cached_tokens"] < details[1]["cached_tokens"]
