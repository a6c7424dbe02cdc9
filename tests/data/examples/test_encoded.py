from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from anyformer.data.examples.encoded import EncodedRow, Truncation, truncate


@given(st.lists(st.booleans(), max_size=20), st.one_of(st.none(), st.integers(0, 25)))
def test_what_is_cut_off_is_counted(learned: list[bool], context: int | None):
    row = EncodedRow(list(range(len(learned))), learned, 2)
    kept, cut = truncate(row, context)
    length = len(learned) if context is None else min(context, len(learned))
    assert list(kept.tokens) == list(range(length))
    assert list(kept.loss_mask) == learned[:length]
    assert kept.mismatches == 2
    assert cut.tokens == len(learned) - length
    assert cut.targets == row.targets - kept.targets
    assert cut.lost_end == (cut.targets > 0)
    assert cut.lost_all == (row.targets > 0 and kept.targets == 0)
    if cut.tokens == 0:
        assert (kept, cut) == (row, Truncation())
