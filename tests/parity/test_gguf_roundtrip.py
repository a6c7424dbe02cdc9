"""Hugging Face -> GGUF -> anyformer -> a directory -> Hugging Face: the same bits in every weight, the same answers."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import anyformer as af
from tests.parity.conversion import assert_close, ours_of
from tests.parity.gguf_models import EXPRESSIBLE, expressible
from tests.parity.model_spec import draw_inputs

pytest.importorskip("gguf")


# A RoBERTa is read back as a BERT, whose positions have no offset.
@pytest.mark.parametrize("family", [family for family in EXPRESSIBLE if not family.endswith("roberta")])
@settings(max_examples=5)
@given(data=st.data())
def test_there_and_back_through_gguf(family: str, data: st.DataObject) -> None:
    drawn = data.draw(expressible(family))
    theirs: Any = drawn.build()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        try:
            af.save_gguf(ours_of(theirs), path / "model.gguf", kind="f32")
        except af.UserError:
            return
        model, _ = af.load(path / "model.gguf")
        af.save(model, path / "directory")
        again = type(theirs).from_pretrained(path / "directory")
    left, right = theirs.state_dict(), again.state_dict()
    # BERT's pooler stays behind: GGUF has no place for it.
    for name in (name for name in left if "pooler" not in name):
        # Gemma's norms multiply by 1 + weight, and that is what a file has.
        offset = 1.0 if family.startswith("gemma") and name.endswith("norm.weight") else 0.0
        assert torch.equal(left[name] + offset, right[name] + offset), name
    length = model.config.max_length  # of a window, where there was one
    given_ = {name: value[:, :length] for name, value in data.draw(draw_inputs(drawn)).theirs.items()}
    given_.pop("token_type_ids", None)
    with torch.no_grad():
        assert_close(again(**given_)[0], theirs(**given_)[0], "answers")
