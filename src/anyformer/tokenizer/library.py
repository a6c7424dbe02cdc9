"""Errors of the library `tokenizers` as UserError: bare Exceptions, and Rust's panics, which are no Exceptions."""

from types import TracebackType

from anyformer.errors import UserError
from anyformer.terminal import shorten

_REASON = 300


class Translated:
    """A context in which whatever a library raises becomes a UserError: ``{complaint}: {what was raised}``.

    Args:
        complaint: The beginning of a sentence, such as "The text can't be encoded".

    Raises:
        UserError: any Exception, or a panic of a library in Rust (for example where a regular expression of a
            tokenizer.json takes too many steps).
    """

    __slots__ = ("_complaint",)

    def __init__(self, complaint: str) -> None:
        self._complaint = complaint

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, UserError):
            return
        # pyo3 has no name under which its PanicException can be imported.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            reason = shorten(" ".join(str(error).split()), _REASON).rstrip(".")
            raise UserError(f"{self._complaint}: {reason or type(error).__name__}.") from error
