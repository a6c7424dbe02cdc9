import dataclasses
import json
import math
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyformer.compare.result import Comparison
from anyformer.errors import UserError
from tests.compare.results import make_comparison


@pytest.mark.parametrize("ablation", [False, True])
def test_a_result_is_read_as_it_was_written(tmp_path: Path, ablation: bool) -> None:
    made = make_comparison(ablation=ablation)
    made.write(tmp_path / "compare.json")
    assert Comparison.read(tmp_path / "compare.json") == made


def test_the_promised_fields_have_their_names() -> None:
    found = json.loads(make_comparison().to_json())
    assert {"models", "groups", "tasks", "verdicts"} <= set(found)
    assert {"a", "b", "measure", "difference", "interval", "verdict"} <= set(found["verdicts"][0])


def test_a_number_that_is_not_finite_becomes_null() -> None:
    made = make_comparison()
    made = dataclasses.replace(made, setup=dataclasses.replace(made.setup, seconds=math.inf))
    assert json.loads(made.to_json())["setup"]["seconds"] is None
    assert math.isnan(Comparison.from_dict(json.loads(made.to_json())).setup.seconds)


_WRONG = st.sampled_from([None, True, 3, 0.5, "x", [], {}, [1, "a"], {"a": 1}, [None]])


@given(wrong=_WRONG, data=st.data())
def test_a_misshapen_file_is_refused_or_read(wrong: object, data: st.DataObject) -> None:
    values = json.loads(make_comparison(ablation=True).to_json())
    at = values
    while True:
        key = data.draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
        if isinstance(at[key], dict | list) and at[key] and data.draw(st.booleans()):
            at = at[key]
            continue
        at[key] = wrong
        break
    with suppress(UserError):
        Comparison.from_dict(values)


def test_what_is_missing_is_named() -> None:
    values = json.loads(make_comparison().to_json())
    del values["verdicts"][0]["interval"]
    with pytest.raises(UserError, match=r"^compare\.json: verdicts\.interval: is missing\.$"):
        Comparison.from_dict(values)
    with pytest.raises(UserError, match="run the comparison again"):
        Comparison.from_dict({"version": 99})
