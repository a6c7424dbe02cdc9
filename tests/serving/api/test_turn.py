"""The openai and anthropic clients against a running server."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Generator
from typing import Any

import anthropic
import httpx
import openai
import pytest

import anyformer as af
from anyformer.serving.api.turn import Turn
from anyformer.serving.state import Server
from tests.serving.running import running
from tests.serving.talking import CODER, GLM, HARMONY, json_tokenizer, models, saying

Clients = tuple[Any, Any, Server, httpx.Client]
USER: dict[str, Any] = {"model": "gpt", "messages": [{"role": "user", "content": "weather?"}]}
WEATHER: dict[str, Any] = {
    "name": "weather",
    "description": "Weather of a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Oslo", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
ROME = {"city": "Rome"}
TOOLS = [{"type": "function", "function": WEATHER}]
RESPONSES_TOOL = {"type": "function", **WEATHER}
ANTHROPIC_TOOL = {"name": "weather", "description": "d", "input_schema": WEATHER["parameters"]}
CALL = 'Let me see.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'


@pytest.fixture(scope="module")
def clients() -> Generator[Clients]:
    with running(models(), slots=4) as (client, server):
        url = str(client.base_url)
        with (
            openai.OpenAI(base_url=f"{url}v1" if url.endswith("/") else f"{url}/v1", api_key="-", max_retries=0) as one,
            anthropic.Anthropic(base_url=url, api_key="-", max_retries=0) as other,
        ):
            yield one, other, server, client


def post(clients: Clients, path: str, **body: Any) -> Any:
    return clients[3].post(path, json=body)


def test_chat(clients: Clients) -> None:
    body: dict[str, Any] = {**USER, "max_tokens": 12, "seed": 5, "temperature": 1.0, "n": 2}
    whole = clients[0].chat.completions.create(**body)
    again = clients[0].chat.completions.create(**body, stream=True, stream_options={"include_usage": True})
    texts, finish, usage = ["", ""], ["", ""], None
    for chunk in again:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            finish[choice.index] = choice.finish_reason or finish[choice.index]
    assert texts == [choice.message.content for choice in whole.choices]
    assert finish == [choice.finish_reason for choice in whole.choices]
    assert usage is not None
    assert usage.model_dump(exclude={"prompt_tokens_details"}) == whole.usage.model_dump(
        exclude={"prompt_tokens_details"}
    )
    assert texts[0] != texts[1]


def test_completions_echo_and_score(clients: Clients) -> None:
    found = clients[0].completions.create(
        model="gpt", prompt="the cat", max_tokens=3, echo=True, logprobs=2, temperature=0
    )
    logprobs = found.choices[0].logprobs
    assert found.choices[0].text.startswith("the cat")
    assert logprobs.token_logprobs[0] is None
    assert all(len(top) <= 2 for top in logprobs.top_logprobs[1:])
    assert "".join(logprobs.tokens[: logprobs.text_offset.index(7)]) == "the cat"
    vector = clients[0].embeddings.create(model="gpt", input="the cat").data[0].embedding
    assert len(vector) == 16
    assert [model.id for model in clients[0].models.list()] == ["gpt"]


def test_stop_strings_never_show(clients: Clients) -> None:
    with saying(clients[2], "the cat STOP sat"):
        found = clients[0].chat.completions.create(**USER, stop=["STOP"], temperature=0)
        assert found.choices[0].message.content == "the cat "
        told = clients[1].messages.create(**USER, max_tokens=20, stop_sequences=["x", "STOP"])
    assert (told.stop_reason, told.stop_sequence) == ("stop_sequence", "STOP")
    assert told.content[0].text == "the cat "


def test_tools_are_called(clients: Clients) -> None:
    with saying(clients[2], CALL):
        whole = clients[0].chat.completions.create(**USER, tools=TOOLS, temperature=0)
        chunks = list(clients[0].chat.completions.create(**USER, tools=TOOLS, temperature=0, stream=True))
    (choice,) = whole.choices
    (call,) = choice.message.tool_calls
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Let me see.")
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Rome"})
    deltas = [delta for chunk in chunks for delta in chunk.choices[0].delta.tool_calls or ()]
    assert deltas[0].id
    assert deltas[0].function.name == "weather"
    assert all(delta.id is None for delta in deltas[1:])
    assert {delta.index for delta in deltas} == {0}
    assert "".join(delta.function.arguments for delta in deltas) == call.function.arguments
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Let me see."
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_results_of_tools_are_shown(clients: Clients) -> None:
    call = {"id": "abc", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    messages = [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "abc", "content": "sunny"},
    ]
    served = clients[2].models["gpt"]
    tokens = served.require_tokenizer().encode(
        "<user>weather?\n<assistant><tool_call>Rome</tool_call>\n<tool>sunny\n<assistant>", special=False
    )
    found = clients[0].chat.completions.create(model="gpt", messages=messages, max_tokens=1)
    assert found.usage.prompt_tokens == len(tokens)
    told = clients[1].messages.count_tokens(
        model="gpt",
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "weather?"}]},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "abc", "name": "weather", "input": ROME}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "abc", "content": "sunny"}]},
        ],
    )  # fmt: skip
    assert told.input_tokens == len(tokens)
    items: list[Any] = [
        {"role": "user", "content": "weather?"},
        {"type": "function_call", "call_id": "abc", "name": "weather", "arguments": '{"city": "Rome"}'},
        {"type": "function_call_output", "call_id": "abc", "output": "sunny"},
    ]
    answer = clients[0].responses.create(model="gpt", input=items, max_output_tokens=1)
    assert answer.usage.input_tokens == len(tokens)
    assert answer.status in ("incomplete", "completed")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_call_can_be_required(clients: Clients, choice: Any) -> None:
    with saying(clients[2], "no, thank you"):
        found = clients[0].chat.completions.create(
            **USER, tools=TOOLS, tool_choice=choice, temperature=0, max_tokens=200
        )
    message = found.choices[0].message
    assert found.choices[0].finish_reason == "tool_calls"
    assert message.content is None
    assert all(json.loads(call.function.arguments)["city"] in ("Oslo", "Rome") for call in message.tool_calls)


def test_strict_tools_obey_their_schema(clients: Clients) -> None:
    strict = [{"type": "function", "function": {**WEATHER, "strict": True}}]
    with saying(clients[2], CALL.replace("Rome", "Paris")):
        loose = clients[0].chat.completions.create(**USER, tools=TOOLS, temperature=0)
        found = clients[0].chat.completions.create(**USER, tools=strict, parallel_tool_calls=False, temperature=0)
    assert json.loads(loose.choices[0].message.tool_calls[0].function.arguments) == {"city": "Paris"}
    (call,) = found.choices[0].message.tool_calls
    assert json.loads(call.function.arguments)["city"] in ("Oslo", "Rome")
    assert found.choices[0].message.content == "Let me see."
    with saying(clients[2], "Let me not."):
        found = clients[0].chat.completions.create(**USER, tools=strict, temperature=0)
    assert (found.choices[0].message.content, found.choices[0].finish_reason) == ("Let me not.", "stop")


def test_messages(clients: Clients) -> None:
    tools = [ANTHROPIC_TOOL]
    body: dict[str, Any] = {**USER, "max_tokens": 60, "system": "Be brief."}
    with saying(clients[2], CALL):
        whole = clients[1].messages.create(**body, tools=tools)
        with clients[1].messages.stream(**body, tools=tools) as stream:
            kinds = [event.type for event in stream]
            streamed = stream.get_final_message()
        plain = clients[1].messages.create(**body, tools=tools, tool_choice={"type": "none"})
        with clients[1].messages.stream(**body) as stream:
            text = "".join(stream.text_stream)
    assert [block.type for block in whole.content] == ["text", "tool_use"]
    assert whole.content[0].text == "Let me see."
    assert whole.content[1].input == {"city": "Rome"}
    assert (whole.stop_reason, whole.role) == ("tool_use", "assistant")
    assert streamed.usage == whole.usage
    assert streamed.stop_reason == whole.stop_reason
    assert [block.model_dump(exclude={"id", "parsed_output"}) for block in streamed.content] == [
        block.model_dump(exclude={"id", "parsed_output"}) for block in whole.content
    ]
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"
    assert plain.content[0].text == text == CALL
    assert plain.stop_reason == "end_turn"
    short = clients[1].messages.create(**{**body, "max_tokens": 1})
    assert short.stop_reason in ("max_tokens", "end_turn")


def test_responses(clients: Clients) -> None:
    tools = [{"type": "function", **WEATHER}]
    body: dict[str, Any] = {"model": "gpt", "input": "weather?", "instructions": "Be brief.", "store": False}
    with saying(clients[2], CALL):
        whole = clients[0].responses.create(**body, tools=tools)
        events = list(clients[0].responses.create(**body, tools=tools, stream=True))
        text = clients[0].responses.create(**body).output_text
    assert [item.type for item in whole.output] == ["message", "function_call"]
    assert whole.output_text == "Let me see."
    assert json.loads(whole.output[1].arguments) == {"city": "Rome"}
    assert (whole.status, whole.store, text) == ("completed", False, CALL)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    final = events[-1].response
    assert events[-1].type == "response.completed"
    assert (final.output_text, final.output[1].arguments) == (whole.output_text, whole.output[1].arguments)
    assert final.usage.model_dump(exclude={"input_tokens_details"}) == whole.usage.model_dump(
        exclude={"input_tokens_details"}
    )
    assert final.usage.input_tokens_details.cached_tokens > 0
    said = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert said == whole.output_text
    done = [event.item.id for event in events if event.type == "response.output_item.done"]
    assert done == [item.id for item in final.output]


def test_json(clients: Clients) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "w", "schema": WEATHER["parameters"], "strict": True}}
    with saying(clients[2], '{"city": "Paris"} and more'):
        found = clients[0].chat.completions.create(**USER, response_format=form, temperature=0)
        assert json.loads(found.choices[0].message.content)["city"] in ("Oslo", "Rome")
        assert found.choices[0].finish_reason == "stop"
        chunks = clients[0].chat.completions.create(**USER, response_format=form, temperature=0, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == found.choices[0].message.content
        config = {"format": {"type": "json_schema", "schema": WEATHER["parameters"]}}
        told = clients[1].messages.create(**USER, max_tokens=60, output_config=config)
        assert json.loads(told.content[0].text)["city"] in ("Oslo", "Rome")
        text = {"format": {"type": "json_schema", "name": "w", "schema": WEATHER["parameters"]}}
        answer = clients[0].responses.create(model="gpt", input="?", text=text)
        assert json.loads(answer.output_text)["city"] in ("Oslo", "Rome")
        any_ = clients[0].chat.completions.create(**USER, response_format={"type": "json_object"}, temperature=0)
        assert json.loads(any_.choices[0].message.content) == {"city": "Paris"}
        extra = {"grammar": {"type": "regex", "value": "[a-c]{3}é+"}}
        text = clients[0].completions.create(model="gpt", prompt="the", max_tokens=30, extra_body=extra).choices[0].text
        assert set(text[:3]) <= set("abc")
        assert set(text[3:]) <= {"é"}


CHAT, MESSAGES = {**USER}, {**USER, "max_tokens": 3}
RESPONSES: dict[str, Any] = {"model": "gpt", "input": "a"}
DEEP: dict[str, Any] = {}
for _ in range(200):
    DEEP = {"items": DEEP}
PART = {"type": "text", "text": "a"}
CALLED = [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "["}}]


def by_schema(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"schema": schema}}


def said(content: Any, role: str = "user", **more: Any) -> list[dict[str, Any]]:
    return [{"role": role, "content": content, **more}]


REFUSED = [
    ("chat/completions", CHAT, "frobnicate", 1, "frobnicate"),
    ("chat/completions", CHAT, "web_search_options", {}, "web_search_options"),
    ("chat/completions", CHAT, "top_logprobs", 2, "top_logprobs"),
    ("chat/completions", CHAT, "tools", [{"type": "function", "function": {"name": "a b"}}], "tools.0.function.name"),
    ("chat/completions", CHAT, "tools", [{"type": "custom"}], "tools.0"),
    ("chat/completions", CHAT, "tool_choice", "required", "tool_choice"),
    ("chat/completions", CHAT, "messages", said("a", images=[]), "messages.0.images"),
    ("chat/completions", CHAT, "messages", said([{"type": "image_url"}]), "messages.0.content"),
    ("chat/completions", CHAT, "messages", said([*[PART] * 3, {**PART, "text": 1}]), "messages.0.content.3.text"),
    ("chat/completions", CHAT, "messages", said("a", role="robot"), "messages.0"),
    ("chat/completions", CHAT, "messages", said(None, "assistant", tool_calls=CALLED), "messages.0.tool_calls"),
    ("chat/completions", CHAT, "messages", said("a", "tool", tool_call_id="b"), "messages.0.tool_call_id"),
    ("chat/completions", CHAT, "response_format", {"type": "xml"}, "response_format"),
    ("chat/completions", CHAT, "response_format", by_schema({"type": "array", "uniqueItems": True}), "response_format"),
    ("chat/completions", CHAT, "response_format", by_schema(DEEP), "response_format"),
    ("chat/completions", CHAT, "response_format", by_schema({"enum": ["x" * 70_000]}), "response_format"),
    ("chat/completions", CHAT, "grammar", {"type": "regex", "value": "(?=a)b"}, "grammar"),
    ("chat/completions", CHAT, "grammar", {"type": "regex", "value": "a" * 5000}, "grammar"),
    ("chat/completions", CHAT, "grammar", {"type": "lark", "value": "a"}, "grammar.type"),
    ("messages", MESSAGES, "frobnicate", 1, "frobnicate"),
    ("messages", USER, "system", "a", "max_tokens"),
    ("messages", MESSAGES, "thinking", {"type": "enabled", "budget_tokens": 5}, "thinking"),
    ("messages", MESSAGES, "tool_choice", {"type": "tool"}, "tool_choice"),
    ("messages", MESSAGES, "messages", said("a", "assistant"), "messages"),
    ("messages", MESSAGES, "messages", said([{"type": "text", "text": "a", "b": 1}]), "messages.0.content.0.b"),
    ("completions", {"model": "gpt", "prompt": "a"}, "best_of", 2, "best_of"),
    ("responses", RESPONSES, "frobnicate", 1, "frobnicate"),
    ("responses", RESPONSES, "previous_response_id", "resp_1", "previous_response_id"),
    ("responses", RESPONSES, "store", True, "store"),
    ("responses", RESPONSES, "reasoning", {"effort": "high"}, "reasoning"),
    ("responses", RESPONSES, "tools", [{"type": "web_search"}], "tools.0"),
    ("responses", RESPONSES, "input", said("a", b=1), "input.0.b"),
    ("responses", RESPONSES, "input", [{"type": "item_reference", "id": "a"}], "input.0"),
]


@pytest.mark.parametrize(("path", "body", "name", "value", "param"), REFUSED)
def test_refused_by_name(clients: Clients, path: str, body: dict[str, Any], name: str, value: Any, param: str) -> None:
    answer = post(clients, f"/v1/{path}", **{**body, name: value})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"].startswith(param), error
    assert error["message"].endswith((".", "?")), error
    assert len(error["message"]) < 600


STREAMED = {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
PARSED = {**STREAMED, "function": {**STREAMED["function"], "parsed_arguments": {}}}
TAKEN = [
    ("chat/completions", CHAT, {"reasoning_effort": None, "audio": None, "functions": None, "top_k": -1}),
    ("chat/completions", CHAT, {"service_tier": "auto", "modalities": ["text"], "verbosity": None}),
    ("chat/completions", CHAT, {"verbosity": "medium", "reasoning_effort": "none", "top_p": 0, "ignore_eos": None}),
    ("chat/completions", CHAT, {"chat_template_kwargs": {}, "min_tokens": 0, "cache_prompt": True}),
    ("chat/completions", CHAT, {"stream": True, "stream_options": {"include_usage": None}}),
    ("chat/completions", CHAT, {"messages": said("{}", "assistant", parsed={}, tool_calls=[PARSED])}),
    ("chat/completions", CHAT, {"safety_identifier": "a", "prompt_cache_key": "b", "prompt_cache_retention": "24h"}),
    ("chat/completions", CHAT, {"messages": said("a", "developer", files=None)}),
    ("chat/completions", CHAT, {"messages": said(None, "assistant", tool_calls=[STREAMED])}),
    ("completions", {"model": "gpt", "prompt": "a"}, {"best_of": 1, "suffix": None}),
    ("completions", {"model": "gpt", "prompt": "a"}, {"best_of": 2, "n": 2, "suffix": "", "echo": None}),
    ("messages", MESSAGES, {"thinking": {"type": "adaptive"}, "container": None}),
    ("messages", MESSAGES, {"thinking": {"type": "adaptive", "display": "omitted"}, "cache_control": {"type": "a"}}),
    ("responses", RESPONSES, {"reasoning": None, "previous_response_id": None, "prompt_cache_retention": "24h"}),
    ("responses", RESPONSES, {"reasoning": {"effort": None}, "top_logprobs": 0, "text": {"verbosity": "medium"}}),
    ("responses", RESPONSES, {"include": ["reasoning.encrypted_content"]}),
    ("embeddings", RESPONSES, {"encoding_format": None}),
]


@pytest.mark.parametrize(("path", "body", "more"), TAKEN)
def test_fields_that_change_nothing_are_taken(
    clients: Clients, path: str, body: dict[str, Any], more: dict[str, Any]
) -> None:
    limit = {"chat/completions": {"max_tokens": 3}, "responses": {"max_output_tokens": 3}}.get(path, {})
    answer = post(clients, f"/v1/{path}", **{**body, **limit, **more})
    assert answer.status_code == 200, answer.text


def test_a_call_that_was_cut_is_no_call(clients: Clients) -> None:
    with saying(clients[2], CALL[: CALL.index('me"}')]):
        (choice,) = clients[0].chat.completions.create(**USER, tools=TOOLS, temperature=0).choices
        told = clients[1].messages.create(**USER, max_tokens=200, tools=[ANTHROPIC_TOOL])
        answered = clients[0].responses.create(model="gpt", input="a", tools=[RESPONSES_TOOL], temperature=0)
    assert choice.finish_reason == "stop"
    assert told.stop_reason == "end_turn"
    assert (answered.status, [item.status for item in answered.output]) == ("incomplete", ["completed", "incomplete"])
    with saying(clients[2], CALL):
        told = clients[1].messages.create(**USER, max_tokens=200, tools=[ANTHROPIC_TOOL], stop_sequences=["ome"])
    assert (told.stop_reason, told.stop_sequence) == ("stop_sequence", "ome")


@pytest.mark.parametrize("begun", ["\n<tool_ca", '\n<tool_call>\n{"na'])
def test_the_beginning_of_a_further_call_is_no_text(clients: Clients, begun: str) -> None:
    with saying(clients[2], CALL + begun):
        (choice,) = clients[0].chat.completions.create(**USER, tools=TOOLS, temperature=0).choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Let me see.")


def test_offsets_are_places_in_the_text(clients: Clients) -> None:
    text = "h\u00e9\u4e2d cat"
    with saying(clients[2], text):
        ask: Any = {"model": "gpt", "prompt": "\u00e9a", "max_tokens": 30, "logprobs": 0, "temperature": 0}
        (whole,) = clients[0].completions.create(**ask, echo=True).choices
        chunks = [chunk.choices[0] for chunk in clients[0].completions.create(**ask, echo=True, stream=True)]
    assert whole.text == "\u00e9a" + text
    offsets = whole.logprobs.text_offset
    pairs = zip(whole.logprobs.tokens, offsets, strict=True)
    spelled = [(token, at) for token, at in pairs if "\\x" not in token and at < len(whole.text)]
    assert [token for token, _ in spelled] == ["a", "h", " cat"]
    assert all(whole.text.startswith(token, at) for token, at in spelled)
    assert [at for chunk in chunks if chunk.logprobs for at in chunk.logprobs.text_offset] == offsets


def test_a_crash_within_a_stream_is_its_last_event(clients: Clients, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(turn: Turn) -> AsyncIterator[Any]:
        raise RuntimeError
        yield

    monkeypatch.setattr(Turn, "steps", broken)
    for path, kind in (("chat/completions", "server_error"), ("messages", "api_error")):
        answer = post(clients, f"/v1/{path}", **MESSAGES, stream=True)
        last = next(line for line in reversed(answer.text.splitlines()) if line.startswith("data: "))
        assert json.loads(last[6:])["error"]["type"] == kind


def test_errors_have_the_types_of_their_dialect(clients: Clients) -> None:
    body = {"model": "other", "messages": said("a"), "max_tokens": 1}
    assert post(clients, "/v1/messages", **body).json()["error"]["type"] == "not_found_error"
    assert post(clients, "/v1/chat/completions", **body).json()["error"]["type"] == "invalid_request_error"


def test_the_form_of_a_field_that_fits_best_is_blamed(clients: Clients) -> None:
    error = post(clients, "/v1/completions", model="gpt", prompt="a", stop=["a"] * 17).json()["error"]
    assert error["param"] == "stop"
    assert "at most 16" in error["message"]


def test_errors_are_the_clients_own(clients: Clients) -> None:
    with pytest.raises(openai.NotFoundError, match="no model"):
        clients[0].chat.completions.create(**{**USER, "model": "other"})
    with pytest.raises(anthropic.NotFoundError, match="no model"):
        clients[1].messages.create(**{**USER, "model": "other"}, max_tokens=1)
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        clients[1].messages.create(**USER, max_tokens=0)


CODED = "Let me see.\n<tool_call>\n<function=weather>\n<parameter=city>\nRome\n</parameter>\n</function>\n</tool_call>"
GLM_CALL = "Let me see.\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Rome</arg_value>\n</tool_call>"
THOUGHT = "<|channel|>analysis<|message|>Rome?<|end|><|start|>assistant"
FUNCTION = '<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"city": "Rome"}'
CALLED_IN_CHANNEL = f"{THOUGHT}<|channel|>commentary<|message|>Let me see.<|end|><|start|>assistant{FUNCTION}"
SPECIAL = [f"<|{name}|>" for name in ("channel", "message", "end", "start", "constrain")]
OTHER_FORMS = [
    (CODER, CODED, ()),
    (GLM, GLM_CALL, ()),
    (HARMONY, CALLED_IN_CHANNEL, ()),
    (HARMONY, CALLED_IN_CHANNEL, SPECIAL),
]


@pytest.mark.parametrize(("template", "text", "special"), OTHER_FORMS)
def test_other_forms_of_calls(template: str, text: str, special: Any) -> None:
    strict = [{"type": "function", "function": {**WEATHER, "strict": True}}]
    with running(models(json_tokenizer(template, *special))) as (client, server), saying(server, text):
        ask: Any = {**USER, "tools": TOOLS, "temperature": 0}
        message = client.post("/v1/chat/completions", json=ask).json()["choices"][0]["message"]
        lines = client.post("/v1/chat/completions", json=ask | {"stream": True}).text.splitlines()
        required = client.post("/v1/chat/completions", json=ask | {"tools": strict, "tool_choice": "required"}).json()
        told = client.post("/v1/messages", json={**MESSAGES, "max_tokens": 200, "tools": [ANTHROPIC_TOOL]}).json()
        asked = {"model": "gpt", "input": "a", "tools": [RESPONSES_TOOL], "temperature": 0, "stream": True}
        items = client.post("/v1/responses", json=asked).text.splitlines()
        form = by_schema(WEATHER["parameters"])
        written = client.post("/v1/chat/completions", json={**USER, "response_format": form, "temperature": 0}).json()
    deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in lines if line and "[DONE]" not in line]
    (call,) = message["tool_calls"]
    assert (message["content"], json.loads(call["function"]["arguments"])) == ("Let me see.", ROME)
    assert message.get("reasoning_content", "") == ("Rome?" if template == HARMONY else "")
    for name in ("content", "reasoning_content"):
        assert "".join(delta.get(name) or "" for delta in deltas) == message.get(name, "")
    (first, *rest) = (delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta)
    assert (first["index"], first["function"]["name"], len(first["id"])) == (0, "weather", 9)
    assert "".join(each["function"]["arguments"] for each in rest) == call["function"]["arguments"]
    assert required["choices"][0]["finish_reason"] == "tool_calls", required
    assert [block["type"] for block in told["content"]] == ["text", "tool_use"]
    assert told["content"][1]["input"] == ROME
    assert [json.loads(line[6:])["type"] for line in items if line.startswith("data: ")][-1] == "response.completed"
    assert json.loads(written["choices"][0]["message"]["content"])["city"] in ("Oslo", "Rome")


def test_reasoning_is_shown_to_the_template() -> None:
    messages = [*said("a"), {"role": "assistant", "reasoning_content": "Hm."}, *said("b")]
    with (
        running(models(json_tokenizer(HARMONY))) as (client, server),
        saying(server, f"{THOUGHT}<|channel|>final<|message|>Hi"),
    ):
        answer = client.post("/v1/chat/completions", json={"model": "gpt", "messages": messages}).json()
        tokenizer = server.models["gpt"].require_tokenizer()
    assert answer["usage"]["prompt_tokens"] == len(
        tokenizer.encode("<user>\n<assistant>Hm.\n<user>\n<assistant>", special=False)
    )
    assert answer["choices"][0]["message"]["content"] == "Hi"


def test_a_model_without_tools() -> None:
    tokenizer = af.Tokenizer.train(["the cat", "<user>"], "bpe:270")
    with running(models(tokenizer)) as (client, _):
        refused = client.post("/v1/chat/completions", json={**USER, "tools": TOOLS})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tools")
        body = {**USER, "tools": TOOLS, "tool_choice": "none", "max_tokens": 1}
        assert client.post("/v1/chat/completions", json=body).status_code == 200
