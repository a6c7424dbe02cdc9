"""A decoder does not look ahead: a changed token changes no earlier answer."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.parity import hf
from tests.parity.ours import ours_of


@pytest.mark.parametrize("architecture", hf.GENERATORS)
@given(data=st.data())
def test_nothing_leaks_from_the_future(architecture: str, data: st.DataObject) -> None:
    drawn = data.draw(hf.models(architecture))
    model = ours_of(drawn.build())
    inputs = data.draw(hf.draw_inputs(drawn))
    place = data.draw(st.integers(0, inputs.tokens.shape[1] - 1))
    changed = inputs.tokens.clone()
    changed[:, place] = (changed[:, place] + data.draw(st.integers(1, drawn.vocab_size - 1))) % drawn.vocab_size
    with torch.no_grad():
        before = model(inputs.tokens, inputs.source).logits
        after = model(changed, inputs.source).logits
    assert torch.equal(before[:, :place], after[:, :place])
    assert not torch.equal(before[:, place], after[:, place])
