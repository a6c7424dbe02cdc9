"""Command-line arguments from dataclasses: a field is an argument, and the string below it is its help."""

from __future__ import annotations

import argparse
import ast
import inspect
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar, cast, get_args, get_origin, get_type_hints

from typing_extensions import override

from anyformer.config import ModelConfig
from anyformer.errors import UserError, nearest

T = TypeVar("T")

_POSITIONAL = object()
Positional = Annotated[T, _POSITIONAL]
"""A field that is given by its position instead of a flag."""

_METAVARS = {int: "N", float: "X", Path: "FILE"}
_NUMBERS = {int: "a whole number", float: "a number"}
_WIDTH, _USAGE_WIDTH = 100, 72


def parse(kind: type[T], argv: Sequence[str], command: str) -> T:
    """The options of a command.

    Args:
        kind: A dataclass, see `Parser`.
        argv: The arguments after the command.
        command: Its name.

    Raises:
        UserError: An argument is missing, unknown (with the nearest valid one) or misshapen.
        SystemExit: With status 0, after ``--help``.
    """
    return make(kind, Parser(command, kind).given(argv))


def make(kind: type[T], given: Mapping[str, Any]) -> T:
    """The dataclass with the values of `Parser.given`."""
    values: dict[str, Any] = {}
    for name, hint, _ in _fields(kind):
        if is_dataclass(hint):
            values[name] = make(cast("type[Any]", hint), given)
        elif name in given:
            values[name] = given[name]
    return kind(**values)


def change_model(model: ModelConfig, given: Mapping[str, Any], command: str) -> ModelConfig:
    """The model with the fields that ``--model.FIELD`` sets; after ``--help-model`` lists them and exits."""
    if "help_model" in given:
        print(Parser(command, ModelConfig, model).format_help().partition("\n\n")[2], end="")
        raise SystemExit(0)
    changes: dict[str, Any] = {}
    for name, value in given.items():
        _, *parts = name.split(".")
        if parts:
            place = changes
            for part in parts[:-1]:
                place = place.setdefault(part, {})
            place[parts[-1]] = value
    return model.replace(**changes)


class Parser(argparse.ArgumentParser):
    """The arguments of a command. What is wrong with them is reported as `UserError`.

    Args:
        command: Its name.
        kind: A dataclass whose docstring is the help; "Examples:" begins the end of it. The fields are flags, unless
            they are `Positional`, and ``Annotated[float, "P"]`` names a value. A field whose type is a dataclass is a
            section of the help, with the first line of its docstring as the title.
        model: To describe the fields of a model instead.
    """

    def __init__(self, command: str, kind: type[Any], model: ModelConfig | None = None) -> None:
        width = min(shutil.get_terminal_size().columns, _WIDTH)
        text, _, examples = inspect.cleandoc(kind.__doc__ or "").partition("\n\nExamples:\n")
        super().__init__(
            prog=f"anyformer {command}",
            description="\n\n".join(textwrap.fill(paragraph, width) for paragraph in text.split("\n\n")),
            epilog=f"examples:\n{textwrap.indent(textwrap.dedent(examples), '  ')}",
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=28, width=width),
            argument_default=argparse.SUPPRESS,
            allow_abbrev=False,
            add_help=False,
        )
        self._sections: dict[str, Any] = {name: self.add_argument_group(name) for name in ("arguments", "options")}
        self._usages: dict[str, list[str]] = {name: [] for name in self._sections}
        if model is None:
            self.add_fields(kind)
        else:
            self._add_model_fields(model)

    def add_fields(self, kind: type[Any], sections: Mapping[str, Sequence[str]] | None = None) -> None:
        """Add an argument for each field of a dataclass.

        Args:
            kind: The dataclass.
            sections: The names of the fields to add, by the title of the section that they are shown in; None: all
                of them, as "options".
        """
        helps, known = _helps(kind), {name: (hint, default) for name, hint, default in _fields(kind)}
        for title, names in (sections or {"options": list(known)}).items():
            for name in names:
                hint, default = known[name]
                if is_dataclass(hint):
                    part = inspect.cleandoc(hint.__doc__ or "").partition("\n")[0].rstrip(".").lower()
                    self.add_fields(cast("type[Any]", hint), {part: [field for field, _, _ in _fields(hint)]})
                    continue
                text = _with_default(helps.get(name, ""), None if default in (MISSING, False, "") else default)
                self._add(name, hint, text, title, required=default is MISSING)

    def add_model_flags(self) -> None:
        """Add ``--model.FIELD`` for each field of a `ModelConfig`, and ``--help-model`` to list them."""
        section = self._section("model")
        section.add_argument("--model.FIELD", metavar="VALUE", help="Change a field, as --model.decoder-layers 6 does.")
        section.add_argument("--help-model", action="store_true", help="List the fields and their values.")
        for name, hint, _, _ in _model_fields(ModelConfig, None, "model."):
            self._add(name, hint, argparse.SUPPRESS, "model")

    def _add_model_fields(self, model: ModelConfig) -> None:
        self.description = "The fields of the model, with the values that they have unless they are changed."
        for name, hint, value, text in _model_fields(ModelConfig, model, "model."):
            title = name.rpartition(".")[0].replace("_", "-")
            self._add(name, hint, _with_default(text, value), title)

    def given(self, argv: Sequence[str]) -> dict[str, Any]:
        """The values that the arguments set, by name of the field, dotted for those of a model. Raises as `parse`."""
        self._section("options").add_argument("-h", "--help", action="help", help="Show this help.")
        self.usage = self._usage()
        space, unknown = self.parse_known_intermixed_args([_dashed(argument) for argument in argv])
        for argument in unknown:
            if not argument.startswith("-"):
                raise UserError(f"{argument!r} is one argument too many; usage: {self.usage}")
            flag = argument.partition("=")[0]
            hint = nearest(flag, [name for action in self._actions for name in action.option_strings])
            if not hint.startswith("did you mean"):
                hint = f"{self.prog} --help lists them"
            raise UserError(f"{self.prog} has no option {flag} ({hint}).")
        values = vars(space)
        return {name: tuple(cast("list[Any]", v)) if isinstance(v, list) else v for name, v in values.items()}

    @override
    def error(self, message: str) -> NoReturn:
        _, required, names = message.partition("arguments are required: ")
        if required:
            raise UserError(f"{names} must be given; usage: {self.usage}")
        flag, _, reason = message.removeprefix("argument ").partition(": ")
        raise UserError(f"{flag} {reason}.")

    def _section(self, title: str) -> Any:
        if title not in self._sections:
            self._sections[title] = self.add_argument_group(title)
        return self._sections[title]

    def _usage(self) -> str:
        options = self._usages["options"]
        needed = [option for option in options if not option.startswith("[")]
        sections = ["[options]"] if len(self._sections) > len(self._usages) else []
        begin = " ".join([self.prog, *self._usages["arguments"]])
        usage = " ".join([begin, *options, *sections])
        return usage if len(usage) <= _USAGE_WIDTH else " ".join([begin, *needed, "[options]"])

    def _add(self, name: str, annotated: Any, text: str, section: str, *, required: bool = False) -> None:
        hint, *notes = get_args(annotated) if get_origin(annotated) is Annotated else (annotated,)
        optional = type(None) in get_args(hint)
        kind = next(part for part in get_args(hint) if part is not type(None)) if optional else hint
        several = get_origin(kind) is tuple
        kind = get_args(kind)[0] if several else kind
        text = text if text is argparse.SUPPRESS else text.replace("%", "%%")
        flag = f"--{name.replace('_', '-')}"
        if _POSITIONAL in notes:
            label = name.upper().removesuffix("S" if several else "")
            count: Any = ("+" if required else "*") if several else None if required else "?"
            convert = _converter(kind, optional)
            # Said twice: argparse takes an argument of any number for required if its default isn't given.
            self._section("arguments").add_argument(
                name, nargs=count, metavar=label, help=text, type=convert, default=argparse.SUPPRESS
            )
            usage = f"{label}{' ...' if several else ''}"
            self._usages["arguments"].append(usage if required else f"[{usage}]")
            return
        if kind is bool:
            head, dot, last = flag.removeprefix("--").rpartition(".")
            opposite = f"--{head}{dot}no-{last}"
            add, both = self._section(section).add_argument, optional or "." in name
            add(flag, *([opposite] if both else []), dest=name, action=_Switch, nargs=0, help=text)
            if not both:
                add(opposite, dest=name, action=_Switch, nargs=0, help=argparse.SUPPRESS)
        else:
            label = next((note for note in notes if isinstance(note, str)), None) or _metavar(name, kind)
            count = ("+" if required else "*") if several else None
            self._section(section).add_argument(
                flag,
                dest=name,
                nargs=count,
                metavar=label,
                required=required,
                help=text,
                type=_converter(kind, optional),
            )
            flag += f" {label}{' ...' if several else ''}"
        if section == "options":
            self._usages["options"].append(flag if required else f"[{flag}]")


class _Switch(argparse.Action):
    """True, or False after a flag with "no-"."""

    @override
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, not (option_string or "").rpartition(".")[2].removeprefix("--").startswith("no-"))


def _fields(kind: Any) -> list[tuple[str, Any, Any]]:
    """Name, type and default of each field; `MISSING` where there is no default."""
    hints, found = get_type_hints(kind, include_extras=True), list[tuple[str, Any, Any]]()
    for field in fields(kind):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        found.append((field.name, hints[field.name], default))
    return found


def _model_fields(kind: Any, config: Any, prefix: str) -> Iterator[tuple[str, Any, Any, str]]:
    """Dotted name, type, value and help of the fields of a config and of its parts, those that it has."""
    helps = _helps(kind)
    for name, hint, default in _fields(kind):
        part = next((option for option in (hint, *get_args(hint)) if is_dataclass(option)), None)
        value = default if config is None else getattr(config, name)
        if part is None:
            yield f"{prefix}{name}", hint, value, helps.get(name, "")
        elif config is None or value is not None:
            yield from _model_fields(part, config and value, f"{prefix}{name}.")


def _helps(kind: type[Any]) -> dict[str, str]:
    """The string below each field of a dataclass, in one line."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):
        (source,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        for field, text in pairwise(cast("ast.ClassDef", source).body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                found[cast("ast.Name", field.target).id] = " ".join(str(text.value.value).split())
    return found


def _converter(kind: Any, optional: bool) -> Any:
    """From an argument's text to a value of this type."""
    choices = {str(choice): choice for choice in get_args(kind)} if get_origin(kind) is Literal else None

    def convert(text: str) -> Any:
        if optional and text == "None":
            return None
        if choices is not None:
            if text not in choices:
                raise argparse.ArgumentTypeError(f"can't be {text!r} ({nearest(text, choices)})")
            return choices[text]
        try:
            return kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"wants {_NUMBERS[kind]}, not {text!r}") from None

    return convert


def _metavar(name: str, kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "{" + ",".join(map(str, get_args(kind))) + "}"
    return _METAVARS.get(kind) or name.rpartition(".")[2].rpartition("_")[2].upper()


def _with_default(text: str, default: Any) -> str:
    """A help with the value that holds where none is given, unless it says so itself or there is nothing to say."""
    if default is None or default == () or "default:" in text:
        return text
    shown = " ".join(map(str, cast("tuple[Any, ...]", default))) if isinstance(default, tuple) else str(default)
    shown = f"{default:g}" if isinstance(default, float) else shown.lower() if isinstance(default, bool) else shown
    return f"{text.removesuffix('.')} (default: {shown})." if text else f"default: {shown}"


def _dashed(argument: str) -> str:
    """A flag may be spelled with underscores, as its field is."""
    flag, equals, value = argument.partition("=")
    return f"{flag.replace('_', '-')}{equals}{value}" if flag.startswith("--") and " " not in flag else argument
