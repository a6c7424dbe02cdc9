from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from anyformer.data.formats.parquet import class_names
from anyformer.data.materialize import read_rows
from anyformer.errors import UserError

pa = pytest.importorskip("pyarrow")


def noted(content: object) -> Any:
    return pa.schema([("label", pa.int64())], metadata={"huggingface": json.dumps(content)})


def test_the_names_are_those_that_datasets_notes():
    datasets = pytest.importorskip("datasets")
    names = datasets.ClassLabel(names=["neg", "pos"])
    features = datasets.Features(
        {"label": names, "tags": datasets.List(names), "text": datasets.Value("string"), "id": datasets.Value("int64")}
    )
    assert class_names(features.arrow_schema) == {"label": ("neg", "pos"), "tags": ("neg", "pos")}


@pytest.mark.parametrize(
    "content",
    [3, {}, {"info": 3}, {"info": {"features": [1]}}, {"info": {"features": {"label": 3}}}]
    + [
        {"info": {"features": {"label": feature}}}
        for feature in (
            {"_type": "ClassLabel"},
            {"_type": "ClassLabel", "names": [1]},
            {"_type": "ClassLabel", "names": "ab"},
            {"_type": "Sequence", "feature": 3},
            [],
            [3],
            {"_type": []},
        )
    ],
)
def test_what_is_no_such_note_names_nothing(content: object):
    assert class_names(noted(content)) == {}
    assert class_names(pa.schema([])) == {}
    assert class_names(pa.schema([], metadata={"huggingface": b"\xff{"})) == {}


@pytest.mark.parametrize(
    "kind",
    [
        pa.timestamp("us"),
        pa.timestamp("us", tz="No/Where"),
        pa.timestamp("us", tz="+99:99"),
        pa.duration("s"),
        pa.time64("us"),
    ],
    ids=str,
)
def test_a_time_that_python_has_not_is_a_sentence(kind: Any, tmp_path: Path):
    parquet = pytest.importorskip("pyarrow.parquet")
    times = pa.array([2**62], pa.int64()).cast(kind, safe=False)
    parquet.write_table(pa.table({"text": ["x"], "when": times}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"x\.parquet is not a whole parquet file: a value can't be read"):
        list(read_rows([str(tmp_path / "x.parquet")]))
