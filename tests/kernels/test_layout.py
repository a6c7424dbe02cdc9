"""Batches are packed and unpacked without a loss."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from anyformer.kernels import Layout


@given(st.data())
def test_tokens_come_back_to_their_places(data: st.DataObject) -> None:
    batch, time = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    rows = st.lists(st.booleans(), min_size=time, max_size=time)
    mask = torch.tensor(
        data.draw(st.lists(rows, min_size=batch, max_size=batch).filter(lambda rows: any(map(any, rows))))
    )
    layout = Layout.of(mask)
    x = torch.randn(batch, time, 2, 3)
    packed = layout.gather(x)
    assert torch.equal(packed, x[mask][None])
    assert torch.equal(layout.scatter(packed)[mask], x[mask])
    index = torch.tensor([data.draw(st.integers(0, time - 1)) for _ in range(batch)])
    real = mask[torch.arange(batch), index]
    assert torch.equal(packed[0, layout.locate(index)][real], x[torch.arange(batch), index][real])


def test_without_padding_nothing_changes() -> None:
    x, index = torch.randn(2, 3, 4), torch.tensor([2, 0])
    assert Layout().gather(x) is x
    assert Layout().scatter(x) is x
    assert Layout().locate(index) is index
