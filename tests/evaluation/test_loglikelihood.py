"""Log-likelihoods of continuations, against one pass over each whole text."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anyformer.errors import UserError
from anyformer.evaluation import scorer
from anyformer.evaluation.scorer import Continuation, log_likelihoods
from anyformer.generation.prompt import decoder_start_id
from anyformer.model import Transformer
from tests.generation.models import VOCAB, WRITERS, build

MODELS = {name: build(config) for name, config in WRITERS.items()}


def _alone(model: Transformer, context: list[int], ids: list[int], longest: int) -> tuple[float, bool]:
    if model.config.is_encoder_decoder:
        source, read = torch.tensor([context[-longest:]]), torch.tensor([[decoder_start_id(model), *ids[:-1]]])
    else:
        source, read = None, torch.tensor([(context + ids)[-longest - 1 : -1]])
    with torch.no_grad():
        logits = model(read, source).logits
    assert logits is not None
    log_p = logits[0, -len(ids) :].log_softmax(-1)
    target = torch.tensor(ids)
    return float(log_p.gather(1, target[:, None]).sum()), bool((log_p.argmax(-1) == target).all())


@st.composite
def requests(draw: st.DrawFn) -> list[Continuation]:
    """Contexts that several continuations share, that begin alike, and some alone; equal continuations, too."""
    token = st.integers(0, VOCAB - 1)
    begin = draw(st.lists(token, max_size=6))
    contexts = draw(st.lists(st.lists(token, min_size=1, max_size=9), min_size=1, max_size=4))
    contexts = [begin + rest if draw(st.booleans()) else rest for rest in contexts]
    ids = st.lists(st.sampled_from([3, 4]) | token, min_size=1, max_size=5)
    return [Continuation(context, tail) for context in contexts for tail in draw(st.lists(ids, min_size=1, max_size=4))]


@given(st.sampled_from(sorted(WRITERS)), requests(), st.sampled_from([6, 20]), st.sampled_from([4, 512]), st.booleans())
@settings(max_examples=40)
def test_each_is_that_of_its_text_alone(
    name: str, asked: list[Continuation], longest: int, scored: int, shares: bool
) -> None:
    model = MODELS[name]
    longest = min(longest, model.config.max_length)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scorer, "_SCORED_TOKENS", scored)
        patch.setattr(scorer, "_HELD_LOGITS", scored)
        patch.setattr(scorer, "_WORTH_SHARING", 1 if shares else 100)
        found = log_likelihoods(model, asked, max_length=longest)
    assert len(found) == len(asked)
    for each, score in zip(asked, found, strict=True):
        logprob, is_greedy = _alone(model, list(each.context), list(each.ids), longest)
        assert score.logprob == pytest.approx(logprob, rel=1e-4, abs=1e-4)
        assert score.is_greedy == is_greedy
        assert len(score.logprobs) == len(each.ids)


def test_what_is_greedy_is_found() -> None:
    model = MODELS["rotary"]
    with torch.no_grad():
        logits = model(torch.tensor([[5, 6, 7]])).logits
    assert logits is not None
    best = int(logits[0, -1].argmax())
    found = log_likelihoods(model, [Continuation([5, 6, 7], [token]) for token in (best, (best + 1) % VOCAB)])
    assert [each.is_greedy for each in found] == [True, False]


def test_contexts_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, read = MODELS["rotary"], list[int]()

    class Step(scorer.DecoderStep):
        def __call__(self, tokens: Any, *arguments: Any, **keywords: Any) -> Any:
            read.append(tokens.numel())
            return super().__call__(tokens, *arguments, **keywords)

    monkeypatch.setattr(scorer, "DecoderStep", Step)
    context = list(range(20))
    log_likelihoods(model, [Continuation(context, [first, 2]) for first in range(8)])
    # All of the context but its last token; that one and the first of each continuation.
    assert read == [19, 16]
    read.clear()
    log_likelihoods(model, [Continuation(context, [first]) for first in range(8)])
    assert read == [19, 1]


def test_progress_counts_all() -> None:
    counts: list[int] = []
    asked = [Continuation([1, 2], [token]) for token in range(VOCAB)] * 2
    log_likelihoods(MODELS["learned"], asked, progress=counts.append)
    assert sum(counts) == len(asked)


def test_what_can_not_be_scored_is_refused() -> None:
    model = MODELS["learned"]
    for context, ids in (([], [1]), ([1], []), ([1], [1] * 49)):
        with pytest.raises(ValueError, match="a continuation has a context and from 1 to 48 tokens"):
            log_likelihoods(model, [Continuation(context, ids)])
    with pytest.raises(UserError, match=f"Token id {VOCAB} is outside"):
        log_likelihoods(model, [Continuation([1], [VOCAB])])
    with pytest.raises(UserError, match=f"Token id {VOCAB} is outside"):
        log_likelihoods(model, [Continuation([VOCAB], [1])])
    assert log_likelihoods(model, []) == []
