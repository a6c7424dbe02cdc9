"""Command-line arguments from dataclasses: a field is an argument, and the string below it is its help."""

import argparse
import ast
import inspect
import re
import shutil
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar, cast, get_args, get_origin, get_type_hints

from typing_extensions import override

from anyformer.config import ModelConfig
from anyformer.errors import UserError, nearest
from anyformer.schema import NAMES, flag
from anyformer.terminal import write

T = TypeVar("T")

_POSITIONAL = object()
Positional = Annotated[T, _POSITIONAL]
"""A field that is given by its position instead of a flag."""

_TEXT = object()
Text = Annotated[T, _TEXT]
"""A field whose strings are text, not names of files: bytes that the locale can't decode are taken for UTF-8."""

_METAVARS = {int: "N", float: "X", Path: "FILE"}
_WIDTH, _USAGE_WIDTH = 100, 72


def parse(kind: type[T], argv: Sequence[str], command: str) -> T:
    """The options of a command.

    Args:
        kind: A dataclass, see `Parser.add_fields`. Its docstring is the help, and "Examples:" begins the end of it. The
            flags of each base class have a section of the help, titled by its docstring.

    Raises:
        UserError: An argument is missing, unknown (with the nearest valid one) or misshapen.
        SystemExit: With status 0, after ``--help``.
    """
    parser = Parser(command, kind.__doc__ or "")
    parser.add_fields(kind, [name for name, (_, hint) in _fields(kind).items() if _is_positional(hint)])
    for base in kind.__mro__[:-1]:
        flags = [name for name in inspect.get_annotations(base) if not _is_positional(_fields(kind)[name][1])]
        section = "options" if base is kind else (base.__doc__ or "").partition("\n")[0].rstrip(".").lower()
        parser.add_fields(kind, flags, section=section)
    return make(kind, parser.given(argv))


def without_vs(argv: Sequence[str]) -> list[str]:
    """The arguments without a `vs` between two models, as in ``gpt2 vs llama``; a file of that name is kept.

    An argument that has all three words, such as ``'gpt2 vs llama'``, becomes two, unless it may be a flag's value.
    """
    argv = [word for index, argument in enumerate(argv) for word in _around_vs(argument, argv[index - 1 : index])]
    between = range(1, len(argv) - 1)
    joined = {
        index
        for index in between
        if argv[index].lower() in ("vs", "vs.", "versus")
        and not argv[index - 1].startswith("-")
        and not argv[index + 1].startswith("-")
        and not Path(argv[index]).exists()
    }
    return [argument for index, argument in enumerate(argv) if index not in joined]


def _around_vs(argument: str, before: Sequence[str]) -> tuple[str, ...]:
    """The models on both sides of a `vs` in one argument, or the argument."""
    models = re.fullmatch(r"(\S+)\s+(?:vs\.?|versus)\s+(\S+)", argument, re.IGNORECASE)
    is_value = any(word.startswith("-") for word in before)
    return (argument,) if models is None or is_value or Path(argument).exists() else models.groups()


def make(kind: type[T], given: Mapping[str, Any]) -> T:
    """The dataclass with those of the values of `Parser.given` that are its fields."""
    return kind(**{name: given[name] for name in _fields(kind) if name in given})


def change_model(model: ModelConfig, given: Mapping[str, Any], command: str) -> ModelConfig:
    """The model with the fields that ``--model.FIELD`` sets; after ``--help-model`` lists them and exits."""
    if "help_model" in given:
        parser = Parser(command, "The fields of the model, with the values that they have unless they are changed.")
        parser.usage = f"{parser.prog} ... --model.FIELD VALUE"
        parser.add_fields(ModelConfig, section="model", prefix="model.", values=model)
        parser.print_help()
        raise SystemExit(0)
    return model.replace(**{n.removeprefix("model."): value for n, value in given.items() if n.startswith("model.")})


class Parser(argparse.ArgumentParser):
    """The arguments of a command. What is wrong with them is reported as `UserError`."""

    def __init__(self, command: str, description: str) -> None:
        width = min(shutil.get_terminal_size().columns, _WIDTH)
        text, _, examples = inspect.cleandoc(description).partition("\n\nExamples:\n")
        super().__init__(
            prog=f"anyformer {command}",
            description="\n\n".join(textwrap.fill(paragraph, width) for paragraph in text.split("\n\n")),
            epilog=f"examples:\n{textwrap.indent(textwrap.dedent(examples), '  ')}" if examples else None,
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=28, width=width),
            argument_default=argparse.SUPPRESS,
            allow_abbrev=False,
            add_help=False,
        )
        self._sections: dict[str, Any] = {name: self.add_argument_group(name) for name in ("arguments", "options")}

    def add_fields(
        self,
        kind: type[Any],
        names: Sequence[str] | None = None,
        *,
        section: str = "options",
        prefix: str = "",
        values: Any = None,
        hidden: bool = False,
    ) -> None:
        """Add an argument for each field of a dataclass.

        A field is a flag, unless it is `Positional`; ``Annotated[float, "P"]`` names its value in the help, and
        ``Annotated[Path, "-o"]`` has the short flag ``-o`` as well. The fields of a field that is a dataclass are flags
        like the others, in a section and with a prefix of its name.

        Args:
            names: The fields to add; None: all.
            section: The title of the section of the help.
            values: An instance whose values the help shows; None: the defaults.
            hidden: Leave them out of the help.
        """
        helps, known = {} if hidden else _helps(kind), _fields(kind)
        for name in known if names is None else names:
            field, hint = known[name]
            default = field.default if field.default_factory is MISSING else field.default_factory()
            value = getattr(values, name, default)
            part = next((option for option in (hint, *get_args(hint)) if is_dataclass(option)), None)
            if part is None:
                text = argparse.SUPPRESS if hidden else _with_default(helps.get(name, ""), value, bool(prefix))
                self._add(f"{prefix}{name}", hint, text, section, required=default is MISSING and not prefix)
            elif hidden or value is not None:
                full = f"{prefix}{name}"
                self.add_fields(cast("Any", part), section=full, prefix=f"{full}.", values=value, hidden=hidden)

    def add_model_flags(self) -> None:
        """Add ``--model.FIELD`` for each field of a `ModelConfig`, and ``--help-model`` to list them."""
        add = self._section("model").add_argument
        add("--model.FIELD", metavar="VALUE", help="Change a field, as --model.decoder-layers 6 does.")
        add("--help-model", action="store_true", help="List the fields and their values.")
        self.add_fields(ModelConfig, section="model", prefix="model.", hidden=True)

    def given(self, argv: Sequence[str]) -> dict[str, Any]:
        """The values that the arguments set, by name of the field, dotted for those of a model. Raises as `parse`."""
        self.usage = self._usage()
        self._section("options").add_argument("-h", "--help", action="help", help="Show this help.")
        space, unknown = self.parse_known_intermixed_args([_dashed(argument) for argument in argv])
        for argument in unknown:
            if not argument.startswith("-"):
                raise UserError(f"{argument!r} is one argument too many; usage: {self.usage}")
            option = argument.partition("=")[0]
            hint = nearest(option, [name for action in self._actions for name in action.option_strings])
            if not hint.startswith(("did you mean", "that is")):
                hint = f"{self.prog} --help lists them"
            raise UserError(f"{self.prog} has no option {option} ({hint}).")
        values = vars(space)
        return {name: tuple(cast("list[Any]", v)) if isinstance(v, list) else v for name, v in values.items()}

    @override
    def print_help(self, file: Any = None) -> None:
        write(self.format_help(), end="")

    @override
    def error(self, message: str) -> NoReturn:
        _, required, names = message.partition("arguments are required: ")
        if required:
            raise UserError(f"{names} must be given; usage: {self.usage}")
        option, _, reason = message.removeprefix("argument ").partition(": ")
        raise UserError(f"{option} {reason}.")

    def _section(self, title: str) -> Any:
        if title not in self._sections:
            self._sections[title] = self.add_argument_group(title)
        return self._sections[title]

    def _usage(self) -> str:
        arguments, options = (
            [_synopsis(action) for action in self._sections[title]._group_actions if action.help != argparse.SUPPRESS]
            for title in ("arguments", "options")
        )
        others = ["[options]"] if len(self._sections) > 2 else []
        usage = " ".join([self.prog, *arguments, *options, *others])
        needed = [option for option in options if not option.startswith("[")]
        return usage if len(usage) <= _USAGE_WIDTH else " ".join([self.prog, *arguments, *needed, "[options]"])

    def _add(self, name: str, annotated: Any, text: str, section: str, *, required: bool) -> None:
        hint, *notes = get_args(annotated) if get_origin(annotated) is Annotated else (annotated,)
        optional = type(None) in get_args(hint)
        kind = next(part for part in get_args(hint) if part is not type(None)) if optional else hint
        several = get_origin(kind) is tuple
        kind = get_args(kind)[0] if several else kind
        positional = _is_positional(annotated)
        how: dict[str, Any] = {"help": text if text is argparse.SUPPRESS else text.replace("%", "%%")}
        if kind is bool:
            head, dot, last = flag(name).removeprefix("--").rpartition(".")
            add, switch = self._section(section).add_argument, {"dest": name, "action": _Switch, "nargs": 0}
            both, opposite = optional or bool(dot), f"--{head}{dot}no-{last}"
            add(flag(name), *([opposite] if both else []), **switch, **how)
            if not both:
                add(opposite, **switch, help=argparse.SUPPRESS)
            return
        how["nargs"] = ("+" if required else "*") if several else "?" if positional and not required else None
        how["type"] = _as_text if _TEXT in notes else _converter(kind, optional)
        if positional:
            # argparse requires an argument of any number unless its default is given, if only as it is.
            how |= {"metavar": name.upper().removesuffix("S" if several else ""), "default": argparse.SUPPRESS}
            self._section("arguments").add_argument(name, **how)
        else:
            said = [note for note in notes if isinstance(note, str)]
            short = [note for note in said if note.startswith("-")]
            metavar = next((note for note in said if note not in short), None) or _metavar(name, kind)
            names = [flag(name), *short]
            self._section(section).add_argument(*names, dest=name, metavar=metavar, required=required, **how)


class _Switch(argparse.Action):
    """True, or False after a flag with "no-"."""

    @override
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, not (option_string or "").rpartition(".")[2].removeprefix("--").startswith("no-"))


def _synopsis(action: argparse.Action) -> str:
    """An argument in the usage line: MODEL, [PROMPT], [--top N]."""
    value = "" if action.nargs == 0 else f"{action.metavar}{' ...' if action.nargs in ('*', '+') else ''}"
    shown = " ".join([*action.option_strings[:1], *([value] if value else [])])
    required = action.required if action.option_strings else action.nargs not in ("?", "*")
    return shown if required else f"[{shown}]"


@cache
def _fields(kind: Any) -> dict[str, tuple[Any, Any]]:
    """The fields of a dataclass and their types."""
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: (field, hints[field.name]) for field in fields(kind)}


def _is_positional(hint: Any) -> bool:
    return _POSITIONAL in get_args(hint)


def _helps(kind: type[Any]) -> dict[str, str]:
    """The string below each field of a dataclass, in one line."""
    return {name: text for base in reversed(kind.__mro__[:-1]) for name, text in _own_helps(base).items()}


@cache
def _own_helps(kind: type[Any]) -> dict[str, str]:
    """Helps of the fields that are not inherited."""
    module = _syntax(inspect.getfile(kind))
    source = next(node for node in module.body if isinstance(node, ast.ClassDef) and node.name == kind.__name__)
    return {
        cast("ast.Name", field.target).id: " ".join(str(text.value.value).split())
        for field, text in pairwise(source.body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
    }


@cache
def _syntax(file: str) -> ast.Module:
    return ast.parse(Path(file).read_text(encoding="utf-8"))


def _as_text(argument: str) -> str:
    if argument is argparse.SUPPRESS:  # argparse knows it by its identity
        return argument
    return argument.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _converter(kind: Any, optional: bool) -> Callable[[str], Any]:
    """From an argument's text to a value of this type."""
    choices = {str(choice): choice for choice in get_args(kind)} if get_origin(kind) is Literal else None

    def convert(text: str) -> Any:
        if optional and text == "None":
            return None
        if choices is not None and text not in choices:
            raise argparse.ArgumentTypeError(f"can't be {text!r} ({nearest(text, choices)})")
        try:
            return kind(text) if choices is None else choices[text]
        except ValueError:
            raise argparse.ArgumentTypeError(f"wants {NAMES[kind]}, not {text!r}") from None

    return convert


def _metavar(name: str, kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "{" + ",".join(map(str, get_args(kind))) + "}"
    return _METAVARS.get(kind) or name.rpartition(".")[2].rpartition("_")[2].upper()


def _with_default(text: str, default: Any, shows_all: bool) -> str:
    """A help with the value that holds where none is given, unless it says so itself or there is nothing to say."""
    if default in (None, (), MISSING) or (default in (False, "") and not shows_all) or "default:" in text:
        return text
    shown = " ".join(map(str, cast("tuple[Any, ...]", default))) if isinstance(default, tuple) else str(default)
    shown = f"{default:g}" if isinstance(default, float) else shown.lower() if isinstance(default, bool) else shown
    return f"{text.removesuffix('.')} (default: {shown})." if text else f"default: {shown}"


def _dashed(argument: str) -> str:
    """A flag may be spelled with underscores, as its field is."""
    flag, equals, value = argument.partition("=")
    return f"{flag.replace('_', '-')}{equals}{value}" if flag.startswith("--") and " " not in flag else argument
