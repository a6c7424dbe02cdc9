"""Standard output and standard error, filtered. `anyformer.console` has tables and colors.

Text of a model, a file or a template may contain escape sequences, which a terminal obeys: they rename its window,
move the cursor over what was shown before, or write to the clipboard. So all output to a terminal is filtered here, and
messages always are. Output to a file or a pipe is unchanged.
"""

import codecs
import errno
import io
import logging
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Mapping
from contextlib import suppress
from types import FrameType, TracebackType
from typing import IO, TextIO

from typing_extensions import override

# All control characters but tab and line end, and those that change the direction of what was shown before.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_LONGEST_MESSAGE = 2000
_LONGEST_REPORT = 20_000
_REFUSALS = ("ENOSPC", "EDQUOT", "EFBIG", "ENAMETOOLONG", "EMFILE", "ENFILE", "ENOMEM", "EROFS", "EACCES", "EPERM")
_A_MOMENT = 0.05
"""Seconds until a signal comes once more that came where nothing can be raised."""
_STREAMS: Mapping[str, str] = {"stdin": "r", "stdout": "w", "stderr": "w"}

_failure: "OutputError | None" = None
_signal: int | None = None


class OutputError(Exception):
    """Standard output can't be written, as on a full device."""


class ReaderLeftError(OutputError):
    """Whoever read standard output has left, as in ``| head``: there is nothing more to say."""


class Terminated(SystemExit):
    """A signal that asks the program to end, so that it can tidy up. The status is 128 and the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


def printable(text: str) -> str:
    """The text without what a terminal would obey instead of showing it."""
    return _CONTROL.sub("", text)


def shorten(text: str, length: int = _LONGEST_MESSAGE) -> str:
    """The text, the middle of one that is longer being left out."""
    if len(text) <= length:
        return text
    begin = 2 * length // 3
    return f"{text[:begin]} ... ({len(text) - length:,} characters) ... {text[len(text) - (length - begin) :]}"


def write(*values: object, sep: str = " ", end: str = "\n", flush: bool = False) -> None:
    """Print to standard output, as `print`.

    Raises:
        OutputError: it can't be written. What is written after that is dropped.
    """
    text = sep.join(map(str, values)) + end
    try:
        sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
        if flush:
            sys.stdout.flush()
    except OSError as error:
        raise _output_error(error) from error


def finish() -> None:
    """Write what standard output still holds back. Raises OutputError for that, and for a failure that was noted."""
    global _failure
    failure, _failure = _failure, None
    try:
        sys.stdout.flush()
    except OSError as error:
        failure = failure or _output_error(error)
    if failure is not None:
        raise failure


def note_failure(error: OSError) -> None:
    """Let `finish` say that standard output can't be written, and drop what is written until then."""
    global _failure
    _failure = _output_error(error)


def _output_error(error: OSError) -> OutputError:
    discard(sys.stdout)
    kind = ReaderLeftError if isinstance(error, BrokenPipeError) else OutputError
    return kind(f"standard output can't be written: {error.strerror or error}.")


def discard(stream: IO[str]) -> None:
    """Send what is written to a standard stream nowhere, with what it holds back: Python flushes it at its end."""
    with suppress(OSError, ValueError):  # not a file
        descriptor = os.open(os.devnull, os.O_WRONLY)
        os.dup2(descriptor, stream.fileno())
        os.close(descriptor)
        stream.flush()


def message(text: object) -> None:
    """Print one line to standard error, in a readable length."""
    _report(f"{shorten(printable(' '.join(str(text).splitlines())))}\n")


def report(text: str) -> None:
    """Print lines of another program, or of a traceback, to standard error."""
    _report(shorten(printable(text), _LONGEST_REPORT))


def _report(text: str) -> None:
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        discard(sys.stderr)


def output_is_terminal() -> bool:
    """Whether standard output is shown to a person."""
    return sys.stdout.isatty()


def prepare() -> None:
    """Make the streams, warnings and signals of this process fit for the command line; see `prepare_streams`.

    Warnings, those of the package's logger and tracebacks go to standard error through the filter. SIGINT raises
    KeyboardInterrupt, SIGTERM and SIGHUP raise `Terminated`, unless whoever started the program has seen to it that
    they are ignored; `last_signal` remembers each.
    """
    prepare_streams()
    logger = logging.getLogger("anyformer")
    if not any(isinstance(handler, _Messages) for handler in logger.handlers):
        logger.addHandler(_Messages(logging.WARNING))
    sys.excepthook, threading.excepthook = _show_exception, _show_thread_exception
    sys.unraisablehook = _show_unraisable
    warnings.showwarning = _show_warning
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number: int | None = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                signal.signal(number, _end)


def prepare_streams() -> None:
    """Make standard streams fit for any text: what an encoding lacks is written as an escape such as \\u2014.

    One that is closed counts as the null device: the next file that is opened would get its number, and what is
    printed.
    """
    for number, (name, mode) in enumerate(_STREAMS.items()):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)
            if descriptor != number:
                os.dup2(descriptor, number)
                os.close(descriptor)
            os.set_inheritable(number, True)
            stream = os.fdopen(number, mode, encoding="utf-8", closefd=False)
            setattr(sys, name, stream)
    if isinstance(sys.stdin, io.TextIOWrapper):
        # UTF-8 is what is typed and piped even where the locale says nothing of it.
        encoding = "utf-8" if codecs.lookup(sys.stdin.encoding).name == "ascii" else sys.stdin.encoding
        sys.stdin.reconfigure(encoding=encoding, errors="replace")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def last_signal() -> int | None:
    """The number of the signal that has asked the program to end, None if there is none; forgets it.

    Native code that a signal interrupts may drop its exception and raise one of its own: torch, where a storage becomes
    a tensor, raises a ValueError.
    """
    global _signal
    number, _signal = _signal, None
    return number


def system_refusal(error: BaseException) -> str | None:
    """The sentence for what may happen anywhere: memory, space, open files or the right to write are lacking.

    None for any other error.
    """
    if isinstance(error, MemoryError):
        return "there is not enough memory for this."
    if isinstance(error, RecursionError):
        return "something in the input is nested too deep."
    if isinstance(error, OSError) and errno.errorcode.get(error.errno or 0) in _REFUSALS:
        location = "" if error.filename is None else f"{error.filename}: "
        return f"{location}{error.strerror}."
    return None


class _Messages(logging.Handler):
    """A handler that prints log records as messages."""

    @override
    def emit(self, record: logging.LogRecord) -> None:
        message(record.getMessage())
        if record.exc_info:
            report("".join(traceback.format_exception(*record.exc_info)))


def _show_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    report("".join(traceback.format_exception(kind, error, trace)))


def _show_thread_exception(event: threading.ExceptHookArgs) -> None:
    if event.exc_value is not None and event.exc_type is not SystemExit:
        _show_exception(event.exc_type, event.exc_value, event.exc_traceback)


def _show_unraisable(event: "sys.UnraisableHookArgs") -> None:
    if isinstance(event.exc_value, Terminated | KeyboardInterrupt):
        # The signal came while Python was tidying up, where nothing can be raised, nor in here: it comes again later.
        number = getattr(event.exc_value, "number", signal.SIGINT)
        again = threading.Timer(_A_MOMENT, _interrupt, (number,))
        again.daemon = True
        with suppress(RuntimeError):  # the interpreter ends, and begins no threads
            again.start()
    elif event.exc_value is not None:
        _show_exception(event.exc_type, event.exc_value, event.exc_traceback)


def _interrupt(number: int) -> None:
    """Send a signal to the main thread, where it ends a sleep or a read, too."""
    if sys.platform == "win32":
        signal.raise_signal(number)
    else:
        signal.pthread_kill(threading.main_thread().ident or 0, number)


def _show_warning(
    text: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    show = report if file is None else file.write
    show(warnings.formatwarning(text, category, filename, lineno, line))


def _end(number: int, frame: FrameType | None) -> None:
    global _signal
    _signal = number
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)
