"""Preferences of answers that were judged one by one: each good one is paired with a bad one to the same prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from anyformer.data.examples import PreferenceExample
from anyformer.data.examples.parts import Parts, fault
from anyformer.data.examples.preferences import preference
from anyformer.data.examples.tasks import Reading, find_reading
from anyformer.data.rows import Row
from anyformer.errors import UserError

_WORDS: Mapping[str, bool] = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def pair_up(rows: Sequence[tuple[Row, Reading]]) -> tuple[list[PreferenceExample], str | None]:
    """Pair rows of prompt, completion and label.

    Returns:
        The pairs, and how many rows were left out, for people; None where all have a counterpart.

    Raises:
        UserError: A row is faulty, or no prompt has both a good and a bad answer.
    """
    answers = dict[str, dict[bool, list[Parts]]]()
    for row, reading in rows:
        parts = Parts(row, reading)
        good = _is_good(parts.value("label"))
        if good is None:
            raise fault(row.where, "has a label that doesn't say whether the completion is good", "use true or false")
        parts.value("completion")
        answers.setdefault(repr(parts.value("prompt")), {True: [], False: []})[good].append(parts)
    pairs = [_pair(good, bad) for both in answers.values() for good, bad in zip(both[True], both[False], strict=False)]
    if not pairs:
        raise UserError(
            f"{rows[0][0].where.path} has a label for each completion, and no prompt with both a good and a bad one: "
            "preferences are learned from pairs, as in the columns 'prompt', 'chosen' and 'rejected'."
        )
    left = len(rows) - 2 * len(pairs)
    return pairs, f"{left:,} rows without a counterpart left out" if left else None


def _pair(good: Parts, bad: Parts) -> PreferenceExample:
    values = {
        "prompt": good.value("prompt"),
        "chosen": good.value("completion"),
        "rejected": bad.value("completion"),
    }
    return preference(Parts(Row(good.where, values), find_reading(values, good.where, "preference")))


def _is_good(value: object) -> bool | None:
    """What the label of an answer says; None where it says nothing."""
    return _WORDS.get(str(value).lower()) if isinstance(value, bool | int | float | str) else None
