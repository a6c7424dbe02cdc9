"""The rows that an evaluation shows."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyformer.cli.evaluate import show
from anyformer.data.examples import Where
from anyformer.evaluation import EvaluatedRow, Evaluation
from anyformer.evaluation.result import telling


def _row(number: int, length: int, loss: float, right: bool | None) -> EvaluatedRow:
    return EvaluatedRow(Where(Path("dev.csv"), number), "x" * length, "good", "bad", loss, right)


@given(
    st.lists(st.tuples(st.integers(1, 40), st.floats(0, 9), st.sampled_from([True, False, None])), max_size=40),
    st.integers(0, 6),
)
def test_the_shortest_of_what_is_most_wrong(rows: list[tuple[int, float, bool | None]], count: int) -> None:
    made = [_row(number, *each) for number, each in enumerate(rows)]
    found = [made[index] for index in telling(made, count)]
    wrong = [row for row in made if not row.right]
    assert len(found) == min(count, len(wrong))
    assert all(not row.right for row in found)
    assert [row.loss for row in found] == sorted((row.loss for row in found), reverse=True)
    for other in wrong:
        if found and not any(other is row for row in found):
            # Another one is longer than all that are shown, or the model is nearer to right.
            high = sorted((row.loss for row in wrong), reverse=True)[max(count, len(wrong) // 4) - 1]
            assert other.loss < high or len(other.text) >= max(len(row.text) for row in found)


def test_rows_are_shown_whole(capsys: pytest.CaptureFixture[str]) -> None:
    text = "a film that " + "nobody who has seen it would ever " * 20 + "watch again"
    rows = [
        EvaluatedRow(Where(Path("dev.csv"), 1), f"{text}\n{text}", text.replace("a", "b"), "bad", 9.0, False),
        *(EvaluatedRow(Where(Path("dev.csv"), 2 + n), 999 * text, "good", "bad", 8.0, False) for n in range(3)),
    ]
    show(Evaluation(task="classify", metrics={}, rows=rows), worst=1)
    said = " ".join(capsys.readouterr().out.split())
    assert f"dev.csv, line 1: {text} {text} right: {text.replace('a', 'b')} said: bad" in said
    assert "line 2" not in said
