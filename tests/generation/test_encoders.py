"""One vector a text, pooled as the model says, whatever else is in the batch; and the words behind masks."""

import inspect
from importlib import import_module
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from anyformer.config import EmbeddingConfig, HeadConfig, ModelConfig, PoolingConfig, PositionConfig
from anyformer.errors import UserError
from anyformer.generation import embed, fill
from anyformer.generation.encoders import _MAX_TOKENS, _batches  # pyright: ignore[reportPrivateUsage]
from anyformer.model import Transformer
from anyformer.tokenizer import Tokenizer
from tests.generation.models import BOTH, build, config

TEXTS = ["the cat sat on the mat", "a", "dogs", "", "the dog ran to the cat and the cat ran to the mat", "cat, dog"]
KINDS = {
    "encoder": config(encoder_layers=2, decoder_layers=0),
    "bare encoder": config(encoder_layers=2, decoder_layers=0, head=HeadConfig(kind="none", pooler="tanh")),
    "skips padding": config(
        encoder_layers=2,
        decoder_layers=0,
        position=PositionConfig(offset=2, skip_padding=True),
        embedding=EmbeddingConfig(padding=0),
    ),
    "decoder": config(position=PositionConfig(kind="rotary")),
    "both": config(**BOTH, position=PositionConfig(kind="relative")),
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, "wordpiece:60", special="masked")


def make(tokenizer: Tokenizer, made: ModelConfig, pooling: PoolingConfig) -> Transformer:
    return build(made.replace(vocab_size=tokenizer.vocab_size, pooling=pooling))


def alone(model: Transformer, ids: list[int]) -> Tensor:
    tokens = torch.tensor([ids])
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            return model.encode(tokens)[0]
        return model(tokens).hidden[0]


def pool(hidden: Tensor, pooling: PoolingConfig) -> Tensor:
    vector = {"mean": hidden.mean(0), "first": hidden[0], "last": hidden[-1], "max": hidden.max(0).values}[pooling.kind]
    return vector / vector.norm() if pooling.normalize else vector


@pytest.mark.parametrize("batch_size", [None, 1, 2, 4])
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("kind", ["mean", "first", "last", "max"])
def test_vectors(tokenizer: Tokenizer, name: str, kind: str, batch_size: int | None) -> None:
    pooling = PoolingConfig(kind=kind, normalize=batch_size == 4)
    model = make(tokenizer, KINDS[name], pooling).train()
    vectors = embed(model, tokenizer, TEXTS, batch_size=batch_size)
    assert model.training
    assert vectors.shape == (len(TEXTS), 16)
    assert vectors.dtype == torch.float32
    model.eval()
    expected = torch.stack([pool(alone(model, tokenizer.encode(text)), pooling) for text in TEXTS])
    torch.testing.assert_close(vectors, expected, rtol=1e-4, atol=1e-5)


def test_long_texts_keep_their_special_tokens(tokenizer: Tokenizer) -> None:
    pooling = PoolingConfig(max_tokens=6)
    model = make(tokenizer, KINDS["encoder"], pooling)
    text = TEXTS[4]
    ids = tokenizer.encode(text)
    cut = [*ids[:5], ids[-1]]
    assert ids[-1] == tokenizer.sep
    vectors = embed(model, tokenizer, [text, "a"])
    torch.testing.assert_close(vectors[0], alone(model, cut).mean(0), rtol=1e-4, atol=1e-5)
    # The context is a limit too, where there is one.
    model = make(tokenizer, KINDS["encoder"].replace(max_length=6), PoolingConfig(max_tokens=99))
    torch.testing.assert_close(embed(model, tokenizer, text)[0], alone(model, cut).mean(0), rtol=1e-4, atol=1e-5)


def test_bfloat16_vectors_are_float32(tokenizer: Tokenizer) -> None:
    model = make(tokenizer, KINDS["encoder"], PoolingConfig(normalize=True)).bfloat16()
    vectors = embed(model, tokenizer, TEXTS)
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(TEXTS)))


def test_bfloat16_products_of_a_float32_model(tokenizer: Tokenizer) -> None:
    model = make(tokenizer, KINDS["encoder"], PoolingConfig(normalize=True))
    exact, vectors = embed(model, tokenizer, TEXTS), embed(model, tokenizer, TEXTS, dtype=torch.bfloat16)
    assert vectors.dtype == torch.float32
    assert not torch.equal(vectors, exact)
    torch.testing.assert_close(vectors, exact, rtol=0, atol=2e-2)
    assert torch.equal(embed(model, tokenizer, TEXTS), exact)


@pytest.mark.parametrize("gain", [0.5, 2.0])
def test_the_fastest_dtype(gain: float, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(tokenizer, KINDS["encoder"], PoolingConfig(normalize=True))
    module = import_module("anyformer.generation.encoders")
    monkeypatch.setattr(module, "product_seconds", lambda products, training: {"float32": gain, "bfloat16": 1.0})
    expected = embed(model, tokenizer, TEXTS, dtype=torch.bfloat16 if gain > 1 else None)
    assert torch.equal(embed(model, tokenizer, TEXTS, dtype="fastest"), expected)
    assert embed(model.bfloat16(), tokenizer, TEXTS, dtype="fastest").dtype == torch.float32


def test_processors_that_prepack_no_bfloat16(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", None)
    model = make(tokenizer, KINDS["encoder"], PoolingConfig(normalize=True))
    exact, vectors = embed(model, tokenizer, TEXTS), embed(model, tokenizer, TEXTS, dtype=torch.bfloat16)
    torch.testing.assert_close(vectors, exact, rtol=0, atol=2e-2)


@given(st.lists(st.integers(1, 600), max_size=80), st.none() | st.integers(1, 50), st.integers(1, _MAX_TOKENS))
def test_batches(lengths: list[int], most: int | None, enough: int) -> None:
    """Every text is in one batch, and a batch with enough tokens of its longest text has no padding."""
    batches = list(_batches(lengths, most or len(lengths), enough))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert all(1 <= len(batch) <= (most or len(lengths)) for batch in batches)
    for batch in batches:
        mine = [lengths[index] for index in batch]
        assert mine == sorted(mine, reverse=True)
        different = sum(length < mine[0] for length in mine)
        assert different == 0 or mine[0] * (len(mine) - 1) < enough
        assert mine[0] * (len(mine) - 1) < _MAX_TOKENS


def test_vectors_can_be_trained_on(tokenizer: Tokenizer) -> None:
    model = make(tokenizer, KINDS["encoder"], PoolingConfig())
    vectors = embed(model, tokenizer, ["a"])
    assert not vectors.is_inference()
    assert not vectors.requires_grad
    assert torch.nn.Linear(16, 2)(vectors).requires_grad


def test_mistakes(tokenizer: Tokenizer) -> None:
    model = make(tokenizer, KINDS["encoder"], PoolingConfig())
    assert embed(model, tokenizer, []).shape == (0, 16)
    with pytest.raises(UserError, match="without a tokenizer"):
        embed(model, None, ["a"])
    with pytest.raises(UserError, match="batch_size"):
        embed(model, tokenizer, ["a"], batch_size=0)
    with pytest.raises(UserError, match="vocabulary of 5"):
        embed(build(config(vocab_size=5, encoder_layers=1, decoder_layers=0)), tokenizer, ["the cat"])
    with pytest.raises(UserError, match=r"raise pooling\.max_tokens"):
        embed(make(tokenizer, KINDS["encoder"], PoolingConfig(max_tokens=2)), tokenizer, ["the cat"])
    plain = Tokenizer.train(["ab"], "char")
    with pytest.raises(UserError, match="Text 2 of 2 is empty"):
        embed(model, plain, ["a", ""])


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


def test_texts_and_models_without_masks(tokenizer: Tokenizer) -> None:
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


def test_rows_are_no_texts(tokenizer: Tokenizer) -> None:
    model, rows = make(tokenizer, KINDS["encoder"], PoolingConfig()), {"review": ["the cat"], "stars": [1]}
    frame = pytest.importorskip("pandas").DataFrame(rows)
    with pytest.raises(UserError, match=r"A DataFrame has columns, .*\['review'\]"):
        inspect.unwrap(embed)(model, tokenizer, frame)
    assert torch.equal(embed(model, tokenizer, frame["review"]), embed(model, tokenizer, ["the cat"]))
    several: Any = ["[MASK] cat"]
    with pytest.raises(UserError, match="`fill` takes one text, not a list: call it for each of several"):
        inspect.unwrap(fill)(model, tokenizer, several)


def test_a_dtype_has_a_name(tokenizer: Tokenizer) -> None:
    model = make(tokenizer, KINDS["encoder"], PoolingConfig())
    named, given = (embed(model, tokenizer, ["the cat"], dtype=dtype) for dtype in ("bfloat16", torch.bfloat16))
    assert torch.equal(named, given)
    with pytest.raises(UserError, match="There is no dtype 'int7'"):
        embed(model, tokenizer, ["the cat"], dtype="int7")
