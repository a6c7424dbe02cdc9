"""Arguments from dataclasses: values of every type, one sentence for each mistake, and help that reads well."""

import ast
import re
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

import anyformer
from anyformer import errors
from anyformer.cli.embed import EmbedOptions
from anyformer.cli.main import COMMANDS, main
from anyformer.cli.options import Parser, Positional, parse, without_vs
from anyformer.errors import UserError, nearest, usual_name

_SOURCE = Path(anyformer.__file__).parent


@dataclass(frozen=True, kw_only=True)
class Oven:
    """The oven.

    It is electric.
    """

    heat: int = 180
    """Degrees."""
    fan: bool | None = None
    """Whether the air moves."""


@dataclass(frozen=True, kw_only=True)
class Options(Oven):
    """Bake a cake.

    Examples:
        anyformer bake apple --eggs 3
    """

    kind: Positional[str]
    """What to bake."""
    guests: Positional[tuple[str, ...]] = ()
    """Who will eat 100% of it."""
    eggs: int | None = None
    """How many eggs (default: two)."""
    sugar_share: float = 0.25
    """Share of sugar."""
    glaze: Literal["lemon", "none"] = "none"
    """On top."""
    weights: tuple[int, ...] = ()
    """Of the parts."""
    recipe: Path | None = None
    """A file."""
    quiet: bool = False
    """Say nothing."""


def test_values() -> None:
    assert parse(Options, ["apple"], "bake") == Options(kind="apple")
    line = "apple --eggs 3 --sugar_share=1e-1 --glaze lemon --weights 1 2 --recipe a/b --quiet --heat -5 --no-fan"
    cake = {"kind": "apple", "eggs": 3, "sugar_share": 0.1, "glaze": "lemon", "weights": (1, 2)}
    expected = Options(**cake, recipe=Path("a/b"), quiet=True, heat=-5, fan=False)
    assert parse(Options, line.split(), "bake") == expected
    assert parse(Options, ["--eggs", "None", "apple", "--fan", "a b", "c_d"], "bake") == Options(
        kind="apple", guests=("a b", "c_d"), fan=True
    )
    assert parse(Options, ["apple", "--quiet", "--no-quiet"], "bake").quiet is False
    assert parse(Options, ["apple", "--eggs", "1e9"], "bake").eggs == 10**9
    assert parse(Options, ["apple", "--", "--eggs", "_"], "bake").guests == ("--eggs", "_")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("", "KIND must be given; usage: anyformer bake KIND [GUEST ...]"),
        ("apple --egs 3", "anyformer bake has no option --egs (did you mean '--eggs'?)."),
        ("apple --zzz=3", "anyformer bake has no option --zzz (anyformer bake --help lists them)."),
        ("apple --egg 3", "anyformer bake has no option --egg (did you mean '--eggs'?)."),
        ("--kind apple", "anyformer bake takes KIND without --kind: anyformer bake KIND [GUEST ...]"),
        ("apple --eggs many", "--eggs wants a whole number, not 'many'."),
        ("apple --eggs 1e999", "--eggs wants a whole number, not '1e999'."),
        ("apple --sugar-share lots", "--sugar-share wants a number, not 'lots'."),
        ("apple --glaze leman", "--glaze 'leman' is unknown (did you mean 'lemon'?)."),
        ("apple --eggs", "--eggs expected one argument."),
    ],
)
def test_mistakes_are_one_sentence(line: str, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        parse(Options, line.split(), "bake")
    assert str(error.value).startswith(sentence)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("generate --model m x", "MODEL without --model"),
        ("generate -m m --prompt x", "MODEL without -m"),
        ("generate m -p x", "PROMPT without -p"),
        ("embed m --text x", "TEXT without --text"),
        ("finetune --model-name-or-path m", "MODEL without --model-name-or-path"),
        ("train --model gpt2-nano", "PRESET without --model"),
    ],
)
def test_arguments_that_other_programs_have_as_options(
    line: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line.split()) == 2
    assert f"takes {named}: anyformer " in capsys.readouterr().err


def test_help(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as end:
        parse(Options, ["--help"], "bake")
    assert end.value.code == 0
    assert (
        capsys.readouterr().out
        == """\
usage: anyformer bake KIND [GUEST ...] [options]

Bake a cake.

arguments:
  KIND                  What to bake.
  GUEST                 Who will eat 100% of it.

options:
  --eggs N              How many eggs (default: two).
  --sugar-share X       Share of sugar (default: 0.25).
  --glaze {lemon,none}  On top (default: none).
  --weights [N ...]     Of the parts.
  --recipe FILE         A file.
  --quiet               Say nothing.
  -h, --help            Show this help.

the oven:
  --heat N              Degrees (default: 180).
  --fan, --no-fan       Whether the air moves.

examples:
  anyformer bake apple --eggs 3
"""
    )


class _Stopped(Exception):  # noqa: N818
    pass


def _parser(command: str) -> Parser:
    """The parser of a command."""

    def given(self: Parser, argv: object) -> None:
        raise _Stopped(self)

    with patch.object(Parser, "values", given), pytest.raises(_Stopped) as stopped:
        import_module(f"anyformer.cli.{command}").run([])
    return stopped.value.args[0]


def flags_of(command: str) -> set[str]:
    """The options of a command."""
    return {flag for action in _parser(command)._actions for flag in action.option_strings} | {"--help"}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_reads_well(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        import_module(f"anyformer.cli.{command}").run(["--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: anyformer {command}")
    for noise in ("None", "(required)", "STR|", " STR ", "INT", "FLOAT", "(default: )", "()", "; default:", "; none:"):
        assert noise not in shown, noise
    assert f"examples:\n  anyformer {command}" in shown
    assert max(map(len, shown.splitlines())) <= 100
    parser = _parser(command)
    parser.format_help()
    actions = [action for action in parser._actions if action.help != "==SUPPRESS=="]
    for action in actions:
        assert action.help, f"{action.dest} has no help"
        assert action.help.endswith((".", ").")), action.help
        assert action.help[0].isupper() or action.help.split()[0] in shown, action.help
        assert len(re.findall("default:", action.help)) <= 1


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_parse(command: str) -> None:
    import shlex

    epilog = _parser(command).epilog
    assert epilog is not None
    for line in epilog.partition("\n\n")[0].splitlines()[1:]:
        program, name, *arguments = shlex.split(line)
        assert (program, name) == ("anyformer", command)
        assert _parser(command).values(arguments) is not None


_LOADING = ("generate", "chat", "fill", "embed", "classify", "evaluate", "verify", "convert")
"""Commands that load a model."""
_RAISED_BY: dict[str, tuple[str, ...]] = {
    "checkpoint/gguf": ("convert",),
    "checkpoint": _LOADING,
    "quantization": _LOADING,
    "verify": ("verify", "convert", "evaluate"),
    "learn/attention_maps": ("attention",),
    "learn/diagram": ("diagram",),
    "plan": ("plan",),
    "compare": ("compare",),
    "generation": ("generate",),
    "training": ("train",),
    "runs": ("train",),
    "data/examples": ("finetune",),
    "data": ("train",),
}
"""Commands that can raise the errors of a package."""


@pytest.mark.parametrize("command", _LOADING)
def test_loading_flags_are_the_same(command: str) -> None:
    assert {"--device", "--dtype", "--quantize", "--allow-pickle"} <= flags_of(command)


def _messages() -> list[tuple[str, str]]:
    """File and text of every error message that speaks of a flag or of a command."""
    found: list[tuple[str, str]] = []
    for path in sorted(_SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise | ast.Return) and "UserError" in ast.unparse(node):
                texts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
                text = "".join(text for text in texts if isinstance(text, str))
                text = re.sub("`(?!anyformer )[^`]*`", "", text)  # another program's
                if re.search(r"(?<![\w-])--[a-z]|`anyformer ", text):
                    found.append((str(path.relative_to(_SOURCE)), text))
    return found


def test_flags_that_messages_recommend_exist() -> None:
    known: dict[str, set[str]] = {command: flags_of(command) for command in COMMANDS}
    messages = _messages()
    assert len(messages) > 30
    for file, text in messages:
        own = "train" if "train with" in text else file.removeprefix("cli/").removesuffix(".py")
        commands = (
            (own,) if own in COMMANDS else next((_RAISED_BY[each] for each in _RAISED_BY if file.startswith(each)), ())
        )
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z.-]*[a-z0-9]", text):
            for command in commands or [min(COMMANDS, key=lambda each: flag not in known[each])]:
                assert flag in known[command], f"{file}: anyformer {command} has no {flag}: {text}"
        for command in re.findall("`anyformer ([a-z]+)", text):
            assert command in COMMANDS, f"{file}: {text}"


def test_text_that_the_locale_cannot_decode_is_utf_8() -> None:
    undecoded = "caf\u00e9".encode().decode("ascii", "surrogateescape")
    options = parse(EmbedOptions, [undecoded, undecoded, "\udcff"], "embed")
    assert options.texts == ("caf\u00e9", "\ufffd")
    assert options.model == undecoded  # the name of a file


@given(st.lists(st.sampled_from(["gpt2", "llama", "vs", "VS.", "--name", "-o"])))
def test_only_a_vs_between_two_words_is_left_out(argv: list[str]) -> None:
    left = without_vs(argv)
    assert [word for word in left if word.lower() not in ("vs", "vs.")] == [
        word for word in argv if word.lower() not in ("vs", "vs.")
    ]
    assert left[:1] == argv[:1]
    assert left[-1:] == argv[-1:]
    assert without_vs(["gpt2", *argv[:1]]) == ["gpt2", *argv[:1]]
    assert without_vs(["--name", "a vs b"]) == ["--name", "a vs b"]


_USUAL: dict[str, dict[str, str]] = {
    "quiet": {"train": "", "finetune": ""},
    "silent": {"finetune": "--quiet"},
    "dry-run": {"finetune": "--preview"},
    "lr": {"train": "--learning-rate", "finetune": "--learning-rate"},
    "num-epochs": {"finetune": "--epochs"},
    "batch": {"train": "--batch-size", "evaluate": "--batch-size", "compare": "--batch-size"},
    "max-seq-length": {"train": "--context", "serve": "--context", "generate": "--max-new-tokens"},
    "max-tokens": {"generate": "--max-new-tokens", "chat": "--max-new-tokens"},
    "output-dir": {"train": "--runs", "compare": "--out", "eject": "--output", "diagram": "--output"},
    "gpu": dict.fromkeys(("train", "finetune", "generate", "serve", "embed", "compare"), "--device"),
    "num-gpus": {"train": "--processes", "finetune": "--processes"},
    "bf16": {"train": "--dtype", "generate": "--dtype", "serve": "--dtype", "convert": "--dtype"},
    "load-in-4bit": {"finetune": "--quantize", "generate": "--quantize", "serve": "--quantize"},
    "resume-from-checkpoint": {"train": "--resume", "finetune": "--resume"},
    "eval-steps": {"train": "--evaluate-every", "finetune": "--evaluate-every"},
    "logging-steps": {"train": "--log-every", "finetune": "--log-every"},
    "val-data": {"train": "--validation", "finetune": "--validation"},
    "wandb": {"train": "--track", "finetune": "--track"},
    "system-prompt": {"chat": "--system", "finetune": "--system"},
    "max-num-seqs": {"serve": "--slots"},
    "api-key": {"serve": "--api-key-file"},
    "lora-path": {"generate": "--adapter", "serve": "--adapter"},
    "num-fewshot": {"evaluate": "--few-shot"},
    "outtype": {"convert": "--type"},
}
"""Names that other programs have for options, and ours by command; "" where the name is the same."""


@pytest.mark.parametrize("command", COMMANDS)
def test_usual_names_are_answered_by_their_meaning(command: str) -> None:
    flags = flags_of(command)
    for theirs, ours in _USUAL.items():
        if f"--{theirs}" in flags:
            assert ours[command] == ""
        elif ours.get(command):
            assert nearest(f"--{theirs}", flags) == f"that is {ours[command]!r} here"
            assert ours[command] in flags
        else:
            found = re.fullmatch("did you mean '--(.*)'[?]", nearest(f"--{theirs}", flags))
            assert found is None or found[1] in theirs  # max-tokens, tokens


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_suggested_is_an_option_of_the_command(command: str) -> None:
    flags = flags_of(command)
    for theirs in " ".join(errors.names_elsewhere().values()).split():
        for suggested in usual_name(f"--{theirs}", [*flags]):
            assert suggested in flags


@pytest.mark.parametrize(
    "name", ["--force", "--verbose", "--overwrite", "--patience", "--version", "--profile", "--yes"]
)
def test_a_name_that_means_something_else_is_no_suggestion(name: str) -> None:
    for command in COMMANDS:
        assert "did you mean" not in nearest(name, flags_of(command))
