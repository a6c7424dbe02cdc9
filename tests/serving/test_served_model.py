"""Texts that go on from given tokens, and tokens with their ids: what the page of the server stands on."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import httpx
import pytest

from tests.finetuning import toys
from tests.serving.running import running, small_models

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "the cat"}], "logprobs": True, "top_logprobs": 3}
ASKED = {"/v1/chat/completions": CHAT, "/v1/completions": {"prompt": "the cat", "logprobs": 3}}


@pytest.fixture(scope="module")
def client() -> Generator[httpx.Client]:
    with running({**small_models(), "t5": toys.encoder_decoder()}) as (client, _):
        yield client


def content(client: httpx.Client, path: str, **body: Any) -> list[Any]:
    answer = client.post(path, json={"model": "gpt", "temperature": 0, "max_tokens": 12, **ASKED[path], **body})
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["logprobs"]["content"]


@pytest.mark.parametrize("path", ASKED)
def test_a_text_goes_on_from_its_beginning(client: httpx.Client, path: str):
    whole = content(client, path)
    for start in (1, 5, len(whole) - 1):
        prefix = [token["id"] for token in whole[:start]]
        rest = content(client, path, prefix_ids=prefix, max_tokens=12 - start)
        assert [token["id"] for token in rest] == [token["id"] for token in whole[start:]]
        assert [token["logprob"] for token in rest] == pytest.approx(
            [token["logprob"] for token in whole[start:]], 1e-4
        )
    other = whole[0]["top_logprobs"][1]["id"]
    branched = content(client, path, prefix_ids=[other])
    assert [other, *(token["id"] for token in branched)] != [token["id"] for token in whole]


@pytest.mark.parametrize("path", ASKED)
@pytest.mark.parametrize(
    ("model", "prefix"), [("gpt", [100_000]), ("gpt", []), ("gpt", [-1]), ("t5", [5])], ids=lambda value: str(value)
)
def test_a_beginning_that_cannot_be_is_refused(client: httpx.Client, path: str, model: str, prefix: list[int]):
    answer = client.post(path, json={"model": model, **ASKED[path], "prefix_ids": prefix})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith("prefix_ids")


def test_an_echo_of_a_prompt_has_no_beginning_behind_it(client: httpx.Client):
    answer = client.post("/v1/completions", json={"model": "gpt", "prompt": "the", "echo": True, "prefix_ids": [5]})
    assert answer.status_code == 400


def test_models_name_the_tokens_that_end_their_texts(client: httpx.Client):
    gpt, bert, t5 = client.get("/v1/models").json()["data"]
    assert 0 in gpt["eos_token_ids"]
    assert [model["is_encoder_decoder"] for model in (gpt, bert, t5)] == [False, False, True]
