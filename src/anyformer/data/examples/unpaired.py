"""Preferences of answers that were judged one by one: each good one is paired with a bad one to the same prompt."""

from __future__ import annotations

from collections.abc import Sequence

from anyformer.data.examples import PreferenceExample
from anyformer.data.examples.parts import Parts, fault
from anyformer.data.examples.preferences import is_good, text_preference
from anyformer.data.examples.rows import Row
from anyformer.data.examples.tasks import Reading
from anyformer.errors import UserError


def pair_up(rows: Sequence[tuple[Row, Reading]]) -> tuple[list[PreferenceExample], str | None]:
    """Pair rows of prompt, completion and label.

    Returns:
        The pairs, and how many rows were left out, for people; None where all have a counterpart.

    Raises:
        UserError: A row is faulty, or no prompt has both a good and a bad answer.
    """
    answers = dict[str, dict[bool, list[tuple[Parts, str]]]]()
    for row, reading in rows:
        parts = Parts(row, reading)
        good = is_good(parts.value("label"))
        if good is None:
            raise fault(row.where, "has a label that doesn't say whether the completion is good", "use true or false")
        of_prompt = answers.setdefault(parts.text("prompt"), {True: [], False: []})
        of_prompt[good].append((parts, parts.text("completion")))
    pairs = [
        text_preference(parts, prompt, chosen, rejected)
        for prompt, both in answers.items()
        for (parts, chosen), (_, rejected) in zip(both[True], both[False], strict=False)
    ]
    if not pairs:
        raise UserError(
            f"{rows[0][0].where.path} has a label for each completion, and no prompt with both a good and a bad one: "
            "preferences are learned from pairs, as in the columns 'prompt', 'chosen' and 'rejected'."
        )
    left = len(rows) - 2 * len(pairs)
    return pairs, f"{left:,} rows without a counterpart left out" if left else None
