"""The assistant's answers in conversations."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from anyformer.data.examples import ChatExample, CompletionExample, Message
from anyformer.data.examples.chat import added_system_prompt, encode_chat_rows, generation_mismatch
from anyformer.data.examples.columns import COMPLETION, CONVERSATION, SYSTEM
from anyformer.data.examples.messages import conversation, read_messages, text_or_messages
from anyformer.data.examples.parts import Parts, as_list, as_text, fault, from_json
from anyformer.errors import UserError
from anyformer.evaluation.answers import evaluate_answers
from anyformer.tasks.completion import causal_dataset
from anyformer.tasks.task import Encoded, EncodedText, Encoding, RowSchema, Task, decoders_only

TEMPLATES_CHECKED = 50
"""Conversations whose prompts are compared with those of generation."""


def _chat(parts: Parts) -> ChatExample:
    messages = read_messages(parts.value("messages"), parts.location, parts.place("messages"))
    return conversation(parts, *messages)


def _alpaca(parts: Parts) -> ChatExample:
    turns = list[tuple[str, str]]()
    if parts.has("history"):
        place = parts.place("history")
        history = from_json(parts.get("history"), parts.location, place)
        for number, turn in enumerate(as_list(history, parts.location, place) if history != [] else [], start=1):
            own = f"turn {number} of {place}"
            texts = as_list(turn, parts.location, own)
            if len(texts) != 2:
                raise fault(parts.location, f"has {len(texts)} texts in {own}", "a turn is a question and its answer")
            turns.append((as_text(texts[0], parts.location, own), as_text(texts[1], parts.location, own)))
    more = parts.text("input", empty=True)
    instruction = parts.text("instruction", empty=bool(more.strip()))
    turns.append(("\n".join(filter(None, (instruction, more))), parts.text("output")))
    messages: list[Message] = [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    return conversation(parts, messages, [False, True] * len(turns))


def _prompt_and_completion(parts: Parts) -> ChatExample:
    messages, loss_mask = list[Message](), list[bool]()
    for part, role in (("prompt", "user"), ("completion", "assistant")):
        value = text_or_messages(parts.value(part), parts.location, parts.place(part))
        if isinstance(value, str):
            value = [{"role": role, "content": parts.text(part)}], [True]
        messages += value[0]
        loss_mask += [part == "completion" and learned for learned in value[1]]
    if messages[-1]["role"] != "assistant":
        raise fault(parts.location, f"has no answer of the assistant at the end of {parts.place('completion')}")
    return conversation(parts, messages, loss_mask)


def add_system(example: ChatExample | CompletionExample, text: str) -> tuple[ChatExample, int]:
    """Put a system message into a conversation that has none. Raises UserError where there is no conversation."""
    if not isinstance(example, ChatExample):
        raise UserError(f"--system is for conversations, and {example.location}, is a text: leave it out.")
    if example.messages[0]["role"] == "system":
        return example, 0
    messages = [{"role": "system", "content": text}, *example.messages]
    return replace(example, messages=messages, loss_mask=[False, *example.loss_mask]), 1


def _encode(encoding: Encoding, examples: Sequence[ChatExample]) -> Iterator[Encoded]:
    tokenizer, added = encoding.tokenizer, added_system_prompt(encoding.tokenizer)
    for number, example in enumerate(examples):
        rows = encode_chat_rows(tokenizer, example, learn_all=encoding.learn_all)
        yield Encoded(
            example=example,
            texts=[EncodedText.of(row, encoding.context) for row in rows],
            mismatch=generation_mismatch(tokenizer, example, rows) if number < TEMPLATES_CHECKED else None,
            system_prompt=None if example.messages[0]["role"] == "system" else added,
        )


def _commands(config: Any, example: ChatExample, evaluate: str) -> list[tuple[str, str]]:
    return [(TASK.name, "" if config.system is None else f"--system {shlex.quote(config.system)}")]


TASK = Task(
    name="chat",
    learns="the assistant's answers in conversations",
    finetune="HuggingFaceTB/SmolLM2-135M-Instruct --data chats.jsonl --lora 16",
    example=ChatExample,
    schemas=[
        RowSchema(build=_chat, required={"messages": CONVERSATION}, optional=SYSTEM, rank=2),
        RowSchema(
            build=_alpaca,
            required={"instruction": ("instruction",), "output": ("output", "response")},
            optional={"input": ("input", "context"), "history": ("history",), **SYSTEM},
            rank=4,
        ),
        RowSchema(build=_prompt_and_completion, required=COMPLETION, optional=SYSTEM, rank=6),
    ],
    converses=lambda example: True,
    add_system=add_system,
    refusal=decoders_only("chat"),
    encode=_encode,
    dataset=causal_dataset,
    settings=("packing", "system", "train_on"),
    generates=True,
    evaluate=evaluate_answers,
    commands=_commands,
)
