"""Command-line arguments from dataclasses: a field is an argument, and the string below it is its help."""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import shutil
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, TypeVar, cast, get_args, get_origin

from typing_extensions import override

from anyformer.config import ModelConfig
from anyformer.errors import UserError, nearest, usual_name
from anyformer.schema import Rule, Section, as_type, flag, hints
from anyformer.terminal import write

if TYPE_CHECKING:
    from anyformer.model import Transformer
    from anyformer.tokenizer import Tokenizer

T = TypeVar("T")

_POSITIONAL = object()
Positional = Annotated[T, _POSITIONAL]
"""A field that is an argument by its position, without a flag."""

_TEXT = object()
Text = Annotated[T, _TEXT]
"""A field whose strings are text, not names of files: bytes that the locale can't decode are taken for UTF-8."""

AT_LEAST_1 = Rule(lambda number: number >= 1, "is at least 1")
"""``Annotated[int, AT_LEAST_1]`` is refused below that."""

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
    parser.add_fields(kind, [name for name, hint in hints(kind).items() if _POSITIONAL in get_args(hint)])
    for base in kind.__mro__[:-1]:
        title = "options" if base is kind else (base.__doc__ or "").partition("\n")[0].rstrip(".").lower()
        parser.add_fields(kind, inspect.get_annotations(base), section=title)
    return make(kind, parser.values(argv))


def flag_names(kind: type[Any]) -> list[str]:
    """The fields of a config of runs that are flags: those with a `Section`."""
    return [name for name, hint in hints(kind).items() if _section_of(hint) is not None]


def without_vs(argv: Sequence[str]) -> list[str]:
    """The arguments without a `vs` between two models, as in ``gpt2 vs llama``; a file of that name is kept.

    An argument that has all three words, such as ``'gpt2 vs llama'``, becomes two, unless it may be a flag's value.
    """
    words = list[str]()
    for before, argument in pairwise(["", *argv]):
        models = re.fullmatch(r"(\S+)\s+(?:vs\.?|versus)\s+(\S+)", argument, re.IGNORECASE)
        if models is None or before.startswith("-") or Path(argument).exists():
            words.append(argument)
        else:
            words += models.groups()

    def is_joint(index: int) -> bool:
        neighbors = words[index - 1 : index] + words[index + 1 : index + 2]
        is_between = len(neighbors) == 2 and not any(each.startswith("-") for each in neighbors)
        return is_between and words[index].lower() in ("vs", "vs.", "versus") and not Path(words[index]).exists()

    return [word for index, word in enumerate(words) if not is_joint(index)]


def make(kind: type[T], values: Mapping[str, Any]) -> T:
    """The dataclass with those of the values of `Parser.values` that are its fields."""
    return kind(**{name: values[name] for name in hints(kind) if name in values})


def change_model(model: ModelConfig, values: Mapping[str, Any], command: str) -> ModelConfig:
    """The model with the fields that ``--model.FIELD`` sets; after ``--help-model`` lists them and exits.

    The rate of ``--dropout``, or ``--model.dropout``, is that of all dropout that no field sets.
    """
    if "help_model" in values:
        parser = Parser(command, "The fields of the model, with the values that they have unless they are changed.")
        parser.usage = f"{parser.prog} ... --model.FIELD VALUE"
        parser.add_fields(ModelConfig, section="model", prefix="model.", values=model)
        parser.print_help()
        raise SystemExit(0)
    changes = {n.removeprefix("model."): value for n, value in values.items() if n.startswith("model.")}
    if (rate := changes.get("dropout")) is not None:
        from anyformer.families import rates_of_dropout  # for which --help doesn't wait

        changes = dict.fromkeys(rates_of_dropout(model, rate), rate) | changes
    return model.replace(**changes)


class Parser(argparse.ArgumentParser):
    """The arguments of a command. What is wrong with them is reported as `UserError`."""

    def __init__(self, command: str, description: str, examples: Sequence[str] = ()) -> None:
        width = min(shutil.get_terminal_size().columns, _WIDTH)
        text, _, more = inspect.cleandoc(description).partition("\n\nExamples:\n")
        lines = [
            *(f"  {example}" for example in examples),
            *(line.replace("    ", "  ", 1) for line in more.splitlines()),
        ]
        super().__init__(
            prog=f"anyformer {command}",
            description="\n\n".join(textwrap.fill(paragraph, width) for paragraph in text.split("\n\n")),
            epilog="\n".join(["examples:", *lines]) if lines else None,
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=28, width=width),
            argument_default=argparse.SUPPRESS,
            allow_abbrev=False,
            add_help=False,
        )
        self._sections: dict[str, Any] = {name: self.add_argument_group(name) for name in ("arguments", "options")}
        self._names = set[str]()
        self._helps: list[tuple[argparse.Action, Callable[[], str]]] = []

    def add_fields(
        self,
        kind: type[Any],
        names: Collection[str] | None = None,
        *,
        section: str | None = "options",
        prefix: str = "",
        values: Any = None,
        hidden: bool = False,
    ) -> None:
        """Add an argument for each field of a dataclass; one of that name which is there already stays.

        A field is a flag, unless it is `Positional`; ``Annotated[float, "P"]`` names its value in the help, and
        ``Annotated[Path, "-o"]`` has the short flag ``-o`` as well. The fields of a field that is a dataclass are flags
        like the others, in a section and with a prefix of its name.

        Args:
            names: The fields to add; None: all.
            section: The title of the section of the help for fields that have no `Section` of their own; None: they are
                no flags.
            values: An instance whose values the help shows; None: the defaults.
            hidden: Leave them out of the help.
        """
        for field in fields(kind):
            hint, full = hints(kind)[field.name], f"{prefix}{field.name}"
            title, is_left_out = _section_of(hint) or section, names is not None and field.name not in names
            if title is None or is_left_out or full in self._names:
                continue
            self._names.add(full)
            default = field.default if field.default_factory is MISSING else field.default_factory()
            value = getattr(values, field.name, default)
            parts = [each for each in (hint, *get_args(hint)) if isinstance(each, type) and is_dataclass(each)]
            if not parts:
                action = self._add(full, hint, title, required=default is MISSING and not prefix)
                if hidden:
                    action.help = argparse.SUPPRESS
                else:
                    self._helps.append((action, partial(_help, kind, field.name, value, bool(prefix))))
            elif hidden or value is not None:
                self.add_fields(parts[0], section=full, prefix=f"{full}.", values=value, hidden=hidden)

    def add_model_flags(self) -> None:
        """Add ``--model.FIELD`` for each field of a `ModelConfig`, and ``--help-model`` to list them."""
        add = self._section("model").add_argument
        add("--model.FIELD", metavar="VALUE", help="Change a field, as --model.decoder-layers 6 does.")
        rate = {"dest": "model.dropout", "metavar": "X", "type": partial(_converted, hints(ModelConfig)["dropout"])}
        add("--dropout", **rate, help="The rate of all dropout that --model.FIELD does not set.")
        add("--help-model", action="store_true", help="List the fields and their values.")
        self.add_fields(ModelConfig, section="model", prefix="model.", hidden=True)

    def values(self, argv: Sequence[str]) -> dict[str, Any]:
        """The values that the arguments set, by name of the field, dotted for those of a model. Raises as `parse`."""
        self.usage = self._usage()
        self._section("options").add_argument("-h", "--help", action="help", help="Show this help.")
        space, unknown = self.parse_known_intermixed_args([_dashed(argument) for argument in argv])
        if unknown and not unknown[0].startswith("-"):
            raise UserError(f"{unknown[0]!r} is one argument too many; usage: {self.usage}")
        if unknown:
            option = unknown[0].partition("=")[0]
            if position := self._position(option):
                raise UserError(f"{self.prog} takes {position} without {option}: {self.usage}.")
            hint = nearest(option, [name for action in self._actions for name in action.option_strings])
            if not hint.startswith(("did you mean", "that is")):
                hint = f"{self.prog} --help lists them"
            raise UserError(f"{self.prog} has no option {option} ({hint}).")
        values = vars(space)
        return {name: tuple(cast("list[Any]", v)) if isinstance(v, list) else v for name, v in values.items()}

    def _position(self, option: str) -> str | None:
        """The positional argument that an unknown option is meant for."""
        actions = [action for action in self._actions if not action.option_strings]
        places = {name: str(each.metavar) for each in actions for name in (each.dest, str(each.metavar).lower())}
        name = option.lstrip("-").lower()
        return next((places[each] for each in (name, *usual_name(option, [*places])) if each in places), None)

    @override
    def format_help(self) -> str:
        for action, text in self._helps:
            action.help = text().replace("%", "%%")
        return super().format_help()

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

    def _add(self, name: str, annotated: Any, section: str, *, required: bool) -> argparse.Action:
        """Add an argument; its help is read when it is shown, for that parses source files."""
        hint, *notes = get_args(annotated) if get_origin(annotated) is Annotated else (annotated,)
        kinds = [each for each in get_args(hint) if each is not type(None)] if type(None) in get_args(hint) else [hint]
        is_positional, several = _POSITIONAL in notes, get_origin(kinds[0]) is tuple
        kind = get_args(kinds[0])[0] if several else kinds[0]
        add = self._section("arguments" if is_positional else section).add_argument
        shared: dict[str, Any] = {}
        if kind is bool:
            head, dot, last = flag(name).removeprefix("--").rpartition(".")
            switch, opposite = {"dest": name, "action": _Switch, "nargs": 0}, f"--{head}{dot}no-{last}"
            shows_both = kind is not hint or bool(dot)
            action = add(flag(name), *([opposite] if shows_both else []), **switch)
            if not shows_both:
                add(opposite, **switch, help=argparse.SUPPRESS)
            return action
        shared["nargs"] = ("+" if required else "*") if several else "?" if is_positional and not required else None
        shared["type"] = _as_text if _TEXT in notes else partial(_converted, kind if several else annotated)
        if is_positional:
            # argparse requires an argument of any number unless its default is given, if only as it is.
            metavar = name.upper().removesuffix("S" if several else "")
            return add(name, metavar=metavar, default=argparse.SUPPRESS, **shared)
        names = [note for note in notes if isinstance(note, str)]
        short = [note for note in names if note.startswith("-")]
        metavar = next((note for note in names if note not in short), None) or _metavar(name, kind)
        return add(flag(name), *short, dest=name, metavar=metavar, required=required, **shared)


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


def _section_of(hint: Any) -> str | None:
    return next((note.title for note in get_args(hint) if isinstance(note, Section)), None)


@cache
def _helps(kind: type[Any]) -> dict[str, str]:
    """The string below each field of a dataclass, in one line."""
    helps = dict[str, str]()
    for base in reversed(kind.__mro__[:-1]):
        classes = (node for node in _syntax(inspect.getfile(base)).body if isinstance(node, ast.ClassDef))
        for field, text in pairwise(next(each for each in classes if each.name == base.__name__).body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                helps[cast("ast.Name", field.target).id] = " ".join(str(text.value.value).split())
    return helps


@cache
def _syntax(file: str) -> ast.Module:
    return ast.parse(Path(file).read_text(encoding="utf-8"))


def _as_text(argument: str) -> str:
    if argument is argparse.SUPPRESS:  # argparse knows it by its identity
        return argument
    return argument.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _converted(hint: Any, argument: str) -> Any:
    """The value of a type that an argument stands for."""
    try:
        return as_type(argument, hint)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error).removesuffix(".")) from None


def _metavar(name: str, kind: Any) -> str:
    kind = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    if get_origin(kind) is Literal:
        return "{" + ",".join(map(str, get_args(kind))) + "}"
    return _METAVARS.get(kind) or name.rpartition(".")[2].rpartition("_")[2].upper()


def _help(kind: type[Any], name: str, default: Any, shows_all: bool) -> str:
    """The help of a field with its default value, unless it says so itself or there is nothing to say."""
    text = _helps(kind).get(name, "")
    if default in (None, (), MISSING) or (default in (False, "") and not shows_all) or "default:" in text:
        return text
    shown = " ".join(map(str, cast("tuple[Any, ...]", default))) if isinstance(default, tuple) else str(default)
    shown = f"{default:g}" if isinstance(default, float) else shown.lower() if isinstance(default, bool) else shown
    return f"{text.removesuffix('.')} (default: {shown})." if text else f"default: {shown}"


def _dashed(argument: str) -> str:
    """A flag may be spelled with underscores, as its field is."""
    flag, equals, value = argument.partition("=")
    return f"{flag.replace('_', '-')}{equals}{value}" if flag.startswith("--") and " " not in flag else argument


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """Loading the model."""

    device: str | None = None
    """Where to compute, such as cuda (default: the CPU)."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """The dtype of the weights, or of the activations with --quantize (default: as stored)."""
    quantize: Literal["int8", "int4"] | None = None
    """Quantize the matrices to 8 or 4 bits while they are read."""
    allow_pickle: bool = False
    """Read pytorch_model.bin where there is no safetensors file."""
    adapter: Annotated[tuple[str, ...], "DIR[:WEIGHT]"] = ()
    """Low-rank adapters to add to the model, in PEFT's format or in mlx-lm's."""

    def load(self, path_or_hub_id: str) -> tuple[Transformer, Tokenizer | None]:
        """The model and its tokenizer, see `anyformer.load`."""
        from anyformer.adapters import merge
        from anyformer.checkpoint import load
        from anyformer.quantization import bits_of

        settings = {name: getattr(self, name) for name in hints(LoadOptions)}
        model, tokenizer = load(path_or_hub_id, **settings)
        # In the weights an adapter costs nothing; integers stay as they are, and it stays beside them.
        return (merge(model) if model.adapter_configs and bits_of(model) is None else model), tokenizer


@dataclass(frozen=True, kw_only=True)
class ModelOptions(LoadOptions):
    """A model, and how it is loaded."""

    model: Positional[str]
    """A model directory, a run directory, a GGUF file, or a hub id."""

    def load_model(self) -> tuple[Transformer, Tokenizer | None]:
        """The model and its tokenizer."""
        return self.load(self.model)
