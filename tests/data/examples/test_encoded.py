from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from anyformer.data.examples.encoded import Cut, LearnedTokens, truncate


@given(st.lists(st.booleans(), max_size=20), st.one_of(st.none(), st.integers(0, 25)))
def test_what_is_cut_off_is_counted(learned: list[bool], context: int | None):
    row = LearnedTokens(list(range(len(learned))), learned, 2)
    kept, cut = truncate(row, context)
    length = len(learned) if context is None else min(context, len(learned))
    assert list(kept.tokens) == list(range(length))
    assert list(kept.learned) == learned[:length]
    assert kept.mismatches == 2
    assert cut.tokens == len(learned) - length
    assert cut.learned == row.count - kept.count
    assert cut.lost_end == (cut.learned > 0)
    assert cut.lost_all == (row.count > 0 and kept.count == 0)
    if cut.tokens == 0:
        assert (kept, cut) == (row, Cut())
