"""Vectors for runs of tokens, beside a dictionary of runs."""

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.generation.models import VOCAB, WRITERS, batch, build, rows

import anyformer as af
from anyformer.blocks.embedding import NgramEmbedding, ngram_window
from anyformer.config import EmbeddingConfig, ModelConfig, PositionConfig
from anyformer.schema import ConfigError

LONGEST = 4
MADE: ModelConfig = WRITERS["rotary"].replace(embedding=EmbeddingConfig(tied=False, ngrams=LONGEST, ngram_rows=211))


def _signed(number: int) -> int:
    return (number + 2**63) % 2**64 - 2**63


def _row(run: tuple[int, ...], table: int) -> int:
    """The row of a run, its last token first, in whole numbers of Python."""
    factor = _signed(0x9E3779B97F4A7C15)
    mixed = run[0]
    for token in run[1:]:
        mixed = _signed(mixed * factor + token)
    return (_signed(mixed * factor) >> 24) % table


def _recent(texts: torch.Tensor, count: int) -> torch.Tensor:
    where = torch.arange(texts.shape[1])[None]
    return ngram_window(texts, where, where, count)


@given(st.lists(st.integers(0, 200_000), min_size=1, max_size=12), st.integers(2, 6), st.integers(1, 1_000))
@settings(max_examples=100)
def test_every_run_has_its_row(text: list[int], longest: int, size: int) -> None:
    embedding = NgramEmbedding(longest, size, 3)
    torch.nn.init.normal_(embedding.table)
    found = embedding(_recent(torch.tensor([text]), longest))[0]
    for place, vector in enumerate(found):
        before = [*reversed(text[: place + 1]), *[-1] * longest]
        runs = [tuple(before[:count]) for count in range(2, longest + 1)]
        expected = sum(embedding.table[_row(run, size)] for run in runs)
        torch.testing.assert_close(vector, expected)


@pytest.mark.parametrize("length", [2, 3])
def test_runs_are_spread_evenly(length: int) -> None:
    """As many rows are used as balls fill boxes, for the neighbors that characters are and for any other ids."""
    letters = 65 if length == 2 else 40
    for first, between in ((0, 1), (1_000, 1), (0, 256), (50_000, 4_096)):
        ids = [first + between * letter for letter in range(letters)]
        runs = torch.tensor(list(itertools.product(ids, repeat=length)))
        size = 1 << 15
        used = len(NgramEmbedding(length, size, 1).rows(runs[None])[0, :, -1].unique())
        expected = size * (1 - (1 - 1 / size) ** len(runs))
        assert used > 0.98 * expected


@given(rows(), st.sampled_from(["left", "right"]))
@settings(max_examples=30)
def test_padding_is_no_token(texts: list[list[int]], side: str) -> None:
    model = build(MADE)
    ids, mask = batch(texts, side)
    with torch.inference_mode():
        together = model(ids, mask=mask).logits
        for row, text in enumerate(texts):
            torch.testing.assert_close(together[row][mask[row]], model(torch.tensor([text])).logits[0])


@given(rows())
@settings(max_examples=30)
def test_runs_end_with_their_document(texts: list[list[int]]) -> None:
    model = build(MADE)
    packed = torch.tensor([list(itertools.chain(*texts))])
    documents = torch.tensor([list(itertools.chain(*([number] * len(text) for number, text in enumerate(texts))))])
    with torch.inference_mode():
        alone = [model(torch.tensor([text])).logits[0] for text in texts]
        torch.testing.assert_close(model(packed, documents=documents).logits[0], torch.cat(alone))


@pytest.mark.parametrize("both", [False, True])
def test_it_begins_as_the_model_without(both: bool) -> None:
    made = WRITERS["n-grams both"] if both else MADE
    torch.manual_seed(0)
    model = af.build(made).eval()
    plain = af.build(made.replace(**{"embedding.ngrams": 1})).eval()
    missing = plain.load_state_dict(model.state_dict(), strict=False)
    assert not missing.missing_keys
    assert all(name.endswith("ngrams.table") for name in missing.unexpected_keys)
    assert len(missing.unexpected_keys) == (2 if both else 1)
    ids = torch.randint(VOCAB, (2, 9))
    source = ids if both else None
    assert torch.equal(model(ids, source).logits, plain(ids, source).logits)


def test_only_rows_that_were_read_learn() -> None:
    model = build(MADE).train()
    ids = torch.tensor([[5, 6, 7, 5, 6, 7]])
    model(ids, targets=ids).loss.backward()
    assert model.decoder is not None
    ngrams = model.decoder.embedding.ngrams
    assert ngrams is not None
    assert ngrams.table.grad is not None
    touched = ngrams.table.grad.any(dim=1).nonzero().flatten().tolist()
    assert touched == sorted(set(ngrams.rows(_recent(ids, LONGEST)).flatten().tolist()))


def test_encoders_have_runs_too() -> None:
    made = MADE.replace(encoder_layers=1, decoder_layers=0, position={"kind": "none"})
    model = build(made)
    with torch.inference_mode():
        one, other = (model(torch.tensor([ids])).hidden[0, 0] for ids in ([5, 6, 7], [5, 7, 6]))
    assert not torch.allclose(one, other)


@pytest.mark.parametrize("preset", ["gpt2", "llama", "bert", "t5"])
def test_no_other_format_has_them(preset: str, tmp_path: Path) -> None:
    small = {"d_model": 16, "vocab_size": VOCAB, "attention": {"heads": 2, "kv_heads": None, "head_dim": 8}}
    layers = {name: 1 for name in ("encoder_layers", "decoder_layers") if getattr(af.preset(preset), name)}
    made = af.preset(preset, **small, **layers).replace(
        **{"feed_forward.width": 24, "embedding.ngrams": 3, "embedding.ngram_rows": 57, "embedding.padding": None}
    )
    made = made.replace(special_tokens={"bos": None, "eos": (), "pad": None, "decoder_start": None})
    model = build(made)
    assert af.save(model, tmp_path) == "anyformer"
    again, _ = af.load(tmp_path)
    assert again.config.embedding == made.embedding
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])


@pytest.mark.parametrize(("field", "value"), [("ngrams", 0), ("ngrams", -1), ("ngram_rows", 0)])
def test_impossible_numbers_are_refused(field: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"embedding.{field}"):
        MADE.replace(**{f"embedding.{field}": value})


def test_positions_may_be_of_any_kind() -> None:
    """Which tokens stand before a token does not depend on how positions are told to the model."""
    for kind in ("learned", "sinusoidal", "relative", "none"):
        model = build(MADE.replace(position=PositionConfig(kind=kind)))
        ids = torch.randint(3, VOCAB, (1, 7))
        cache = model.make_cache(1, 8)
        with torch.inference_mode():
            pieces = [model(ids[:, place : place + 1], cache=cache).logits for place in range(7)]
            torch.testing.assert_close(torch.cat(pieces, dim=1), model(ids).logits, atol=1e-4, rtol=1e-4)
