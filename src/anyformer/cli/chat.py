"""`anyformer chat MODEL`: talk with a model in the terminal."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from contextlib import closing, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from anyformer import atomic
from anyformer.cli.generate import SamplingOptions, generation_options
from anyformer.cli.options import ModelOptions, Text, parse
from anyformer.console import Console
from anyformer.errors import UserError, nearest
from anyformer.terminal import last_signal, output_is_terminal, write

if TYPE_CHECKING:
    from anyformer.generation import Conversation
    from anyformer.model import Transformer

_HELP = """\
/reset          forget the conversation
/system TEXT    tell the model how to behave, from here on; without TEXT: show it
/save FILE      write the conversation to a JSON file
/help           this list
/quit           leave, as Ctrl-D does
Ctrl-C stops an answer. A line that begins with a space is never a command."""

_NO_SYSTEM = "(no system message but the template's own, if it has one)"


@dataclass(frozen=True, kw_only=True)
class ChatOptions(SamplingOptions, ModelOptions):
    """Talk with a model, in the words of its own chat template.

    Ctrl-C stops an answer; at the prompt, Ctrl-D leaves. Questions can also be piped in, one a line. Sampling is the
    model's own where flags don't say otherwise.

    Examples:
        anyformer chat HuggingFaceTB/SmolLM2-135M-Instruct --quantize int4
        anyformer chat runs/llama-nano-1 --system "Answer in one sentence." --temperature 0
    """

    system: Text[str | None] = None
    """Behavior of the model, in words (default: what its template says)."""
    stop: Annotated[Text[tuple[str, ...]], "STRING"] = ()
    """Strings that end an answer, and are no part of it."""
    max_new_tokens: int = 1024
    """Stop an answer after this many tokens."""


def run(argv: list[str]) -> int:
    """Load the model and talk."""
    options = parse(ChatOptions, argv, "chat")

    from anyformer.generation import Conversation

    model, tokenizer = options.load_model()
    terminal = Terminal(Conversation(model, tokenizer, options.system, **generation_options(options)))
    terminal.greet(options.model, model)
    return terminal.talk()


class Terminal:
    """A chat with the user: questions, answers and commands.

    Answers go to standard output; everything else to standard error, so that a pipe gets answers alone. Where standard
    input is no terminal, each of its lines is a question or a command, and a mistake ends the chat.
    """

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation
        self._notes = Console(stderr=True)
        self._is_interactive, self._shows = sys.stdin.isatty(), output_is_terminal()
        self._saved: set[Path] = set()
        if self._is_interactive:
            with suppress(ImportError):
                import_module("readline")  # gives input() its editing and its history, where there is one
        elif isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")

    def greet(self, name: str, model: Transformer) -> None:
        """Say who is there, and what the user should know of a model that wasn't tuned for chat."""
        if self._is_interactive:
            from anyformer.quantization import parameter_count

            context = self._conversation.context
            shown = "a context without end" if context is None else f"a context of {context:,} tokens"
            size = f"{parameter_count(model) / 1e6:,.1f}M parameters"
            self._note(f"{Path(name).name}  {model.config.model_type}, {size}, {shown}", style="bold")
        if not self._conversation.has_template:
            self._note(
                "This model has no chat template, so it is probably a base model: it continues text and was not tuned "
                'to answer. It is shown plain lines, "User: ..." and "Assistant: ...".',
                style="yellow",
            )
        if self._is_interactive:
            self._note("/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves.\n")

    def talk(self) -> int:
        """Question and answer until the user leaves; returns the exit status."""
        while (line := self._question()) is not None:
            try:
                if line.startswith("/"):
                    if not self._obey(line):
                        break
                elif line.strip():
                    self._answer(line.strip())
            except UserError as error:
                if not self._is_interactive:
                    raise
                self._note(f"{error}\n", style="red")
            except KeyboardInterrupt:
                last_signal()
                self._note("(stopped)\n")
        return 0

    def _question(self) -> str | None:
        """The user's next line, None when there are no more."""
        if not self._is_interactive:
            line = sys.stdin.readline()
            return line.rstrip("\r\n") if line else None
        # The line editor counts what is between \001 and \002 as no width.
        colored = self._shows and "NO_COLOR" not in os.environ
        prompt, interrupted = "\001\033[1;32m\002>\001\033[0m\002 " if colored else "> ", False
        while True:
            try:
                return input(prompt)
            except EOFError:
                write()
                return None
            except KeyboardInterrupt:
                last_signal()
                write()
                if interrupted:
                    return None
                interrupted = True
                self._note("Once more, or Ctrl-D, leaves.")

    def _answer(self, question: str) -> None:
        forgotten = self._conversation.forgotten
        try:
            with closing(self._conversation.answer(question)) as pieces:
                for piece in pieces:
                    write(piece, end="", flush=True)
        finally:
            write(flush=True)
        if (lost := self._conversation.forgotten - forgotten) > 0:
            turns = "the oldest turn" if lost == 2 else f"the oldest {lost // 2} turns"
            self._note(f"(the context is full: {turns} had to be forgotten)")
        if self._conversation.unfinished:
            self._note("(stopped: the answer is as long as it may be)")
        if self._is_interactive:
            write(flush=True)

    def _note(self, text: str, style: str = "dim") -> None:
        self._notes.print(text, style=style, soft_wrap=not self._notes.is_terminal)

    def _obey(self, line: str) -> bool:
        """Execute a command; False to leave."""
        name, _, argument = line[1:].partition(" ")
        argument = argument.strip()
        match name:
            case "quit":
                return False
            case "reset":
                self._conversation.reset()
                self._note("(a new conversation)\n")
            case "system" if argument:
                self._conversation.system = argument
                self._note("(noted, from the next answer on)\n")
            case "system":
                system = self._conversation.system
                self._note(f"{_NO_SYSTEM if system is None else system}\n")
            case "save":
                self._save(argument)
            case "help":
                self._note(f"{_HELP}\n")
            case _:
                commands = re.findall("^/[a-z]+", _HELP, re.MULTILINE)
                raise UserError(f"There is no command /{name}: {nearest(f'/{name}', commands)}")
        return True

    def _save(self, name: str) -> None:
        if not name:
            raise UserError("/save wants a file to write to: /save chat.json")
        path = Path(name).expanduser()
        if path.exists() and path.absolute() not in self._saved:
            raise UserError(f"{path} exists already: save to another file.")
        atomic.write(path, json.dumps(self._conversation.messages, indent=2, ensure_ascii=False) + "\n")
        self._saved.add(path.absolute())
        self._note(f"({len(self._conversation.messages)} messages in {path})\n")
