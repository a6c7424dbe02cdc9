"""Reading in pieces with a cache equals reading at once, ragged batches and cross-attention included."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anyformer.model import Transformer
from tests.parity import hf_models
from tests.parity.conversion import assert_close, ours_of
from tests.parity.model_spec import CONTEXT, ModelSpec, draw_inputs, ragged
from tests.parity.padding import draw_filler, draw_rows, pad

WRITERS = hf_models.DECODERS + hf_models.SEQ2SEQ


def _draw(data: st.DataObject, architecture: str) -> tuple[ModelSpec, Transformer]:
    drawn = data.draw(hf_models.models(architecture))
    if drawn.is_dynamic:
        # Beyond the original length every state depends on how long the text is, the earlier ones included.
        drawn.options["max_position_embeddings"] = drawn.options["original_max_position_embeddings"] = CONTEXT
    return drawn, ours_of(drawn.build())


def _more(data: st.DataObject, drawn: ModelSpec, count: int, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    return torch.randint(drawn.vocab_size, (count, length), generator=generator)


def _pieces(data: st.DataObject, length: int) -> list[slice]:
    cuts = sorted(data.draw(st.sets(st.integers(1, length - 1), max_size=4))) if length > 1 else []
    return [slice(a, b) for a, b in zip([0, *cuts], [*cuts, length], strict=True)]


def _in_pieces(
    data: st.DataObject,
    model: Transformer,
    tokens: Tensor,
    source: Tensor | None,
    source_mask: Tensor | None,
    mask: Tensor | None,
) -> list[Tensor]:
    """All hidden states of all pieces, put together, and the logits where there are any."""
    cache = model.make_cache(len(tokens), tokens.shape[1] + data.draw(st.integers(0, 3)))
    outs = []
    for number, piece in enumerate(_pieces(data, tokens.shape[1])):
        given_ = {"source": source, "source_mask": source_mask} if number == 0 else {}
        seen = None if mask is None else mask[:, piece]
        outs.append(model(tokens[:, piece], **given_, mask=seen, cache=cache, return_hidden=True))
    assert cache.length == tokens.shape[1]
    states = [torch.cat(parts, dim=1) for parts in zip(*(out.hidden_states for out in outs), strict=True)]
    return states if outs[0].logits is None else [*states, torch.cat([out.logits for out in outs], dim=1)]


def assert_pieces(data: st.DataObject, architecture: str) -> None:
    drawn, model = _draw(data, architecture)
    inputs = data.draw(draw_inputs(drawn))
    with torch.no_grad():
        whole = model(inputs.tokens, inputs.source, source_mask=inputs.source_mask, return_hidden=True)
        pieces = _in_pieces(data, model, inputs.tokens, inputs.source, inputs.source_mask, None)
    expected = [*whole.hidden_states] + ([] if whole.logits is None else [whole.logits])
    for layer, (a, b) in enumerate(zip(pieces, expected, strict=True)):
        assert_close(a, b, f"state {layer}")


def assert_ragged_pieces(data: st.DataObject, architecture: str, side: str) -> None:
    """Prompts padded on either side, and then the same number of tokens more for each."""
    drawn, model = _draw(data, architecture)
    count = data.draw(st.integers(2, 3))
    prompts = draw_rows(data, drawn.vocab_size, count, 12)
    more = _more(data, drawn, count, data.draw(st.integers(0, 10)))
    tokens = torch.cat((pad(prompts, side, draw_filler(data, drawn, drawn.vocab_size)), more), dim=1)
    mask = torch.cat((ragged(list(map(len, prompts)), side), torch.ones_like(more, dtype=torch.bool)), dim=1)
    sources = source = source_mask = None
    if drawn.kind == "seq2seq":
        sources = draw_rows(data, drawn.options["vocab_size"], count, 12)
        source = pad(sources, side, draw_filler(data, drawn, drawn.options["vocab_size"]))
        source_mask = ragged(list(map(len, sources)), side)
    with torch.no_grad():
        pieces = _in_pieces(data, model, tokens, source, source_mask, mask)
        for index, row in enumerate(prompts):
            text = torch.cat((row, more[index]))[None]
            alone = model(text, None if sources is None else sources[index][None], return_hidden=True)
            expected = [*alone.hidden_states] + ([] if alone.logits is None else [alone.logits])
            for layer, (a, b) in enumerate(zip(pieces, expected, strict=True)):
                assert_close(a[index][mask[index]], b[0], f"row {index}, state {layer}")


@pytest.mark.parametrize("architecture", WRITERS)
@given(data=st.data())
def test_pieces_equal_the_whole(architecture: str, data: st.DataObject) -> None:
    assert_pieces(data, architecture)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("architecture", WRITERS)
@given(data=st.data())
def test_ragged_pieces_equal_rows_alone(architecture: str, side: str, data: st.DataObject) -> None:
    assert_ragged_pieces(data, architecture, side)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", WRITERS)
@settings(max_examples=100)
@given(data=st.data(), side=st.sampled_from(("left", "right")))
def test_caches_over_many_configs(architecture: str, data: st.DataObject, side: str) -> None:
    assert_pieces(data, architecture)
    assert_ragged_pieces(data, architecture, side)


@pytest.mark.parametrize("architecture", hf_models.GENERATORS)
@given(data=st.data())
def test_rows_can_be_chosen(architecture: str, data: st.DataObject) -> None:
    """What beams do: rows of the cache are repeated, dropped and reordered."""
    drawn, model = _draw(data, architecture)
    inputs = data.draw(draw_inputs(drawn))
    batch = len(inputs.tokens)
    rows = torch.tensor(data.draw(st.lists(st.integers(0, batch - 1), min_size=1, max_size=4)))
    more = _more(data, drawn, len(rows), 3)
    cache = model.make_cache(batch, inputs.tokens.shape[1] + 3)
    with torch.no_grad():
        model(inputs.tokens, inputs.source, source_mask=inputs.source_mask, cache=cache)
        cache.select(rows)
        continued = model(more, cache=cache).logits

        def chosen(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[rows]

        text = torch.cat((inputs.tokens[rows], more), dim=1)
        whole = model(text, chosen(inputs.source), source_mask=chosen(inputs.source_mask)).logits
    assert_close(continued, whole[:, -3:], "logits")
