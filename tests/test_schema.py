"""One typed reader: whatever JSON can hold becomes a dataclass, or one sentence."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyformer.adapters import LoraConfig
from anyformer.checkpoint.adapter_formats import LoraParameters
from anyformer.compare.jobs import Outcome
from anyformer.compare.result import ComparedModel, Comparison
from anyformer.config import ModelConfig
from anyformer.errors import UserError
from anyformer.finetuning.config import FinetuneConfig
from anyformer.finetuning.measure import Measurement
from anyformer.schema import ConfigError, change, check, make, to_plain, typed
from anyformer.training.config import TrainConfig

READ_FROM_FILES: Sequence[Any] = (
    *(ModelConfig, TrainConfig, FinetuneConfig, LoraConfig, LoraParameters, ComparedModel, Outcome, Comparison),
    Measurement,
)

_NUMBERS = st.sampled_from(
    [0, 1, -1, 2, 2**31, 2**63 - 1, 2**63, 10**400, -(10**400), 0.0, 0.5, -0.5, 1e-300, 1e308, math.nan, math.inf]
)
_TEXTS = st.sampled_from(["", "x", "\0", "y" * 3000, "rms", "1e-3", "nan", "[", "a.b", "é\u202e", "float32"])
_JSON = st.recursive(
    st.none() | st.booleans() | _NUMBERS | _TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXTS, inner, max_size=3),
    max_leaves=5,
)


def fitting(hint: Any) -> st.SearchStrategy[Any]:
    """Values of a type, as JSON has them."""
    origin, arguments = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint):
        return objects(hint)
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin in (tuple, list, Sequence):
        if origin is tuple and Ellipsis not in arguments:
            return st.tuples(*map(fitting, arguments)).map(list)
        return st.lists(fitting(arguments[0]), max_size=2)
    if origin in (dict, Mapping):
        return st.dictionaries(_TEXTS, fitting(arguments[1]), max_size=2)
    if arguments:
        return st.one_of(*map(fitting, arguments))
    kinds = {int: st.integers(0, 8), float: st.floats(0, 1), bool: st.booleans(), type(None): st.none()}
    return kinds.get(hint, _TEXTS)


def objects(kind: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with the fields of a dataclass."""
    hints = get_type_hints(kind)
    fields = {each.name: st.deferred(lambda hint=hints[each.name]: fitting(hint)) for each in dataclasses.fields(kind)}
    required = {each.name for each in dataclasses.fields(kind) if each.default is each.default_factory}
    return st.fixed_dictionaries(
        {name: values for name, values in fields.items() if name in required},
        optional={name: values for name, values in fields.items() if name not in required},
    )


@st.composite
def damaged(draw: st.DrawFn, kind: Any) -> Any:
    """An object of a dataclass with another value in one place."""
    made: Any = draw(objects(kind))
    where, at = made, None
    while isinstance(where, dict | list) and where:
        at, key = where, draw(st.sampled_from([*where] if isinstance(where, dict) else range(len(where))))
        where = at[key]
        if draw(st.integers(0, 2)) == 0:
            break
    if at is not None:
        kinds = draw(st.integers(0, 9))
        if kinds == 0:
            del at[key]
        elif kinds == 1 and isinstance(at, dict):
            at[draw(_TEXTS)] = draw(_JSON)
        elif kinds < 8:
            at[key] = draw(_JSON)
    return made


def _holds(value: Any, hint: Any) -> bool:
    """Whether a value is of a type, all its parts as well."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if dataclasses.is_dataclass(hint):
        hints = get_type_hints(hint)
        return type(value) is hint and all(
            _holds(getattr(value, each.name), hints[each.name]) for each in dataclasses.fields(value)
        )
    if origin is Literal:
        return value in arguments
    if origin in (tuple, list, Sequence):
        if not isinstance(value, tuple | list):
            return False
        kinds = arguments if origin is tuple and Ellipsis not in arguments else arguments[:1] * len(value)
        return all(map(_holds, value, kinds))
    if origin in (dict, Mapping):
        return isinstance(value, dict) and all(_holds(item, arguments[1]) for item in value.values())
    if arguments:
        return any(_holds(value, each) for each in arguments)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


@pytest.mark.parametrize("kind", READ_FROM_FILES, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_any_json_is_read_or_refused(kind: Any, data: st.DataObject) -> None:
    values = data.draw(damaged(kind) | _JSON)
    text = json.dumps(values)
    try:
        made = make(kind, json.loads(text), "file: ", nulls=data.draw(st.booleans()))
    except UserError as error:
        said = str(error)
        assert len(said) < 3000
        assert max(said.count("y"), said.count("0")) <= 400  # a name and a value
    else:
        assert _holds(made, kind)
        check(made)


@dataclass(frozen=True)
class Part:
    size: int
    share: float = 0.5


@dataclass(frozen=True)
class Whole:
    name: str
    part: Part = field(default_factory=lambda: Part(1))
    kind: Literal["a", "b"] = "a"
    names: str | Sequence[str] = ()
    pair: tuple[float, float] = (0.0, 1.0)
    sizes: Mapping[str, int] = field(default_factory=dict[str, int])
    path: Path | None = None
    on: bool = False


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (3, "f: wants an object, not 3."),
        ({}, "f: name: is missing."),
        ({"nam": "x"}, "f: nam: no such field (did you mean 'name'?)."),
        ({"name": 3}, "f: name: wants text, not 3."),
        ({"name": "x", "part": 3}, "f: part: wants fields of its own (such as f: part.size), not 3."),
        ({"name": "x", "part": {"sice": 3}}, "f: part.sice: no such field (did you mean 'size'?)."),
        ({"name": "x", "part.size": True}, "f: part.size: wants a whole number, not True."),
        ({"name": "x", "part": {"size": 2**63}}, f"f: part.size: wants a whole number below 2^63, not {2**63}."),
        ({"name": "x", "part": {"size": 1, "share": None}}, "f: part.share: wants a number, not None."),
        ({"name": "x", "part": {"size": 1, "share": math.nan}}, "f: part.share: wants a finite number, not nan."),
        ({"name": "x", "kind": "c"}, "f: kind: 'c' is unknown (choose from 'a', 'b')."),
        ({"name": "x", "names": [1]}, "f: names: wants text, not 1."),
        ({"name": "x", "pair": [1]}, "f: pair: wants 2 values, not 1."),
        ({"name": "x", "sizes": []}, "f: sizes: wants an object, not []."),
        ({"name": "x", "path": "a\0"}, r"f: path: wants a path, not 'a\x00'."),
        ({"name": "x", "on": 1}, "f: on: wants true or false, not 1."),
    ],
)
def test_what_does_not_fit_is_named(values: Any, sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        make(Whole, values, "f: ")
    assert str(error.value) == sentence


def test_values_are_those_of_their_types() -> None:
    values = {"name": "x", "part.size": 2, "names": "n", "pair": [1, 2], "path": "p", "on": True}
    made = make(Whole, values)
    assert made == Whole("x", Part(2), names="n", pair=(1.0, 2.0), path=Path("p"), on=True)
    assert all(isinstance(each, float) for each in made.pair)
    assert change(made, {"part": {"share": 1}}).part == Part(2, 1.0)
    assert make(Whole, {"name": "x", "names": ["a", "b"]}).names == ("a", "b")
    assert typed(Whole, {"kind": "b"}) == {"kind": "b"}
    infinite = Whole("x", Part(1, math.inf))
    assert math.isnan(make(Part, to_plain(infinite)["part"], nulls=True).share)


def test_a_million_fields_take_no_longer_than_they_must() -> None:
    values = {f"part.{number}": number for number in range(200_000)}
    with pytest.raises(ConfigError, match=r"part\.0: no such field"):
        make(Whole, values)
