"""Scores of given texts are what the model says of each token."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import anyformer as af
from anyformer.errors import UserError
from anyformer.generation import generate_ids
from anyformer.model import Transformer
from anyformer.tokenizer import Tokenizer

TEXT = "the quick brown fox jumps over the lazy dog and then the dog sleeps "


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([TEXT * 20], "bpe:300", special="seq2seq")


@pytest.fixture(scope="module")
def writer(tokenizer: Tokenizer) -> Transformer:
    torch.manual_seed(0)
    return af.build(af.preset("llama-nano", vocab_size=tokenizer.vocab_size)).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def translator(tokenizer: Tokenizer) -> Transformer:
    torch.manual_seed(0)
    return af.build(af.preset("transformer-tiny", vocab_size=tokenizer.vocab_size)).eval().requires_grad_(False)


texts = st.lists(st.sampled_from(TEXT.split()), min_size=1, max_size=6).map(" ".join)


@settings(max_examples=15)
@given(pairs=st.lists(st.tuples(texts, texts), min_size=1, max_size=4), batch_size=st.integers(1, 3))
def test_a_text_behind_a_prompt(
    writer: Transformer, tokenizer: Tokenizer, pairs: list[tuple[str, str]], batch_size: int
) -> None:
    prompts = [prompt + " " for prompt, _ in pairs]
    found = af.score(writer, tokenizer, [text for _, text in pairs], prompts, batch_size=batch_size)
    for (_, text), prompt, score in zip(pairs, prompts, found, strict=True):
        whole = tokenizer.encode(prompt + text, special=False)
        log_p = writer(torch.tensor([whole])).logits[0].log_softmax(-1)
        count = len(score.tokens)
        assert whole[-count:] == score.tokens
        assert tokenizer.decode(score.tokens).endswith(text)
        expected = [float(log_p[place - 1, whole[place]]) for place in range(len(whole) - count, len(whole))]
        assert score.logprobs == pytest.approx(expected, abs=1e-4)
        assert score.logprob == pytest.approx(sum(expected), abs=1e-3)
        assert score.perplexity == pytest.approx(math.exp(-sum(expected) / count), rel=1e-4)


def test_an_answer_to_a_source(translator: Transformer, tokenizer: Tokenizer) -> None:
    (score,) = af.score(translator, tokenizer, "the lazy dog", "the quick fox")
    source, target = (torch.tensor([tokenizer.encode(text)]) for text in ("the quick fox", "the lazy dog"))
    start = torch.tensor([[0]])
    log_p = translator(torch.cat((start, target[:, :-1]), dim=1), source).logits[0].log_softmax(-1)
    assert score.tokens == target[0].tolist()
    assert score.logprobs == pytest.approx(log_p.gather(1, target.T)[:, 0].tolist(), abs=1e-4)
    with pytest.raises(UserError, match="give the sources as prompts"):
        af.score(translator, tokenizer, "the lazy dog")


def test_the_text_that_greedy_search_writes_scores_best(writer: Transformer, tokenizer: Tokenizer) -> None:
    prompt = torch.tensor([tokenizer.encode("the quick", special=False)])
    new = generate_ids(writer, prompt, max_new_tokens=1, stop_at_eos=False)
    best, other = (tokenizer.decode([token]) for token in (int(new), (int(new) + 7) % 256 + 20))
    scores = af.score(writer, tokenizer, [best, other], "the quick")
    assert scores[0].logprob >= scores[1].logprob


def test_mistakes_are_said(writer: Transformer, tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="2 texts and 3 prompts"):
        af.score(writer, tokenizer, ["a", "b"], ["a", "b", "c"])
    with pytest.raises(UserError, match="Text 2 has no token"):
        af.score(writer, tokenizer, ["the dog sleeps", ""], "the ")
    with pytest.raises(UserError, match=r"Text 1 has [0-9,]+ tokens"):
        af.score(writer, tokenizer, TEXT * 200)
    frame = pytest.importorskip("pandas").DataFrame({"review": ["the dog", "a fox"]})
    assert af.score(writer, tokenizer, frame["review"]) == af.score(writer, tokenizer, ["the dog", "a fox"])
    for texts, prompts in ((frame, None), (frame["review"], frame)):
        with pytest.raises(UserError, match=r"A DataFrame has columns, .*\['review'\]"):
            af.score(writer, tokenizer, texts, prompts)
    with pytest.raises(UserError, match="without a tokenizer"):
        af.score(writer, None, "a")
    with pytest.raises(UserError, match="at least 1, not 0"):
        af.score(writer, tokenizer, "a", batch_size=0)
