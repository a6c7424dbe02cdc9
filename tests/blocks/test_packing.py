"""Batches are packed and unpacked without a loss."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from anyformer.blocks.packing import Packing


@given(st.data())
def test_tokens_come_back_to_their_places(data: st.DataObject) -> None:
    batch, time = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    rows = st.lists(st.booleans(), min_size=time, max_size=time)
    mask = torch.tensor(
        data.draw(st.lists(rows, min_size=batch, max_size=batch).filter(lambda rows: any(map(any, rows))))
    )
    packing = Packing.of(mask)
    x = torch.randn(batch, time, 2, 3)
    packed = packing.pack(x)
    assert torch.equal(packed, x[mask][None])
    assert torch.equal(packing.unpack(packed)[mask], x[mask])
    index = torch.tensor([data.draw(st.integers(0, time - 1)) for _ in range(batch)])
    real = mask[torch.arange(batch), index]
    assert torch.equal(packed[0, packing.select(index)][real], x[torch.arange(batch), index][real])


def test_without_padding_nothing_changes() -> None:
    x, index = torch.randn(2, 3, 4), torch.tensor([2, 0])
    assert Packing().pack(x) is x
    assert Packing().unpack(x) is x
    assert Packing().select(index) is index
