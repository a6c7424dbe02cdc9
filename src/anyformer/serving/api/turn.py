"""A turn of a conversation: what the model is shown, what it may answer, and the parts of its answers."""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

from anyformer.errors import quote
from anyformer.generation.config import GenerationConfig, GenerationOptions
from anyformer.serving.answers import FINISH
from anyformer.serving.errors import ApiError
from anyformer.serving.served_model import ServedModel
from anyformer.serving.tool_formats import Function, ToolFormat, Tools, format_of
from anyformer.serving.tool_parser import (
    FINAL,
    Arguments,
    CallBegin,
    ChannelParser,
    Parser,
    Part,
    Reasoning,
    Text,
    ToolParser,
)
from anyformer.serving.worker import Delta, Stream, merged


@dataclass
class Call:
    """A call of a tool."""

    id: str
    name: str
    arguments: str = ""
    """JSON."""

    def parsed(self) -> dict[str, Any] | None:
        """The arguments; None: they were cut off, or are no JSON object."""
        try:
            value: Any = json.loads(self.arguments or "{}")
        except (ValueError, RecursionError):
            return None
        return cast("dict[str, Any]", value) if isinstance(value, dict) else None


@dataclass(kw_only=True)
class Passage:
    """A text before, between or behind calls."""

    text: str = ""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A part of an answer.

    Attributes:
        item: The number of the item that it belongs to.
        begins: It is the first of that item.
    """

    item: int
    begins: bool
    part: Part


@dataclass(kw_only=True)
class Answer:
    """An answer as far as it is known: passages and calls in their order."""

    parser: Parser | None
    reasoning: str = ""
    """The model's thoughts before the answer."""
    items: list[Passage | Call] = field(default_factory=list[Passage | Call])
    finish: str | None = None
    """None: not yet; else stop, length or tool_calls."""

    @property
    def text(self) -> str:
        """All passages."""
        return "".join(item.text for item in self.items if isinstance(item, Passage))

    @property
    def calls(self) -> list[Call]:
        """All calls."""
        return [item for item in self.items if isinstance(item, Call)]

    def push(self, text: str, finish: str | None) -> list[Step]:
        """Add a piece of the model's text."""
        if self.parser is None:
            parts: list[Part] = [Text(text)] if text else []
        else:
            parts = self.parser.push(text)
            if finish is not None:
                parts += self.parser.flush()
        steps = [self._add(part) for part in parts]
        self.finish = "tool_calls" if finish == "stop" and self.calls and not self.is_cut else finish
        return steps

    @property
    def is_cut(self) -> bool:
        """Whether it ended within a call."""
        latest = self.items[-1] if self.items else None
        return isinstance(latest, Call) and latest.parsed() is None

    def _add(self, part: Part) -> Step:
        latest = self.items[-1] if self.items else None
        if isinstance(part, Reasoning):
            self.reasoning += part.text
            return Step(item=len(self.items) - 1, begins=False, part=part)
        begins = isinstance(part, CallBegin) or (isinstance(part, Text) and not isinstance(latest, Passage))
        if begins:
            latest = Call(part.id, part.name) if isinstance(part, CallBegin) else Passage()
            self.items.append(latest)
        if isinstance(latest, Passage) and isinstance(part, Text):
            latest.text += part.text
        elif isinstance(latest, Call) and isinstance(part, Arguments):
            latest.arguments += part.text
        return Step(item=len(self.items) - 1, begins=begins, part=part)


@dataclass(kw_only=True)
class Turn:
    """A turn of a conversation.

    Attributes:
        functions: The tools of the request.
        choice: Whether one is called: none, auto or required.
        only: The one that has to be called.
        parallel: Whether several may be called.
        rules: Lark rules of its answer; None: any text.
        prefix_ids: Token ids that the answer begins with; None: it begins anew.

    Raises:
        ApiError: tools beside a grammar, a choice without tools or of none of them, or a model that can't be shown
            tools.
    """

    served: ServedModel
    messages: Sequence[Mapping[str, Any]]
    functions: Sequence[Function]
    choice: str
    only: str | None
    parallel: bool
    rules: str | None
    rules_param: str
    prefix_ids: Sequence[int] | None = None
    ids: list[int] = field(default_factory=list[int])
    streams: list[Stream] = field(default_factory=list[Stream])
    answers: list[Answer] = field(default_factory=list[Answer])

    def __post_init__(self) -> None:
        self.tools = self._tools()

    def _tools(self) -> Tools | None:
        """The tools that may be called; None: there are none."""
        names, required = [function.name for function in self.functions], self.choice == "required"
        if required and not names:
            raise ApiError(400, "tool_choice wants a call, and there are no tools.", "tool_choice")
        if not names or self.choice == "none":
            return None
        if self.rules is not None:
            raise ApiError(
                400, "An answer can't be both a call of a tool and of a given form: set tool_choice none.", "tools"
            )
        form = format_of(self.served.require_tokenizer().chat_template)
        if form is None:
            raise ApiError(
                400,
                f"The chat template of {self.served.name} has no tools, or in a form that this server doesn't read: "
                "leave out tools, or set tool_choice none.",
                "tools",
            )
        if len(set(names)) < len(names):
            raise ApiError(400, "Two tools have the same name.", "tools")
        if self.only is not None and self.only not in names:
            raise ApiError(400, f"There is no tool {quote(self.only)} among tools.", "tool_choice")
        return Tools(functions=self.functions, form=form, required=required, only=self.only, parallel=self.parallel)

    async def begin(
        self, options: GenerationOptions, count: int = 1, most: int | None = None, logprobs: int | None = None
    ) -> None:
        """Check everything, and submit the texts, sampled as the model's settings recommend where options don't say.

        Args:
            most: New tokens of each; None: as many as there is room for.
            logprobs: As for `BatchingEngine.submit`.

        Raises:
            ApiError: the template refuses the messages, or something can't be enforced.
        """
        served, tools = self.served, self.tools
        await self.encode()
        constrain = None
        if tools is not None and tools.is_enforced:
            constrain = await served.compile(lambda: tools.rules(served.grammars), self.ids, "tools")
        elif self.rules is not None:
            constrain = await served.compile(self._within_channel, self.ids, self.rules_param)
        if constrain is not None and not options.get("stop_at_eos", True):
            raise ApiError(400, "ignore_eos goes on behind the end that a grammar sets: leave it out.", "ignore_eos")
        if constrain is not None and self.prefix_ids is not None:
            raise ApiError(400, "A grammar begins with the answer: leave out prefix_ids.", "prefix_ids")
        form, text = self.form, served.token_text
        assert text is not None
        self._hides = form is None or all(token is None for _, token in text.split_special(form.written))
        room = served.room(self.ids, "messages")
        options["max_new_tokens"] = min(most or room, room)
        config = GenerationConfig.for_chat(served.model, **options)
        self.streams = await served.submit(
            self.ids,
            config,
            count,
            logprobs=logprobs,
            also_eos=served.require_tokenizer().eos if config.stop_at_eos else None,
            constrain=constrain,
            skip_special=self._hides,
        )
        self.answers = [Answer(parser=self._parser()) for _ in self.streams]

    async def encode(self) -> None:
        """Write the conversation in the words of the chat template."""
        shown = None if self.tools is None else [function.described for function in self.tools.functions]
        self.ids = self.served.with_prefix(await self.served.encode_chat(self.messages, shown), self.prefix_ids)

    @cached_property
    def form(self) -> ToolFormat | None:
        """The form of the answer; None: it is text as it is written."""
        if self.tools is not None:
            return self.tools.form
        form = format_of(self.served.require_tokenizer().chat_template)
        return form if form is not None and form.channels else None

    def _within_channel(self) -> str:
        """The rules of an answer that begins with the header of its last message, where it is made of messages."""
        rules = self.rules or ""
        if self.form is None:
            return rules
        return f"text: {self.served.grammars.literal(FINAL)} answer\n{rules.replace('text:', 'answer:', 1)}"

    def _parser(self) -> Parser | None:
        if self.form is None:
            return None
        functions = () if self.tools is None else self.tools.functions
        schemas = {function.name: function.parameters or {} for function in functions}
        if not self.form.channels:
            return ToolParser(self.form, schemas)
        parser = ChannelParser(schemas)
        if self.prefix_ids is not None:
            parser.push(self.served.require_tokenizer().decode(self.prefix_ids, skip_special=False))
        return parser

    async def steps(self) -> AsyncIterator[tuple[int, Delta, list[Step]]]:
        """The parts of the answers as they come, with the number of the answer."""
        async for number, delta in merged(self.streams):
            yield number, delta, self._push(number, delta)

    async def whole(self) -> list[Delta]:
        """Wait for the answers."""
        deltas = list[Delta]()
        for number, stream in enumerate(self.streams):
            deltas.append(await stream.whole())
            self._push(number, deltas[-1])
        return deltas

    def _push(self, number: int, delta: Delta) -> list[Step]:
        text = delta.text
        if not self._hides and self.form is not None and self.served.token_text is not None:
            text = self.served.token_text.without_special(text, self.form.written)
        return self.answers[number].push(text, None if delta.finish is None else FINISH[delta.finish])


def assistant_message(text: str, calls: Sequence[Call], param: str, reasoning: str | None = None) -> dict[str, Any]:
    """An assistant's message as chat templates read it: arguments are objects.

    Raises:
        ApiError: arguments are no JSON object.
    """
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if reasoning:
        # gpt-oss' template takes its own name for it, and refuses both reasoning and text before a call.
        message |= {"reasoning_content": reasoning} | ({} if text else {"thinking": reasoning})
    if calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": _arguments(call, param)}}
            for call in calls
        ]
    return message


def _arguments(call: Call, param: str) -> dict[str, Any]:
    arguments = call.parsed()
    if arguments is None:
        raise ApiError(400, f"The arguments of the call {quote(call.id)} are no JSON object.", param)
    return arguments


def tool_message(names: Mapping[str, str], call_id: str, content: str, param: str) -> dict[str, Any]:
    """The result of a call as chat templates read it; `names` are the functions of the calls before it, by id.

    Raises:
        ApiError: there was no such call.
    """
    name = names.get(call_id)
    if name is None:
        raise ApiError(400, f"There is no call {quote(call_id)} before its result.", param)
    return {"role": "tool", "name": name, "tool_call_id": call_id, "content": content}
