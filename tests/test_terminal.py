"""Nothing of a stranger's reaches a terminal as anything but text, and what can't be written is one sentence."""

from __future__ import annotations

import io
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unicodedata import category

import pytest
import torch

import anyformer as af
from anyformer import terminal
from anyformer.cli.main import main

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\r\u202e"
STYLES = re.compile(r"\x1b\[[0-9;]*m")
"""What a console adds to the text: colors."""


class Screen(io.StringIO):
    """A stream that is shown to a person."""

    def isatty(self) -> bool:
        return True


def on_screen(*argv: str) -> str:
    """What a terminal is told when a command succeeds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TERM", "xterm-256color")
        patch.setenv("COLUMNS", "200")
        patch.setattr(sys, "stdout", screen := Screen())
        assert main(argv) == 0
    return screen.getvalue()


def harmless(text: str) -> bool:
    return all(sign in "\t\n" or category(sign) not in ("Cc", "Cf") for sign in STYLES.sub("", text))


def test_what_a_terminal_shows_is_filtered_and_a_file_gets_every_byte(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdout", screen := Screen())
    terminal.write(f"a{EVIL}b\tc", 1, sep="|", end=".\n")
    assert screen.getvalue() == "a]0;owned[2J31mb\tc|1.\n"
    file = io.StringIO()
    monkeypatch.setattr(sys, "stdout", file)
    terminal.write(f"a{EVIL}b", end="")
    assert file.getvalue() == f"a{EVIL}b"


def test_messages_are_filtered_everywhere_in_one_line_of_readable_length(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.message(f"first {EVIL}\nanyformer: all is well\u2028{'x' * 10_000}")
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert harmless(said)
    assert said.startswith("first ]0;owned[2J31m")
    assert 2000 < len(said) < 2100
    assert "characters) ..." in said


def _hostile(tmp_path: Path, preset: str, spec: str, **kind: str) -> tuple[Path, af.Tokenizer]:
    torch.manual_seed(0)
    words = f"the cat {EVIL} sat [/b] [bold]on[/bold]"
    tokenizer = af.Tokenizer.train([words, "a dog"], spec, **kind)
    config = af.preset(preset, vocab_size=tokenizer.vocab_size, d_model=32, decoder_layers=1, max_length=64)
    special = {"bos": None, "eos": (), "pad": tokenizer.pad}
    changes: dict[str, Any] = {"encoder_layers": 1, "decoder_layers": 0} if kind else {}
    path = tmp_path / f"model [/b]{EVIL.replace('/', '')}"
    af.save(
        af.build(config.replace(attention={"heads": 2}, special_tokens=special, **changes)), path, tokenizer=tokenizer
    )
    return path, tokenizer


@pytest.fixture
def gpt(tmp_path: Path) -> tuple[Path, int]:
    """A model and the token whose text is an escape character."""
    path, tokenizer = _hostile(tmp_path, "gpt2-nano", "char")
    (escape,) = tokenizer.encode("\x1b", special=False)
    assert tokenizer.decode([escape]) == "\x1b"
    return path, escape


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--samples", "2", "--temperature", "1"],
        ["--logprobs", "2"],
        ["--beams", "2", "--n-best", "2"],
    ],
    ids=["plain", "samples", "logprobs", "n-best"],
)
def test_text_that_is_generated(flags: list[str], gpt: tuple[Path, int]) -> None:
    path, escape = gpt
    bias = [] if "--beams" in flags else ["--logit-bias", f"{escape}:1000"]
    shown = on_screen("generate", str(path), f"the {EVIL}", "--max-new-tokens", "4", *bias, *flags)
    assert harmless(shown)
    assert "owned" in shown


@pytest.mark.parametrize("argv", [["show", "{}"], ["diff", "{}", "gpt2"]])
def test_names_of_files(argv: list[str], gpt: tuple[Path, int]) -> None:
    shown = on_screen(*(part.format(gpt[0]) for part in argv))
    assert harmless(shown)
    assert "model [/b]" in shown


def test_markup_is_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = _hostile(tmp_path, "bert-tiny", "wordpiece:120", special="masked")
    assert main(["embed", str(path), "see [/b]", "[bold]a[/bold] :cat:"]) == 0
    shown = capsys.readouterr().out
    assert "1  see [/b]" in shown
    assert "2  [bold]a[/bold] :cat:" in shown
    assert main(["show", "a[/q]"]) == 2
    assert "'a[/q]'" in capsys.readouterr().err
    assert main(["show", str(path)]) == 0
    assert "[/b]" in capsys.readouterr().out


def test_words_for_masks(tmp_path: Path) -> None:
    path, _ = _hostile(tmp_path, "bert-tiny", "wordpiece:120", special="masked")
    assert harmless(on_screen("fill", str(path), "the [MASK] sat", "--top", "60"))


@pytest.mark.parametrize("kind", ["classification", "token_classification"])
def test_names_of_labels(kind: str, tmp_path: Path) -> None:
    path, tokenizer = _hostile(tmp_path, "bert-tiny", "wordpiece:120", special="masked")
    pooler = "tanh" if kind == "classification" else None
    names = ("O", f"B-{EVIL}", f"I-{EVIL}")
    head = {"kind": kind, "transform": None, "bias": "none", "pooler": pooler, "labels": 3, "label_names": names}
    model = af.build(af.load(path)[0].config.replace(head=head))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    af.save(model, tmp_path / "labels", tokenizer=tokenizer)
    shown = on_screen("classify", str(tmp_path / "labels"), f"the {EVIL} cat sat on [/b] a dog", "the cat")
    assert harmless(shown)
    assert "owned" in shown


@pytest.mark.parametrize("argv", [["show"], ["generate"], ["runs"], ["train", "--resume"], ["diff", "gpt2"]])
def test_errors(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*argv, f"no\n{EVIL}" + "x" * 5000]) == 2
    said = capsys.readouterr().err
    assert harmless(said)
    assert said.count("\n") == 1
    assert len(said) < 2200


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that is fit for the command line, and after the test as it was."""
    for module, name in ((sys, "excepthook"), (threading, "excepthook"), (warnings, "showwarning")):
        monkeypatch.setattr(module, name, getattr(module, name))
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    monkeypatch.setattr(logging.getLogger("anyformer"), "handlers", [])
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    terminal.prepare()
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("prepared")
def test_what_is_logged_warned_and_raised(capsys: pytest.CaptureFixture[str]) -> None:
    logging.getLogger("anyformer.checkpoint").warning("logged %s", EVIL)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn(f"warned {EVIL}", stacklevel=1)
    sys.excepthook(ValueError, ValueError(f"raised {EVIL}"), None)

    def fail() -> None:
        raise ValueError(f"in a thread {EVIL}")

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    said = capsys.readouterr().err
    assert harmless(said)
    for what in ("logged", "warned", "raised", "in a thread"):
        assert f"{what} ]0;owned" in said


def test_a_signal_where_nothing_can_be_raised_comes_again() -> None:
    code = """
import signal, time
from anyformer import terminal

class Tidied:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

terminal.prepare()
Tidied()
try:
    time.sleep(60)
except KeyboardInterrupt:
    print("interrupted")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False)
    assert (done.stdout, done.stderr) == ("interrupted\n", "")


def _shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    run = f"{sys.executable} -m anyformer"
    return subprocess.run(
        ["bash", "-c", command.replace("anyformer", run)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


FULL = "anyformer: standard output can't be written: No space left on device.\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("argv", ["--help", "diff --help", "diff gpt2 llama"])
def test_a_full_device_is_one_sentence(argv: str) -> None:
    done = _shell(f"anyformer {argv} > /dev/full")
    assert (done.returncode, done.stderr) == (2, FULL)
    assert _shell(f"anyformer {argv} > /dev/full 2> /dev/full").returncode == 2


def test_streams_that_are_closed_are_the_null_device(tmp_path: Path) -> None:
    assert _shell("anyformer diff gpt2 llama <&- >&- 2>&-").returncode == 0
    done = _shell("anyformer diff gpt2 none <&- >&-")
    assert done.returncode == 2
    assert done.stderr.startswith("anyformer: ")
    # A file that is opened later must not become standard output.
    (tmp_path / "a").mkdir()
    code = "import sys; from anyformer.terminal import prepare_streams; prepare_streams(); f = open('f', 'w'); print(1)"
    script = f'cd {tmp_path} && {sys.executable} -c "{code}" >&-'
    assert subprocess.run(["bash", "-c", script], check=False).returncode == 0
    assert (tmp_path / "f").read_text() == ""


@pytest.mark.parametrize("argv", ["--help", "diff gpt2 llama"])
def test_a_reader_that_leaves_is_no_error(argv: str) -> None:
    done = _shell(f"anyformer {argv} | true; exit ${{PIPESTATUS[0]}}")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_terminal_without_unicode() -> None:
    environment = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = _shell("anyformer show $'caf\\xc3\\xa9 \\xff'", **environment)
    assert done.returncode == 2
    assert done.stderr.startswith("anyformer: ")
    assert "Traceback" not in done.stderr
    # What the encoding lacks is an escape.
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", ascii_only)
        terminal.prepare_streams()
        terminal.write("caf\u00e9 \udcff")
    ascii_only.flush()
    assert ascii_only.buffer.getvalue() == b"caf\\xe9 \\udcff\n"


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("error", [ValueError("of torch"), af.UserError("the file is damaged.")])
def test_a_signal_that_native_code_turned_into_another_error(
    number: signal.Signals, error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(argv: list[str]) -> int:
        try:
            signal.raise_signal(number)
        except (KeyboardInterrupt, terminal.Terminated):
            raise error from None
        raise AssertionError

    monkeypatch.setattr("anyformer.cli.env.run", interrupted)
    assert main(["env"]) == 128 + number
    said = capsys.readouterr().err
    assert said == ("anyformer: interrupted.\n" if number == signal.SIGINT else "anyformer: ended by SIGTERM.\n")
    assert terminal.last_signal() is None
