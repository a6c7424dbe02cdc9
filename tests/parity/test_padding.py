"""Rows of a padded batch, left or right, equal the same rows alone: with us, and with Hugging Face."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from anyformer.model import Transformer
from tests.parity import hf_models
from tests.parity.conversion import TOLERANCE, assert_close, ours_of
from tests.parity.float64 import EQUAL, Float64, build_wide, widened
from tests.parity.model_spec import Inputs, ModelSpec, ragged
from tests.parity.padding import draw_filler, draw_rows, pad


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("architecture", hf_models.ARCHITECTURES)
@settings(max_examples=5)
@given(data=st.data())
def test_padding_changes_nothing(architecture: str, side: str, data: st.DataObject) -> None:
    assert_padding(data, architecture, side)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", hf_models.ARCHITECTURES)
@settings(max_examples=100)
@given(data=st.data(), side=st.sampled_from(("left", "right")))
def test_padding_over_many_configs(architecture: str, data: st.DataObject, side: str) -> None:
    assert_padding(data, architecture, side)


def assert_padding(data: st.DataObject, architecture: str, side: str) -> None:
    """Draw a model and a ragged batch, and compare it with its rows."""
    drawn = data.draw(hf_models.models(architecture))
    theirs = drawn.build()
    ours = ours_of(theirs)
    count = data.draw(st.integers(2, 3))
    rows = draw_rows(data, drawn.vocab_size, count, 30 if drawn.kind == "decoder" else 15)
    rows = [drawn.as_text(row) for row in rows]
    given_ = _batch(data, drawn, rows, side)
    sources = None
    if drawn.kind == "seq2seq" and not drawn.classifies_texts:
        sources = draw_rows(data, drawn.options["vocab_size"], count, 15)
        filler = draw_filler(data, drawn, drawn.options["vocab_size"])
        given_ |= {"source": pad(sources, side, filler), "source_mask": ragged(list(map(len, sources)), side)}
    try:
        _assert_equal(drawn, ours, lambda: drawn.build() if drawn.is_dynamic else theirs, rows, sources, given_)
    except AssertionError:
        # A few draws are so badly conditioned that rounding is more than 1e-5: there is none in float64.
        with Float64():
            _assert_equal(drawn, widened(ours), lambda: build_wide(drawn), rows, sources, given_, EQUAL)


def _assert_equal(
    drawn: ModelSpec,
    ours: Transformer,
    build: Callable[[], PreTrainedModel],
    rows: list[Tensor],
    sources: list[Tensor] | None,
    given_: dict[str, Tensor],
    tolerance: float = TOLERANCE,
) -> None:
    """Raise unless each row of a batch is that row alone, and that row in Hugging Face's model."""
    close = partial(assert_close, tolerance=tolerance)
    with torch.no_grad():
        batch = ours(**given_, return_hidden=True)
        for index, row in enumerate(rows):
            source = None if sources is None else sources[index][None]
            alone = ours(row[None], source, return_hidden=True)
            expected: Any = build()(**Inputs(row[None], source).theirs)
            real = given_["mask"][index]
            for layer, (a, b) in enumerate(zip(batch.hidden_states, alone.hidden_states, strict=True)):
                close(a[index][real], b[0], f"row {index}, hidden state {layer}")
            if alone.pooled is not None:
                close(batch.pooled[index], alone.pooled[0], f"row {index}, pooled")
            if not drawn.has_head:
                close(batch.hidden[index][real], expected.last_hidden_state[0], f"row {index}, hidden, theirs")
                continue
            logits = batch.logits[index]
            logits = logits if "SequenceClassification" in drawn.architecture else logits[real]
            # Where a text has only a label or two, their scores may happen to be near zero.
            close(logits, alone.logits[0], f"row {index}, logits", floor=0.2)
            close(logits, expected.logits[0], f"row {index}, logits, theirs", floor=0.2)


def _batch(data: st.DataObject, drawn: ModelSpec, rows: list[Tensor], side: str) -> dict[str, Tensor]:
    filler = draw_filler(data, drawn, drawn.vocab_size)
    return {"tokens": pad(rows, side, filler), "mask": ragged(list(map(len, rows)), side)}
