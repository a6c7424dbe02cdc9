"""Scores of given tokens, against the model on each text alone: log-likelihoods of continuations, against one pass over
each whole text, and pseudo-log-likelihoods, against Hugging Face's models run on one masked text at a time."""

import ast
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import anyformer as af
from anyformer.errors import UserError
from anyformer.evaluation import scorer
from anyformer.evaluation.scorer import Continuation, MaskedText, Query, Scorer, log_likelihoods, pseudo_log_likelihoods
from anyformer.generation.prompt import decoder_start_id
from anyformer.model import Transformer
from tests.evaluation.models import encoder
from tests.generation.models import VOCAB, WRITERS, build
from tests.parity import hf_models
from tests.parity.conversion import ours_of

MODELS = {name: build(config) for name, config in WRITERS.items()}
MODELS["encoder"] = encoder({"kind": "language_model"})[0]


@st.composite
def queries(draw: st.DrawFn) -> list[Query]:
    """Texts that begin alike and equal ones, of which a stretch is scored."""
    token = st.integers(3, VOCAB - 1)
    begin = draw(st.lists(token, max_size=5))
    found = list[Query]()
    for _ in range(draw(st.integers(1, 5))):
        tokens = [*begin * draw(st.integers(0, 1)), *draw(st.lists(token, min_size=1, max_size=8))]
        first = draw(st.integers(0, len(tokens) - 1))
        targets = draw(st.lists(token, min_size=1, max_size=len(tokens) - first))
        found.append(Query(tokens, first, targets, draw(st.sampled_from(([4, 5, 6], [7])))))
    return found


@pytest.mark.parametrize("name", ["rotary", "dynamic", "n-grams", "relative both", "encoder"])
@settings(max_examples=16)
@given(asked=queries(), limit=st.sampled_from([3, 512]), batch_size=st.none() | st.integers(1, 2))
def test_scores_are_those_of_the_text_alone(name: str, asked: list[Query], limit: int, batch_size: int | None) -> None:
    model, counts = MODELS[name], list[int]()
    if not model.config.is_encoder_decoder:
        asked = [query._replace(source=()) for query in asked]
    with pytest.MonkeyPatch.context() as patch:
        for limited in ("_SCORED_TOKENS", "_HELD_LOGITS", "_WORTH_SHARING"):
            patch.setattr(scorer, limited, limit)
        found = Scorer(model, batch_size)(asked, counts.append)
    assert sum(counts) == len(asked)
    for (tokens, first, targets, source), score in zip(asked, found, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([tokens]), torch.tensor([source]) if source else None).logits
        assert logits is not None
        expected = logits[0, first : first + len(targets)].log_softmax(-1)
        chosen = expected.gather(1, torch.tensor(targets)[:, None])[:, 0]
        assert score.logprobs == pytest.approx(chosen.tolist(), rel=1e-4, abs=1e-4)
        assert score.is_greedy == (expected.argmax(-1).tolist() == targets)


@pytest.mark.parametrize("name", ["rotary", "relative both", "encoder"])
def test_damaged_weights_are_said(name: str) -> None:
    model = encoder({"kind": "language_model"})[0] if name == "encoder" else build(WRITERS[name])
    source = [5] if model.config.is_encoder_decoder else []
    model.load_state_dict({name: weight * torch.nan for name, weight in model.state_dict().items()})
    with pytest.raises(UserError, match="NaN"):
        Scorer(model)([Query([7, 8], 0, [8], source)])


def test_nothing_else_scores_tokens() -> None:
    """Log-probabilities of the vocabulary are taken by what generates, what trains, and one that scores."""
    names = {"log_softmax", "logsumexp", "cross_entropy", "token_losses"}
    found = set[str]()
    root = Path(af.__file__).parent
    for room in ("evaluation", "compare", "tasks"):
        for path in (root / room).rglob("*.py"):
            calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
            if any(isinstance(call.func, ast.Attribute) and call.func.attr in names for call in calls):
                found.add(path.relative_to(root).as_posix())
    # The others are of labels, and a divergence of whole distributions.
    others = {
        "compare/tasks/classifier.py",
        "evaluation/perplexity.py",
        "evaluation/logits.py",
        "tasks/tag.py",
    }
    assert found == {"evaluation/scorer.py", *others}


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
@example("rotary", [Continuation([7, 8, 9], [3]), Continuation([7], [3, 5]), Continuation([8], [4, 5, 6])], 6, 4, False)
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


MASK, LEAST_ID = 5, 6


@st.composite
def masked_texts(draw: st.DrawFn, vocab_size: int) -> list[MaskedText]:
    """Words of one to three tokens, some texts begin alike."""
    token = st.integers(LEAST_ID, vocab_size - 1)
    begin = draw(st.lists(st.lists(token, min_size=1, max_size=3), max_size=2))
    texts = list[MaskedText]()
    for _ in range(draw(st.integers(1, 5))):
        words = [*begin, *draw(st.lists(st.lists(token, min_size=1, max_size=3), min_size=1, max_size=4))]
        ids = [id_ for word in words for id_ in word]
        numbers = [number for number, word in enumerate(words) for _ in word]
        scored = draw(st.lists(st.integers(0, len(ids) - 1), min_size=1, unique=True))
        texts.append(MaskedText(ids, numbers, scored))
    return texts


@pytest.mark.parametrize("architecture", ["BertForMaskedLM", "RobertaForMaskedLM", "DistilBertForMaskedLM"])
@settings(max_examples=16)
@given(data=st.data())
def test_they_are_those_of_transformers(architecture: str, data: st.DataObject) -> None:
    drawn = data.draw(hf_models.models(architecture))
    texts = data.draw(masked_texts(drawn.vocab_size))
    theirs: Any = drawn.build().eval()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scorer, "_READ_TOKENS", data.draw(st.sampled_from([1, 30, 4096])))
        found = pseudo_log_likelihoods(ours_of(theirs), texts, MASK)
    for text, scores in zip(texts, found, strict=True):
        assert len(scores) == len(text.scored)
        for place, score in zip(text.scored, scores, strict=True):
            ids = torch.tensor([text.ids])
            end = max(other for other, word in enumerate(text.words) if word == text.words[place])
            ids[0, place : end + 1] = MASK
            with torch.no_grad():
                expected = theirs(ids).logits[0, place].log_softmax(-1)[text.ids[place]]
            assert score == pytest.approx(float(expected), rel=1e-5, abs=1e-5)


def test_what_texts_have_in_common_is_computed_once() -> None:
    model, tokenizer = encoder({"kind": "language_model"})
    assert tokenizer.mask is not None
    assert model.encoder is not None
    read = list[int]()
    model.encoder.register_forward_pre_hook(lambda _, inputs: read.append(len(inputs[0])))
    texts = [MaskedText((7, 8, last, 9), (0, 1, 2, 3), (2,)) for last in (10, 11, 12, 10)]
    found = pseudo_log_likelihoods(model, texts, tokenizer.mask)
    assert read == [1]
    assert found[0] == found[3] != found[1]


def test_only_fillers_of_masks_have_them() -> None:
    for preset in ("gpt2", "t5-small"):
        changes = {"d_model": 16, "attention": {"heads": 2, "head_dim": 8}, "vocab_size": 40}
        with pytest.raises(UserError, match="masked-language-model head"):
            pseudo_log_likelihoods(af.build(af.preset(preset, **changes)), [MaskedText((1,), (0,), (0,))], 2)


def test_bad_input_is_a_sentence() -> None:
    model, tokenizer = encoder({"kind": "language_model"}, max_length=6)
    assert tokenizer.mask is not None
    with pytest.raises(UserError, match="Text 2 has 7 tokens, and the model can read 6"):
        pseudo_log_likelihoods(model, [MaskedText((7,), (0,), (0,)), MaskedText((7,) * 7, (0,) * 7, (0,))], 4)
    with pytest.raises(UserError, match="outside the model's vocabulary"):
        pseudo_log_likelihoods(model, [MaskedText((7, 4000), (0, 1), (1,))], tokenizer.mask)
    torch.nn.init.constant_(model.token_embedding.weight, math.nan)
    with pytest.raises(UserError, match="NaN"):
        pseudo_log_likelihoods(model, [MaskedText((7,), (0,), (0,))], tokenizer.mask)
