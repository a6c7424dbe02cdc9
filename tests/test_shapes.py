"""The tests' own checks of shapes: what was right once is not checked again, and all else is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import beartype
import pytest
import torch
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from tests import shapes
from tests.shapes import checked

check = checked(typechecker=beartype.beartype)
A, B = torch.zeros(2, 3), torch.zeros(3, 2)


@check
def pick(x: Float[Tensor, "rows columns"], flip: Any, mode: Literal["one", "two"] = "one") -> Float[Tensor, "rows ..."]:
    return x.T if flip else x


@check
def lengths(x: list[Float[Tensor, " length"]], names: dict[str, int]) -> tuple[int, str]:
    return len(x), *names


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((A[0], False), {}),  # axes
        ((A.long(), False), {}),  # dtype
        ((A.tolist(), False), {}),  # type
        ((A, False), {"mode": "three"}),
        ((A, True), {}),  # result
        ((A,), {}),
    ],
)
def test_a_wrong_call_is_noticed_after_right_ones(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for _ in range(2):
        assert pick(A, False) is A
        assert pick(A, False, mode="two") is A
        assert pick(x=B, flip=False) is B
        with pytest.raises(TypeCheckError if len(args) == 2 else TypeError):
            pick(*args, **kwargs)


def test_items_are_checked() -> None:
    for _ in range(2):
        assert lengths([A[0], A[1]], {"a": 1}) == (2, "a")
        for wrong in ([A, A], [1, 1], (A[0], A[1])):
            with pytest.raises(TypeCheckError):
                lengths(wrong, {"a": 1})
        for names in ({1: 1}, {"a": "b"}, {}, {"a": 1, "b": 2}):
            with pytest.raises(TypeCheckError):
                lengths([A[0], A[1]], names)


def test_one_wrong_item_of_several_is_noticed_in_time() -> None:
    """beartype checks a random one in each call."""

    def often() -> None:
        for _ in range(64):
            lengths([A[0], 1], {"a": 1})

    with pytest.raises(TypeCheckError):
        often()


def test_dataclasses_are_checked() -> None:
    @check
    @dataclass
    class Pair:
        x: Float[Tensor, " n"]
        y: Float[Tensor, " n"]

    for _ in range(2):
        Pair(A[0], A[1])
        with pytest.raises(TypeCheckError):
            Pair(A[0], B[0])


def test_each_call_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of an inner function, which is another with each call of the outer one."""
    checks = 0

    def typechecker(function: Any) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal checks
            checks += "kw" not in function.__name__
            return function(*args, **kwargs)

        return counted

    def outer(x: Tensor) -> Tensor:
        @checked(typechecker=typechecker)
        def inner(x: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
            return x

        return inner(x)

    for _ in range(3):
        outer(A[0])
    assert checks == 2, "the arguments and the result"
    outer(B[0])
    assert checks == 4


def test_what_checks_a_function_is_made_once_for_all_its_results() -> None:
    made = list[str]()

    def typechecker(function: Any) -> Any:
        made.append(function.__name__)
        return function

    @checked(typechecker=typechecker)
    def zeros(kind: Any, size: list[int]) -> Float[Tensor, " n"]:
        return torch.zeros(size.pop())

    for size in range(3):
        zeros(None, [size])
    before = len(made)
    for size in range(3, 9):
        zeros(None, [size])
    assert len(made) == before > 0


def test_the_library_is_checked_so() -> None:
    from anyformer.blocks.norm import RMSNorm
    from anyformer.generation.config import GenerationConfig

    for function in (RMSNorm.forward, GenerationConfig.__init__):
        assert function.__wrapped__.__code__ is not function.__code__
        assert function.__code__.co_filename == shapes.__file__
