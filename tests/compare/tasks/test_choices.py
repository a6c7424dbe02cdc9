"""Which text is the likelier: every objective against one pass over each text, or what is written out by hand."""

from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anyformer.compare.tasks.choices import Choice, differences, log_scores
from anyformer.errors import UserError
from tests.compare.tasks.corpora import OBJECTIVES, Candidate, tokenizer, untrained

IDS = st.integers(20, 50)


@st.composite
def variants(draw: st.DrawFn) -> list[Choice]:
    """Two texts that differ in some places behind the first."""
    text = draw(st.lists(IDS, min_size=3, max_size=12))
    places = draw(st.sets(st.integers(1, len(text) - 1), min_size=1))
    other = [id_ + 1 if place in places else id_ for place, id_ in enumerate(text)]
    both = tuple(text), tuple(other)
    return [Choice(ids, differences(both)) for ids in both]


def _logprob(candidate: Candidate, read: list[int], source: list[int] | None, targets: dict[int, int]) -> float:
    """The summed log-probability of ids at places of what is read."""
    ids = None if source is None else torch.tensor([source])
    with torch.no_grad():
        logits = candidate.model(torch.tensor([read]), ids).logits
    assert logits is not None
    return sum(float(logits[0, place].log_softmax(-1)[id_]) for place, id_ in targets.items())


def _expected(candidate: Candidate, choice: Choice) -> float:
    made, ids, first = candidate.tokenizer, list(choice.ids), choice.spans[0][0]
    pad, eos = made.pad, made.eos
    if candidate.objective == "causal":
        assert made.separator is not None
        return _logprob(candidate, [made.separator, *ids[:-1]], None, {n: ids[n] for n in range(first, len(ids))})
    if candidate.objective == "masked":
        assert made.cls is not None
        assert made.sep is not None
        assert made.mask is not None
        score = 0.0
        for begin, end in choice.spans:
            for place in range(begin, end):
                hidden = [made.mask if place <= other < end else id_ for other, id_ in enumerate(ids)]
                score += _logprob(candidate, [made.cls, *hidden, made.sep], None, {place + 1: ids[place]})
        return score
    assert pad is not None
    assert eos is not None
    if candidate.objective == "prefix":
        rest = ids[first:]
        return _logprob(candidate, [pad, *rest[:-1]], [*ids[:first], eos], dict(enumerate(rest)))
    sentinels = [made.id(f"<extra_id_{number}>") for number in range(len(choice.spans))]
    edges = [0, *chain.from_iterable(choice.spans), len(ids)]
    kept = [ids[begin:end] for begin, end in zip(edges[::2], edges[1::2], strict=True)]
    source = [id_ for part, sentinel in zip(kept, sentinels, strict=False) for id_ in [*part, sentinel]]
    target = [
        id_ for (begin, end), blank in zip(choice.spans, sentinels, strict=True) for id_ in [blank, *ids[begin:end]]
    ]
    return _logprob(candidate, [pad, *target], [*source, *kept[-1], eos], dict(enumerate([*target, eos])))


@pytest.mark.parametrize("preset", OBJECTIVES)
@settings(max_examples=24)
@given(variants())
def test_scores_are_those_of_the_objective(preset: str, both: list[Choice]) -> None:
    candidate = untrained(preset)
    scores = log_scores(candidate.model, candidate.tokenizer, both, whole=False)
    assert scores == pytest.approx([_expected(candidate, choice) for choice in both], rel=1e-4, abs=1e-4)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=20))
def test_differences_are_the_longest_stretches(pairs: list[tuple[int, int]]) -> None:
    a, b = zip(*pairs, strict=True)
    places = {place for begin, end in differences([a, b]) for place in range(begin, end)}
    assert places == {place for place, (left, right) in enumerate(pairs) if left != right}
    ends = [end for _, end in differences([a, b])]
    assert not {begin for begin, _ in differences([a, b])} & set(ends)


def test_a_tokenizer_without_the_mask_of_a_masked_model_is_refused() -> None:
    with pytest.raises(UserError, match="tokenizer with"):
        log_scores(untrained("bert").model, tokenizer("causal"), [Choice((41, 42), ((1, 2),))], whole=True)
