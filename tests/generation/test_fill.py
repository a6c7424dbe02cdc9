"""The words behind masks."""

import pytest
import torch

from anyformer.config import HeadConfig
from anyformer.errors import UserError
from anyformer.generation import fill
from anyformer.model import Transformer
from anyformer.tokenizer import Tokenizer
from tests.generation.models import build, config


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["the cat sat on the mat", "the dog ran to the cat"], "wordpiece:50", special="masked")


def encoder(tokenizer: Tokenizer, head: str = "language_model") -> Transformer:
    heads = {"language_model": HeadConfig(transform="gelu", bias="learned"), "none": HeadConfig(kind="none")}
    made = config(vocab_size=tokenizer.vocab_size, encoder_layers=2, decoder_layers=0, max_length=12, head=heads[head])
    return build(made)


def test_a_list_for_each_mask(tokenizer: Tokenizer) -> None:
    model = encoder(tokenizer).train()
    text = "the [MASK] ran to [MASK] cat"
    answers = fill(model, tokenizer, text, top=4)
    assert model.training
    ids = tokenizer.encode(text)
    with torch.no_grad():
        chances = model.eval()(torch.tensor([ids])).logits[0].softmax(-1)
    places = [place for place, token in enumerate(ids) if token == tokenizer.mask]
    assert len(answers) == len(places) == 2
    for place, answer in zip(places, answers, strict=True):
        best = chances[place].topk(4)
        assert [candidate.token for candidate in answer] == best.indices.tolist()
        assert [candidate.probability for candidate in answer] == pytest.approx(best.values.tolist(), rel=1e-5)
        for candidate in answer:
            assert candidate.text == tokenizer.decode([candidate.token], skip_special=False)


def test_no_more_candidates_than_tokens(tokenizer: Tokenizer) -> None:
    answer = fill(encoder(tokenizer), tokenizer, "[MASK]", top=10_000)[0]
    assert len(answer) == tokenizer.vocab_size
    assert sum(candidate.probability for candidate in answer) == pytest.approx(1, abs=1e-5)


def test_mistakes(tokenizer: Tokenizer) -> None:
    model = encoder(tokenizer)
    with pytest.raises(UserError, match=r"no mask in the text: write \[MASK\]"):
        fill(model, tokenizer, "the cat")
    with pytest.raises(UserError, match=r"has \d+ tokens, and the model can read 12"):
        fill(model, tokenizer, "the [MASK] " * 9)
    with pytest.raises(UserError, match="top"):
        fill(model, tokenizer, "[MASK]", top=0)
    with pytest.raises(UserError, match="without a tokenizer"):
        fill(model, None, "[MASK]")
    with pytest.raises(UserError, match="no mask token"):
        fill(model, Tokenizer.train(["ab"], "char"), "a")
    with pytest.raises(UserError, match="no masked-language-model head"):
        fill(encoder(tokenizer, "none"), tokenizer, "[MASK]")
    with pytest.raises(UserError, match="use `generate`"):
        fill(build(config(vocab_size=tokenizer.vocab_size)), tokenizer, "[MASK]")
