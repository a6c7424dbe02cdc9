"""The assistant's answers in conversations."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from anyformer.data.examples import ChatExample, CompletionExample, Message
from anyformer.data.examples.chat import added_system_prompt, encode_chat_rows, generation_mismatch
from anyformer.data.examples.columns import COMPLETION, CONVERSATION, SYSTEM
from anyformer.data.examples.messages import conversation, read_messages, text_or_messages
from anyformer.data.examples.parts import Parts, as_list, as_text, fault, from_json
from anyformer.errors import UserError, quote
from anyformer.evaluation.answers import evaluate_answers
from anyformer.tasks.completion import causal_dataset
from anyformer.tasks.task import Encoded, EncodedText, Encoding, Shape, Task, decoders_only

TEMPLATES_CHECKED = 50
"""Conversations whose prompts are compared with those of generation."""


def _chat(parts: Parts) -> ChatExample:
    place = f"its column {quote(parts.column('messages'))}"
    messages, learned = read_messages(parts.value("messages"), parts.location, place)
    return conversation(parts, messages, learned)


def _alpaca(parts: Parts) -> ChatExample:
    messages, learned = list[Message](), list[bool]()

    def say(question: str, answer: str) -> None:
        messages.extend(({"role": "user", "content": question}, {"role": "assistant", "content": answer}))
        learned.extend((False, True))

    if parts.has("history"):
        place = f"its column {quote(parts.column('history'))}"
        history = from_json(parts.get("history"), parts.location, place)
        for number, turn in enumerate(as_list(history, parts.location, place) if history != [] else [], start=1):
            own = f"turn {number} of {place}"
            both = as_list(turn, parts.location, own)
            if len(both) != 2:
                raise fault(parts.location, f"has {len(both)} texts in {own}", "a turn is a question and its answer")
            say(as_text(both[0], parts.location, own), as_text(both[1], parts.location, own))
    more = parts.text("input", empty=True)
    instruction = parts.text("instruction", empty=bool(more.strip()))
    say("\n".join(filter(None, (instruction, more))), parts.text("output"))
    return conversation(parts, messages, learned)


def _conversation(parts: Parts) -> ChatExample:
    """A prompt and its completion as messages."""
    messages, learned = list[Message](), list[bool]()
    for part, role in (("prompt", "user"), ("completion", "assistant")):
        place = f"its column {quote(parts.column(part))}"
        found = text_or_messages(parts.value(part), parts.location, place)
        if isinstance(found, str):
            messages.append({"role": role, "content": as_text(found, parts.location, place)})
            learned.append(role == "assistant")
        else:
            messages += found[0]
            learned += found[1] if part == "completion" else [False] * len(found[0])
    if not any(message["role"] == "assistant" for message in messages[-1:]):
        raise fault(
            parts.location, f"has no answer of the assistant at the end of its column {quote(parts.column(part))}"
        )
    return conversation(parts, messages, learned)


def add_system(example: ChatExample | CompletionExample, text: str) -> tuple[ChatExample, int]:
    """Put a system message into a conversation that has none. Raises UserError where there is no conversation."""
    if not isinstance(example, ChatExample):
        raise UserError(f"--system is for conversations, and {example.location}, is a text: leave it out.")
    if example.messages[0]["role"] == "system":
        return example, 0
    messages = [{"role": "system", "content": text}, *example.messages]
    return replace(example, messages=messages, loss_mask=[False, *example.loss_mask]), 1


def _encode(encoding: Encoding, examples: Sequence[ChatExample]) -> list[Encoded]:
    tokenizer = encoding.tokenizer
    added = added_system_prompt(tokenizer)
    found = list[Encoded]()
    for number, example in enumerate(examples):
        rows = encode_chat_rows(tokenizer, example, learn_all=encoding.learn_all)
        found.append(
            Encoded(
                example=example,
                texts=[EncodedText.of(row, encoding.context) for row in rows],
                mismatch=generation_mismatch(tokenizer, example, rows) if number < TEMPLATES_CHECKED else None,
                system_prompt=None if example.messages[0]["role"] == "system" else added,
            )
        )
    return found


def _commands(config: Any, example: ChatExample, evaluate: str) -> list[tuple[str, str]]:
    return [(TASK.name, "" if config.system is None else f"--system {shlex.quote(config.system)}")]


TASK = Task(
    name="chat",
    learns="the assistant's answers in conversations",
    example=ChatExample,
    shapes=[
        Shape(build=_chat, required={"messages": CONVERSATION}, optional=SYSTEM, rank=2),
        Shape(
            build=_alpaca,
            required={"instruction": ("instruction",), "output": ("output", "response")},
            optional={"input": ("input", "context"), "history": ("history",), **SYSTEM},
            rank=4,
        ),
        Shape(build=_conversation, required=COMPLETION, optional=SYSTEM, rank=6),
    ],
    add_system=add_system,
    refusal=decoders_only("chat"),
    encode=_encode,
    dataset=causal_dataset,
    settings=("packing", "system", "train_on"),
    generates=True,
    evaluate=evaluate_answers,
    commands=_commands,
)
