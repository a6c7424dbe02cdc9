"""A decoder does not look ahead: a changed token changes no earlier answer."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.parity import hf_models
from tests.parity.conversion import assert_close, ours_of
from tests.parity.model_spec import draw_inputs


@pytest.mark.parametrize("architecture", hf_models.GENERATORS)
@given(data=st.data())
def test_nothing_leaks_from_the_future(architecture: str, data: st.DataObject) -> None:
    drawn = data.draw(hf_models.models(architecture))
    model = ours_of(drawn.build())
    inputs = data.draw(draw_inputs(drawn))
    place = data.draw(st.integers(0, inputs.tokens.shape[1] - 1))
    changed = inputs.tokens.clone()
    changed[:, place] = (changed[:, place] + data.draw(st.integers(1, drawn.vocab_size - 1))) % drawn.vocab_size
    with torch.no_grad():
        before = model(inputs.tokens, inputs.source).logits
        after = model(changed, inputs.source).logits
    if model.config.feed_forward.experts is None:
        assert torch.equal(before[:, :place], after[:, :place])
    else:  # which rows an expert multiplies at a time rounds them
        assert_close(before[:, :place], after[:, :place], "logits before the change")
    assert not torch.equal(before[:, place], after[:, place])
