"""A document packed into a row with others has the logits that it has alone, with us and with Hugging Face."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from anyformer.blocks.mask import Mask, attention_mask
from anyformer.blocks.position import lengths_of_documents, positions_in_documents
from anyformer.model import Transformer
from tests.parity import hf_models
from tests.parity.conversion import TOLERANCE, assert_close, ours_of
from tests.parity.float64 import EQUAL, Float64, build_wide, widened
from tests.parity.model_spec import KINDS, Inputs, ModelSpec

SINGLE = [name for name, family in hf_models.ARCHITECTURES.items() if KINDS[family] != "seq2seq" and "Seq" not in name]


@pytest.mark.parametrize("architecture", SINGLE)
@settings(max_examples=5)
@given(data=st.data())
def test_packed_equals_alone(architecture: str, data: st.DataObject) -> None:
    assert_packed(data, architecture)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", SINGLE)
@settings(max_examples=100)
@given(data=st.data())
def test_packed_equals_alone_over_many_configs(architecture: str, data: st.DataObject) -> None:
    assert_packed(data, architecture)


def assert_packed(data: st.DataObject, architecture: str) -> None:
    """Draw a model, fill rows with documents (and padding, some of the time), and compare with each alone."""
    drawn = data.draw(hf_models.models(architecture))
    theirs = drawn.build()
    ours = ours_of(theirs)
    time = data.draw(st.integers(2, 40))
    rows = data.draw(st.integers(1, 3))
    edges = [_edges(data, time) for _ in range(rows)]
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    tokens = torch.randint(drawn.vocab_size, (rows, time), generator=generator)
    documents = torch.zeros_like(tokens)
    for row, own in enumerate(edges):
        for edge in own[1:-1]:
            documents[row, edge:] += data.draw(st.integers(1, 3))
    mask = None
    if data.draw(st.booleans()):
        mask = torch.ones_like(tokens, dtype=torch.bool)
        begin, end = edges[-1][-2:]
        mask[-1, begin + data.draw(st.integers(1, end - begin)) :] = False
        if drawn.family.endswith("roberta"):
            tokens = tokens.masked_fill(~mask, drawn.options["pad_token_id"])
    batch = tokens, documents, mask
    try:
        _assert_equal(drawn, ours, lambda: drawn.build() if drawn.is_dynamic else theirs, edges, batch)
    except AssertionError:
        # A few draws are so badly conditioned that rounding is more than 1e-5: there is none in float64.
        with Float64():
            _assert_equal(drawn, widened(ours), lambda: build_wide(drawn), edges, batch, EQUAL)


def _assert_equal(
    drawn: ModelSpec,
    ours: Transformer,
    build: Callable[[], PreTrainedModel],
    edges: list[list[int]],
    batch: tuple[Tensor, Tensor, Tensor | None],
    tolerance: float = TOLERANCE,
) -> None:
    """Raise unless each document of a batch is that document alone, and that text in Hugging Face's model."""
    close, (tokens, documents, mask) = partial(assert_close, tolerance=tolerance), batch
    with torch.no_grad():
        packed = ours(tokens, documents=documents, mask=mask, return_hidden=True)
        for row, own in enumerate(edges):
            for begin, end in pairwise(own):
                size = end - begin if mask is None else int(mask[row, begin:end].sum())
                text = tokens[row : row + 1, begin : begin + size]
                here = slice(begin, begin + size)
                alone = ours(text, return_hidden=True)
                for layer, (a, b) in enumerate(zip(packed.hidden_states, alone.hidden_states, strict=True)):
                    close(a[row, here], b[0], f"row {row}, document {begin}:{end}, hidden state {layer}")
                expected: Any = build()(**Inputs(text).theirs)
                if drawn.has_head:
                    close(packed.logits[row, here], alone.logits[0], "logits", floor=0.2)
                    close(packed.logits[row, here], expected.logits[0], "logits, theirs", floor=0.2)
                else:
                    close(packed.hidden[row, here], expected.last_hidden_state[0], "hidden, theirs")


def _edges(data: st.DataObject, time: int) -> list[int]:
    inner = data.draw(st.lists(st.integers(1, time - 1), unique=True, max_size=6))
    return [0, *sorted(inner), time]


def _tiny(architecture: str) -> tuple[ModelSpec, Transformer]:
    options: dict[str, dict[str, Any]] = {
        "GPT2LMHeadModel": {"vocab_size": 50, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2},
        "T5ForConditionalGeneration": {
            "vocab_size": 50,
            "d_model": 16,
            "d_kv": 8,
            "d_ff": 16,
            "num_layers": 1,
            "num_heads": 2,
        },
    }
    drawn = ModelSpec(hf_models.ARCHITECTURES[architecture], architecture, options[architecture], 0)
    return drawn, ours_of(drawn.build())


def test_one_document_is_a_row() -> None:
    _, model = _tiny("GPT2LMHeadModel")
    tokens = torch.randint(50, (2, 12))
    with torch.no_grad():
        plain = model(tokens).logits
        assert_close(model(tokens, documents=torch.full_like(tokens, 7)).logits, plain, "logits")


def test_documents_may_be_short_in_a_long_row() -> None:
    _, model = _tiny("GPT2LMHeadModel")
    tokens = torch.randint(50, (1, 24))
    documents = torch.arange(24)[None] // 12
    with torch.no_grad():
        packed = model(tokens, documents=documents).logits
        assert_close(packed[:, 12:], model(tokens[:, 12:]).logits, "logits")
    with pytest.raises(ValueError, match="has 24 tokens, and the model has positions for 16"):
        model(tokens)
    with pytest.raises(ValueError, match="has 20 tokens"):
        model(tokens, documents=(torch.arange(24)[None] >= 4).long())


def test_gradients_stay_within_a_document() -> None:
    _, model = _tiny("GPT2LMHeadModel")
    seen: list[torch.Tensor] = []
    model.token_embedding.register_forward_hook(lambda _, __, output: (output.retain_grad(), seen.append(output))[1])
    tokens = torch.randint(50, (1, 10))
    documents = (torch.arange(10)[None] >= 6).long()
    targets = torch.full_like(tokens, -100)
    targets[0, 8] = 3
    model(tokens, documents=documents, targets=targets).loss.backward()
    assert seen[0].grad is not None
    reached = seen[0].grad.abs().sum(dim=-1)[0] > 0
    assert reached.tolist() == [False] * 6 + [True] * 3 + [False]


def test_without_documents_there_is_no_mask() -> None:
    where = torch.arange(5)[None]
    assert attention_mask(where, where, causal=True) == Mask(causal=True)
    scores = attention_mask(where, where, causal=True, documents=torch.tensor([[0, 0, 3, 3, 4]])).scores
    assert scores is not None
    assert scores[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 0, 0, 1],
    ]


def test_positions_and_lengths() -> None:
    documents = torch.tensor([[5, 5, 5, 6, 8, 8], [0, 1, 1, 1, 1, 0]])
    counts = torch.tensor([[1, 0, 1, 1, 1, 1], [1, 1, 1, 0, 0, 1]]).bool()
    assert positions_in_documents(documents).tolist() == [[0, 1, 2, 0, 0, 1], [0, 0, 1, 2, 3, 0]]
    positions = positions_in_documents(documents, counts)
    assert positions.tolist() == [[0, -1, 1, 0, 0, 1], [0, 0, 1, -1, -1, 0]]
    assert lengths_of_documents(documents, positions).tolist() == [[2, 2, 2, 1, 2, 2], [1, 2, 2, 2, 2, 1]]


def test_documents_elsewhere_are_refused() -> None:
    tokens = torch.ones((1, 4), dtype=torch.long)
    _, model = _tiny("GPT2LMHeadModel")
    with pytest.raises(ValueError, match="single stack without a cache"):
        model(tokens, documents=tokens, cache=model.make_cache(1, 8))
    _, model = _tiny("T5ForConditionalGeneration")
    with pytest.raises(ValueError, match="single stack without a cache"):
        model(tokens, tokens, documents=tokens)
