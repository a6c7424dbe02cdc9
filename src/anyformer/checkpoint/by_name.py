"""Functions of a model and its tokenizer that take a directory in the place of the two."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast, overload

from torch import nn

from anyformer.checkpoint.load import load
from anyformer.errors import UserError
from anyformer.model import Transformer
from anyformer.tokenizer import Tokenizer

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class TakesModel(Protocol[P, R_co]):
    """A function of a model and its tokenizer, or of the directory, GGUF file or hub id to load the two from."""

    @overload
    def __call__(
        self, model: Transformer, tokenizer: Tokenizer | None, /, *args: P.args, **kwargs: P.kwargs
    ) -> R_co: ...
    @overload
    def __call__(self, model: str | Path, /, *args: P.args, **kwargs: P.kwargs) -> R_co: ...


def takes_model(function: Callable[Concatenate[Transformer, Tokenizer | None, P], R]) -> TakesModel[P, R]:
    """Let a function's model and tokenizer be given as a directory, a GGUF file or a hub id, which is loaded for the
    call.

    ``tag("runs/names", texts)`` is ``tag(*load("runs/names"), texts)``. A tokenizer behind the directory comes before
    the directory's own.
    """

    @wraps(function)
    def call(model: Any, *args: Any, **kwargs: Any) -> R:
        if isinstance(model, str | Path):
            model, tokenizer = load(model)
            if args and (args[0] is None or isinstance(args[0], Tokenizer)):
                tokenizer, args = args[0] or tokenizer, args[1:]
            args = (kwargs.pop("tokenizer", None) or tokenizer, *args)
        else:
            is_model, is_second = isinstance(model, nn.Module), not args or isinstance(args[0], Tokenizer | None)
            if not is_model or not is_second:
                raise UserError(
                    f"{function.__name__} takes a model and its tokenizer, as load(DIR) returns them, or the directory "
                    f"alone, and was given a {type(args[0] if is_model else model).__name__} there."
                )
        return cast("Any", function)(model, *args, **kwargs)

    return cast("TakesModel[P, R]", call)
