from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from anyformer.data.examples import Where
from anyformer.data.examples.columns import Columns
from anyformer.data.examples.parts import Parts
from anyformer.data.rows import Row
from anyformer.errors import UserError
from anyformer.tasks.detection import detect_task


def make(values: dict[str, Any], task: Any = None, columns: Columns | None = None) -> Any:
    where = Where(Path("a.jsonl"), 3)
    reading = detect_task(values, f"{where},", task, columns)
    return reading.schema.build(Parts(Row(where, values), reading.columns, reading.optional))


def turns(*messages: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in messages]


SHARE = [
    {"from": "system", "value": "s"},
    {"from": "human", "value": "q"},
    {"from": "gpt", "value": "a"},
    {"from": "human", "value": "r"},
    {"from": "gpt", "value": "b", "weight": 0},
]
CONVERSATION = turns(("system", "s"), ("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b"))


def test_conversations_in_all_their_forms():
    marked = [{**message, "train": False} if message["content"] == "b" else message for message in CONVERSATION]
    for values in (
        {"messages": marked},
        {"messages": marked[1:], "system": "s"},
        {"conversations": SHARE},
        {"conversations": json.dumps(SHARE)},
        {"messages": [{**{k: v for k, v in m.items() if k != "content"}, "text": m["content"]} for m in marked]},
        {
            "prompt": json.dumps([{"role": m["role"], "text": m["content"]} for m in marked[:2]]),
            "completion": marked[2:],
        },
        {"prompt": marked[:2], "completion": marked[2:]},
    ):
        found = make(values)
        assert list(found.messages) == CONVERSATION
        assert list(found.learned) == [False, False, True, False, False]
        assert found.tools is None
    parts = [{"role": "user", "content": [{"type": "text", "text": "q"}, {"text": "!"}, "?"]}, CONVERSATION[2]]
    assert make({"messages": parts}).messages[0] == {"role": "user", "content": "q!?"}
    both = [{"role": "user", "content": "q", "text": "Q"}, {"role": "assistant", "content": None, "text": "a"}]
    assert make({"messages": both}).messages == [{"role": "user", "content": "q", "text": "Q"}, CONVERSATION[2]]
    named = [{"role": "user", "content": "q", "name": "Ann", "tool_calls": None}, CONVERSATION[2]]
    assert make({"messages": named}).messages[0] == {"role": "user", "content": "q", "name": "Ann"}


def test_a_prompt_of_messages_is_never_learned():
    found = make({"prompt": CONVERSATION[:4], "completion": "b"})
    assert list(found.messages) == CONVERSATION
    assert list(found.learned) == [False] * 4 + [True]
    found = make({"prompt": "q", "completion": "a"}, "chat")
    assert list(found.messages) == CONVERSATION[1:3]


def test_calls_of_tools_are_what_templates_take():
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    answered = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "7"},
        {"role": "assistant", "content": "a"},
    ]
    spelled = json.dumps({"name": "f", "arguments": {"x": 1}})
    tools = [{"name": "f"}]
    share = [
        {"from": "human", "value": "q"},
        {"from": "function_call", "value": spelled},
        {"from": "observation", "value": "7"},
        {"from": "gpt", "value": "a"},
    ]
    openai = [
        answered[0],
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": '{"x": 1}'}}]},
        *answered[2:],
    ]
    old = [
        answered[0],
        {"role": "assistant", "function_call": {"name": "f", "arguments": '{"x": 1}'}},
        *answered[2:],
    ]
    for messages in (share, openai, old, answered):
        found = make({"messages": messages, "tools": json.dumps(tools)})
        assert list(found.messages) == answered
        assert list(found.learned) == [False, True, False, True]
        assert found.tools == tools
    kept = [answered[0], {**answered[1], "tool_calls": [{"id": "c1", **call}]}, *answered[2:]]
    assert list(make({"messages": kept, "tools": []}).messages) == kept


def test_instructions():
    row = {"instruction": "Add.", "input": "1 2", "output": "3"}
    found = make(row)
    assert list(found.messages) == turns(("user", "Add.\n1 2"), ("assistant", "3"))
    found = make({**row, "input": "", "system": "s", "history": [["q", "a"], ["r", "b"]]})
    assert list(found.messages) == [*CONVERSATION, *turns(("user", "Add."), ("assistant", "3"))]
    assert list(found.learned) == [False, False, True, False, True, False, True]
    assert make({**row, "history": [], "input": None}).learned == [False, True]


def test_texts_and_segments():
    assert make({"prompt": "p ", "completion": "c"}).segments == (("p ", False), ("c", True))
    assert make({"prompt": "", "completion": "[{c"}).segments == (("[{c", True),)
    segments = [{"text": "a", "label": False}, {"text": "", "label": True}, {"text": "b", "label": True}]
    assert make({"segments": segments}).segments == (("a", False), ("b", True))
    assert make({"text": " x "}).text == " x "


QUESTION = turns(("user", "q"))
GOOD, BAD = turns(("assistant", "good")), turns(("assistant", "bad"))


@pytest.mark.parametrize(
    "values",
    [
        {"prompt": QUESTION, "chosen": GOOD, "rejected": BAD},
        {"prompt": QUESTION, "chosen": GOOD[0], "rejected": BAD[0]},
        {"prompt": QUESTION, "chosen": "good", "rejected": "bad"},
        {"prompt": "q", "chosen": GOOD, "rejected": BAD},
        {"prompt": "q", "chosen": QUESTION + GOOD, "rejected": QUESTION + BAD},
        {"chosen": QUESTION + GOOD, "rejected": json.dumps(QUESTION + BAD)},
        {"instruction": "q", "input": "", "chosen": "good", "rejected": "bad"},
        {"question": "q", "chosen": "good", "rejected": "bad"},
        {"input": "q", "chosen": "good", "rejected": "bad"},
        {
            "conversations": [{"from": "human", "value": "q"}],
            "chosen": {"from": "gpt", "value": "good"},
            "rejected": {"from": "gpt", "value": "bad"},
        },
    ],
)
def test_preferences_of_conversations(values: dict[str, Any]):
    found = make(values)
    assert list(found.chosen.messages) == QUESTION + GOOD
    assert list(found.rejected.messages) == QUESTION + BAD
    assert list(found.chosen.learned) == list(found.rejected.learned) == [False, True]


def test_preferences_of_texts():
    found = make({"prompt": "q: ", "chosen": "good", "rejected": "bad"})
    assert (found.chosen.segments, found.rejected.segments) == (
        (("q: ", False), ("good", True)),
        (("q: ", False), ("bad", True)),
    )
    found = make({"chosen": "H: q\n\nA: I am", "rejected": "H: q\n\nA: It is"})
    assert found.chosen.segments == (("H: q\n\nA:", False), (" I am", True))
    assert found.rejected.segments == (("H: q\n\nA:", False), (" It is", True))
    assert make({"chosen": "ab", "rejected": "ac"}).chosen.segments == (("ab", True),)


def test_what_is_asked_before_the_answers_is_never_learned():
    earlier = turns(("user", "q"), ("assistant", "a"), ("user", "r"))
    found = make({"chosen": earlier + GOOD, "rejected": earlier + BAD})
    assert list(found.chosen.learned) == [False, False, False, True]


def test_sources_and_targets():
    for values, columns in (
        ({"translation": {"en": "one", "de": "eins"}}, None),
        ({"document": "one", "summary": "eins"}, None),
        ({"translation": {"fr": "un", "de": "eins", "en": "one"}}, Columns(source="en", target="translation.de")),
    ):
        found = make(values, None, columns)
        assert (found.source, found.target) == ("one", "eins")


def test_texts_to_embed():
    assert make({"anchor": "a", "positive": "b"}).texts == ("a", "b")
    assert make({"query": "a", "positive": "b", "negative": ["c", "d"]}).texts == ("a", "b", "c", "d")
    values = {"anchor": "a", "positive": "b", "negative_1": "c", "negative_2": "d"}
    assert make(values).texts == ("a", "b", "c", "d")
    assert make({"x": "a", "y": "b", "z": "c"}, "embed").texts == ("a", "b", "c")
    assert make({"sentence1": "a", "sentence2": "b", "score": "0.5"}).score == 0.5


ASSISTANT = {"role": "assistant", "content": "a"}
BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"messages": None}, "has nothing in its column 'messages'"),
    ({"messages": []}, "has an empty list in its column 'messages'"),
    ({"messages": "hello"}, "has no list in its column 'messages': that is a text"),
    ({"messages": "[1"}, "its column 'messages' is not JSON"),
    ({"messages": ["x"]}, "has no object in message 1 of its column 'messages': that is a text"),
    ({"messages": [{"content": "x"}]}, "has no role in message 1"),
    ({"messages": [{"role": 3}]}, "has no text in the role of message 1"),
    ({"messages": [{"role": "usr", "content": "x"}]}, "has an unknown role in message 1 .*: did you mean 'user'?$"),
    ({"messages": [{"role": "user"}, ASSISTANT]}, "has no text in the content of message 1 .*: that is nothing"),
    ({"messages": [{"role": "user", "content": 3}]}, "has no text in the content of message 1 .*: that is a number"),
    ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "something else than text in .*: 'image'"),
    ({"messages": [{"role": "assistant", "content": " "}]}, "has an empty answer in message 1"),
    ({"messages": [{**ASSISTANT, "train": 1}]}, 'has a number as "train" in message 1'),
    ({"messages": [{**ASSISTANT, "weight": 0.5}]}, 'another "weight" than 0 and 1 in message 1'),
    ({"messages": QUESTION}, "has no message of the assistant: there is nothing to learn"),
    ({"messages": [ASSISTANT, {"role": "system", "content": ""}]}, "has a system message as message 2"),
    ({"messages": [*QUESTION, {"role": "tool", "content": ""}]}, "has the answer of a tool as message 2"),
    ({"messages": [{"role": "assistant", "tool_calls": [3]}]}, "has no object in a call in message 1"),
    ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "has no text in the name of a call in message 1"),
    ({"messages": [{**ASSISTANT, "tool_calls": [{"name": "f", "arguments": 3}]}]}, "no object in the arguments"),
    ({"messages": [ASSISTANT], "tools": "x"}, "has no list in its column 'tools'"),
    ({"messages": [ASSISTANT], "tools": [3]}, "has no object in its column 'tools'"),
    ({"messages": [ASSISTANT], "system": 3}, "has no text in its column 'system'"),
    ({"instruction": "", "output": "x"}, "has an empty text in its column 'instruction'"),
    ({"instruction": "x", "output": ""}, "has an empty text in its column 'output': fill it in, or leave"),
    ({"instruction": "x", "output": "x", "history": "x"}, "has no list in its column 'history'"),
    ({"instruction": "x", "output": "x", "history": [["q"]]}, "has 1 texts in turn 1 of its column 'history'"),
    ({"instruction": "x", "output": "x", "history": [["q", 1]]}, "has no text in turn 1 of its column 'history'"),
    ({"prompt": "x", "completion": ""}, "has an empty text in its column 'completion'"),
    ({"prompt": 3, "completion": "x"}, "has no text in its column 'prompt'"),
    ({"prompt": QUESTION, "completion": QUESTION}, "has no answer of the assistant at the end"),
    ({"prompt": QUESTION, "completion": 3}, "has no text and no messages in its column 'completion'"),
    ({"segments": [{"text": "x"}]}, "has neither true nor false as the label of segment 1"),
    ({"segments": [{"text": "x", "label": False}]}, "has no segment with the label true"),
    ({"segments": [{"text": 1, "label": True}]}, "has no text in segment 1"),
    ({"chosen": "x", "rejected": "x"}, "has the same answer twice"),
    ({"prompt": "p", "chosen": "x", "rejected": " "}, "has an empty answer"),
    ({"prompt": QUESTION, "chosen": "x", "rejected": " "}, "has an empty answer in its column 'rejected'"),
    ({"prompt": 3, "chosen": "x", "rejected": "y"}, "has no text and no messages in its column 'prompt'"),
    ({"chosen": GOOD, "rejected": QUESTION}, "has no answer of the assistant in its column 'rejected'"),
    ({"chosen": GOOD, "rejected": 3}, "has no text and no messages in its column 'rejected'"),
    ({"tokens": ["a"], "tags": ["O", "O"]}, "has 1 words in its column 'tokens' and 2 tags in its column 'tags'"),
    ({"tokens": [1], "tags": ["O"]}, "has no text in the list of its column 'tokens': that is a number"),
    ({"tokens": ["a"], "tags": [None]}, "has nothing in the list of its column 'tags'"),
    ({"tokens": ["a"], "tags": [True]}, "has true or false in the list of its column 'tags'"),
    ({"tokens": ["a"], "tags": [0.5]}, "has a number in the list of its column 'tags'"),
    ({"tokens": [], "tags": []}, "has an empty list in its column 'tokens'"),
    ({"text": "", "label": 1}, "has an empty text in its column 'text'"),
    ({"text": 3, "label": 1}, "has no text in its column 'text': that is a number"),
    ({"text": "x", "label": None}, "has nothing in its column 'label'"),
    ({"text": "x", "label": ""}, "has an empty text in its column 'label'"),
    ({"text": "x", "label": {}}, "has no label in its column 'label': that is an object"),
    ({"text": "x", "label": [[]]}, "has a list in the list of its column 'label'"),
    ({"anchor": "x", "positive": None}, "has nothing in its column 'positive'"),
    ({"anchor": "x", "positive": "y", "negative": []}, "has an empty list in its column 'negative'"),
    ({"anchor": "x", "positive": "y", "negative": 3}, "has no text in its column 'negative'"),
    ({"sentence1": "x", "sentence2": "y", "score": "high"}, "has no number in its column 'score': that is 'high'"),
    ({"sentence1": "x", "sentence2": "y", "score": float("nan")}, "has nan in its column 'score'"),
    ({"sentence1": "x", "sentence2": "y", "score": True}, "has no number in its column 'score': .* true or false"),
    ({"sentence1": "x", "sentence2": "y", "score": 10**400}, "has inf in its column 'score'"),
    ({"translation": {"en": "x"}}, "has 1 texts in its column 'translation'"),
    ({"translation": {"en": "x", "de": 1}}, "has no text in 'de' of its column 'translation'"),
    ({"translation": 3}, "has no object in its column 'translation'"),
    ({"source": "x", "target": ""}, "has an empty text in its column 'target'"),
    ({"text": 3}, "has no text in its column 'text'"),
]


@pytest.mark.parametrize(("values", "message"), BROKEN, ids=[message for _, message in BROKEN])
def test_what_is_broken_is_one_sentence_with_its_place(values: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message.replace("?$", r"\?$")) as error:
        make(values)
    said = str(error.value)
    assert said.startswith("a.jsonl, line 3")
    assert "\n" not in said
    assert said.endswith((".", "?"))
