"""Calls are found in whatever pieces the answer comes."""

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyformer.serving.api.turn import Answer, Call
from anyformer.serving.tool_formats import FORMATS, Function, ToolFormat, format_of
from anyformer.serving.tool_parser import ChannelParser, ToolParser

few = settings(max_examples=40, derandomize=True, database=None)
TYPES: dict[str, Any] = {"city": {"type": "string"}, "days": {"type": "integer"}, "more": {"type": ["string", "null"]}}
SCHEMAS: dict[str, dict[str, Any]] = {"weather": {"type": "object", "properties": TYPES}, "add": {}}
TEMPLATES = {
    "hermes": "{{ tools }} <tool_call>",
    "mistral": "{{ tools }} [TOOL_CALLS]",
    "mistral 11": "{{ tools }} [TOOL_CALLS] [ARGS]",
    "granite": "{{ tools }} <|tool_call|>",
    "deepseek": "{{ tools }} <｜tool▁sep｜> ```json",
    "deepseek 3.1": "{{ tools }} <｜tool▁sep｜>",
    "qwen coder": "{{ tools }} <tool_call> <function=name> <parameter=key>",
    "glm": "{{ tools }} <tool_call> <arg_key>",
    "gpt-oss": "{{ tools }} <|channel|> <|message|>",
    "llama": '{{ tools }} {"name": function name, "parameters": dictionary}',
}
arguments = st.dictionaries(
    st.text(max_size=4), st.one_of(st.integers(), st.text(max_size=9), st.lists(st.none() | st.booleans(), max_size=2))
)
names = st.sampled_from(sorted(SCHEMAS))
calls = st.lists(st.tuples(names, arguments), max_size=3)
plain = st.text("abc 1{}[]\"'\n<é", max_size=9).filter(lambda text: text == text.strip("\n"))
"""Texts that stand between tags as they are."""
tagged = st.fixed_dictionaries({}, optional={"city": plain, "days": st.integers(), "more": st.none() | plain}).filter(
    lambda values: values.get("more") != "null"
)
tagged_calls = st.lists(st.tuples(names, tagged), max_size=3)


def pieces(data: st.DataObject, text: str) -> list[str]:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    return [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def parse(form: Any, said: list[str]) -> Answer:
    answer = Answer(parser=ChannelParser(SCHEMAS) if form.channels else ToolParser(form, SCHEMAS))
    for number, piece in enumerate(said, 1):
        answer.push(piece, "stop" if number == len(said) else None)
    return answer


def written_arguments(form: ToolFormat, values: dict[str, Any]) -> str:
    if form.tags is None:
        return json.dumps(values, ensure_ascii=False)
    spelled = {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}
    return "".join(form.tags.written.replace("KEY", key).replace("VALUE", value) for key, value in spelled.items())


@pytest.mark.parametrize("name", TEMPLATES)
@few
@given(data=st.data())
def test_drawn_calls(name: str, data: st.DataObject) -> None:
    form = format_of(TEMPLATES[name])
    assert form is not None
    made = data.draw(calls if form.tags is None else tagged_calls)
    if form.tags is not None:
        made = [("weather", values) for _, values in made]
    before = data.draw(st.sampled_from(["", "I'll look.", "a { b } <tool", "[1, 2]"]))
    written = [
        form.call.replace("NAME", function).replace("ARGUMENTS", written_arguments(form, values))
        for function, values in made
    ]
    if not form.trigger and made:
        before = ""
    text = before + ("\n\n" if before else "") + (form.open + form.between.join(written) + form.close if made else "")
    answer = parse(form, pieces(data, text))
    assert [(call.name, json.loads(call.arguments)) for call in answer.calls] == made
    assert answer.text == (before if made else text)
    assert answer.finish == ("tool_calls" if made else "stop")
    assert len({call.id for call in answer.calls}) == len(made)
    assert all(len(call.id) == 9 for call in answer.calls)


BROKEN = [
    "<tool_call>",
    "<tool_call>\nno JSON\n</tool_call>",
    '<tool_call>\n{"name": "unknown", "arguments": {}}\n</tool_call> x',
    '<tool_call>\n{"name": "add", "arguments": 3}\n</tool_call>',
    'see <tool_call> {"name": "add"',
    "1 < 2 <tool",
    '{"name": "add", "arguments": {}}',
]


@few
@given(text=st.sampled_from(BROKEN), data=st.data())
def test_what_is_no_call_is_text(text: str, data: st.DataObject) -> None:
    answer = parse(format_of(TEMPLATES["hermes"]), pieces(data, text))
    assert answer.text == text
    assert answer.calls == []
    assert answer.finish == "stop"


OTHER = [
    ("hermes", '<tool_call>{"arguments": {"a": "}"}, "name": "add"}</tool_call>', [("add", '{"a": "}"}')]),
    ("hermes", '<tool_call>[{"name": "add", "arguments": {}}, {"name":"add","arguments":{"b":1}}]</tool_call>',
     [("add", "{}"), ("add", '{"b":1}')]),
    ("hermes", r'<tool_call>{"name": "add", "arguments": "{\"a\": 1}"}</tool_call>', [("add", '{"a": 1}')]),
    ("hermes", '<tool_call>{"name": "add", "arguments": {"a": [1, {"b"', [("add", '{"a": [1, {"b"')]),
    ("mistral", '[TOOL_CALLS] [{"name": "add", "arguments": {}, "id": "abcdefghi"}, {"name": "add", "arguments": {}}]',
     [("add", "{}"), ("add", "{}")]),
    ("qwen coder", "<tool_call>\n<function=add>\n</function>\n<function=weather>\n<parameter=city>3</parameter>"
     "<parameter=days>\nTrue\n</parameter><parameter=x>[1, NaN]</parameter></function></tool_call>",
     [("add", "{}"), ("weather", '{"city": "3", "days": true, "x": "[1, NaN]"}')]),
    ("qwen coder", "<tool_call><function=weather><parameter=city>\nRome\n</parameter><parameter=da",
     [("weather", '{"city": "Rome"')]),
    ("glm", "<tool_call>add\n</tool_call><tool_call>weather<arg_key>city</arg_key><arg_value>a\n</arg_value>"
     "</tool_call>", [("add", "{}"), ("weather", '{"city": "a\\n"}')]),
    ("gpt-oss", '<|channel|>analysis<|message|>a<|end|><|start|>assistant to=functions.add<|channel|>commentary json'
     '<|message|>{"a": "<|"}<|call|>', [("add", '{"a": "<|"}')]),
    ("llama", '<|python_tag|>{"name": "add", "parameters": {}}; {"name": "weather", "parameters": {}}',
     [("add", "{}"), ("weather", "{}")]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "expected"), OTHER)
@few
@given(data=st.data())
def test_other_forms(name: str, text: str, expected: list[tuple[str, str]], data: st.DataObject) -> None:
    answer = parse(format_of(TEMPLATES[name]), pieces(data, text))
    assert [(call.name, call.arguments) for call in answer.items if isinstance(call, Call)] == expected
    assert answer.text == ""


CHANNELS = [
    (
        "<|channel|>analysis<|message|>Hm <|a.<|end|><|start|>assistant<|channel|>final<|message|>Hi <|",
        "Hi <|",
        "Hm <|a.",
    ),
    ("<|channel|>commentary<|message|>First.<|start|>assistant<|channel|>final<|message|>Hi", "First.Hi", ""),
    ("<|channel|>commentary to=functions.other<|message|>{}<|call|>", "{}", ""),
    ("<|start|>assistant<|channel|>final<|message|>Hi<|return|>", "Hi", ""),
    ("<|channel|>analysis", "", ""),
    ("<|no channel", "<|no channel", ""),
    ("Hi", "Hi", ""),
]


@pytest.mark.parametrize(("text", "expected", "reasoning"), CHANNELS)
def test_channels(text: str, expected: str, reasoning: str) -> None:
    form = format_of(TEMPLATES["gpt-oss"])
    for cut in range(len(text) + 1):
        answer = parse(form, [text[:cut], text[cut:]])
        assert (answer.text, answer.reasoning, answer.calls) == (expected, reasoning, [])
    assert parse(form, list(text)).text == expected


WRITTEN = "".join(
    form.open + form.call + form.between + form.close + (form.tags.written if form.tags else "") for form in FORMATS
).replace("NAME", "add")
MARKS = sorted({*re.findall(r"<[^<>\s]*>?|\[\w*\]|\w+|\W", WRITTEN), "analysis", "{}", '{"name": "add", "arguments": '})


def shown(answer: Answer) -> tuple[Any, ...]:
    calls = [(call.name, call.arguments) for call in answer.calls]
    return answer.text, answer.reasoning, calls, answer.finish


@pytest.mark.parametrize("name", TEMPLATES)
@few
@given(text=st.lists(st.sampled_from(MARKS), max_size=14).map("".join))
def test_a_stream_says_the_same_wherever_it_is_cut(name: str, text: str) -> None:
    form = format_of(TEMPLATES[name])
    whole = shown(parse(form, [text]))
    assert shown(parse(form, list(text) or [""])) == whole
    for cut in range(1, len(text)):
        assert shown(parse(form, [text[:cut], text[cut:]])) == whole


def test_a_template_without_a_known_form_has_none() -> None:
    assert format_of(None) is None
    assert format_of("<tool_call>") is None
    assert format_of("{{ tools }}") is None
    assert format_of("{{ tools }} <function=name>") is None
    assert len({form.call + form.open for form in FORMATS}) == len(FORMATS)
    assert Function(name="f").described["function"]["parameters"]["type"] == "object"
