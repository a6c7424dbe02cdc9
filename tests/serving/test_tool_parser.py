"""Calls are found in whatever pieces the answer comes."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyformer.serving.api.turn import Answer, Call
from anyformer.serving.tool_formats import FORMATS, Function, format_of
from anyformer.serving.tool_parser import ToolParser

few = settings(max_examples=40, derandomize=True, database=None)
NAMES = {"weather", "add"}
TEMPLATES = {
    "hermes": "{{ tools }} <tool_call>",
    "mistral": "{{ tools }} [TOOL_CALLS]",
    "mistral 11": "{{ tools }} [TOOL_CALLS] [ARGS]",
    "granite": "{{ tools }} <|tool_call|>",
    "deepseek": "{{ tools }} <｜tool▁sep｜> ```json",
    "deepseek 3.1": "{{ tools }} <｜tool▁sep｜>",
    "llama": '{{ tools }} {"name": function name, "parameters": dictionary}',
}
arguments = st.dictionaries(
    st.text(max_size=4), st.one_of(st.integers(), st.text(max_size=9), st.lists(st.none() | st.booleans(), max_size=2))
)
calls = st.lists(st.tuples(st.sampled_from(sorted(NAMES)), arguments), max_size=3)


def pieces(data: st.DataObject, text: str) -> list[str]:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    return [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def parse(form: Any, said: list[str]) -> Answer:
    answer = Answer(parser=ToolParser(form, NAMES))
    for number, piece in enumerate(said, 1):
        answer.push(piece, "stop" if number == len(said) else None)
    return answer


@pytest.mark.parametrize("name", TEMPLATES)
@few
@given(data=st.data())
def test_drawn_calls(name: str, data: st.DataObject) -> None:
    form = format_of(TEMPLATES[name])
    assert form is not None
    made, before = data.draw(calls), data.draw(st.sampled_from(["", "I'll look.", "a { b } <tool", "[1, 2]"]))
    written = [
        form.call.replace("NAME", function).replace("ARGUMENTS", json.dumps(values, ensure_ascii=False))
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


def test_a_template_without_a_known_form_has_none() -> None:
    assert format_of(None) is None
    assert format_of("<tool_call>") is None
    assert format_of("{{ tools }}") is None
    assert format_of("{{ tools }} <tool_call> <function=name>") is None
    assert len({form.call + form.open for form in FORMATS}) == len(FORMATS)
    assert Function(name="f").described["function"]["parameters"]["type"] == "object"
