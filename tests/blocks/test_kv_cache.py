"""Texts that enter, leave and are cut off while others go on say what they say alone."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.generation.models import BOS, VOCAB, WRITERS, build
from torch import Tensor

from anyformer.blocks.kv_cache import KeyValueCache
from anyformer.model import Transformer

few = settings(max_examples=6, derandomize=True, database=None)
token = st.integers(3, VOCAB - 1)
UNCUT = [name for name in WRITERS if name != "dynamic"]


def _scores(model: Transformer, text: list[int], source: list[int] | None) -> Tensor:
    return model(torch.tensor([text]), None if source is None else torch.tensor([source])).logits[0, -1]


@pytest.mark.parametrize("name", UNCUT)
@few
@given(data=st.data())
def test_rows_come_and_go(name: str, data: st.DataObject) -> None:
    model = build(WRITERS[name])
    both = model.config.is_encoder_decoder
    cache = model.make_cache(batch=3, capacity=40)
    cache.clear()
    texts: list[tuple[list[int], list[int] | None]] = []
    with torch.no_grad():
        for _ in range(data.draw(st.integers(3, 8))):
            action = data.draw(st.sampled_from(["put", "put", "step", "step", "cut", "remove"]))
            if action == "put":
                source = data.draw(st.lists(token, min_size=1, max_size=6)) if both else None
                text = [BOS] if both else data.draw(st.lists(token, min_size=1, max_size=7))
                given_: Any = {} if source is None else {"source": torch.tensor([source])}
                alone = model.make_cache(batch=1, capacity=len(text))
                model(torch.tensor([text]), cache=alone, **given_)
                row = data.draw(st.integers(0, min(len(texts), 2)))
                cache.put(row, alone)
                texts[row : row + 1] = [(text, source)]
            elif not texts:
                continue
            elif action == "remove":
                row = data.draw(st.integers(0, len(texts) - 1))
                cache.remove(row)
                texts[row] = texts[-1]
                texts.pop()
            elif action == "cut":
                kept = [data.draw(st.integers(1, len(text))) for text, _ in texts]
                cache.truncate(torch.tensor(kept))
                texts = [(text[:size], source) for (text, source), size in zip(texts, kept, strict=True)]
            else:
                new = data.draw(st.integers(1, 3))
                more = [[data.draw(token) for _ in range(new)] for _ in texts]
                said = model(torch.tensor(more), cache=cache).logits[:, -1]
                texts = [(text + added, source) for (text, source), added in zip(texts, more, strict=True)]
                for row, (text, source) in enumerate(texts):
                    torch.testing.assert_close(said[row], _scores(model, text, source), atol=1e-4, rtol=1e-4)
            assert cache.batch == len(texts)
            assert cache.lengths.tolist() == [len(text) for text, _ in texts]
            assert cache.length == max((len(text) for text, _ in texts), default=0)


def test_a_full_cache_is_an_error_and_changes_nothing() -> None:
    model = build(WRITERS["rotary"])
    cache = model.make_cache(batch=2, capacity=4)
    with torch.no_grad():
        model(torch.tensor([[3, 4, 5], [6, 0, 0]]), mask=torch.tensor([[True] * 3, [True, False, False]]), cache=cache)
        with pytest.raises(ValueError, match="4 tokens, and 5"):
            model(torch.tensor([[3, 4], [6, 7]]), cache=cache)
    assert cache.lengths.tolist() == [3, 1]


@given(st.lists(st.integers(0, 1), min_size=1, max_size=3))
def test_a_copy_of_rows_goes_on_by_itself(rows: list[int]) -> None:
    cache = KeyValueCache(layers=2, batch=2, kv_heads=1, capacity=6, head_dim=2)
    cache.extend(torch.tensor([[1, 2], [3, 0]]), torch.tensor([[True, True], [True, False]]))
    filled = torch.tensor([1.0, 2.0])[:, None, None, None].expand(2, 1, 2, 2)
    for layer in cache.layers:
        layer.update(filled, filled)
    other = cache.copy(torch.tensor(rows))
    assert other.lengths.tolist() == [(2, 1)[row] for row in rows]
    assert all(layer.keys[:, 0, 0, 0].tolist() == [row + 1 for row in rows] for layer in other.layers)
    other.extend(torch.arange(7, 7 + len(rows))[:, None])
    for layer in other.layers:
        layer.update(torch.full((len(rows), 1, 1, 2), 5.0), torch.full((len(rows), 1, 1, 2), 5.0))
    expected = [([1, 2, new] if row == 0 else [3, new, 0]) for new, row in enumerate(rows, start=7)]
    assert other.tokens[:, :3].tolist() == expected
    assert cache.lengths.tolist() == [2, 1]
    assert cache.tokens[:, :3].tolist() == [[1, 2, 0], [3, 0, 0]]
    for layer in cache.layers:
        assert layer.keys[0, 0, :2].eq(1).all()
        assert layer.keys[1, 0, :1].eq(2).all()
    cache.extend(torch.tensor([[4], [5]]))
    assert cache.lengths.tolist() == [3, 2]


@pytest.mark.parametrize("name", UNCUT)
@few
@given(data=st.data())
def test_padding_is_not_computed(name: str, data: st.DataObject) -> None:
    model = build(WRITERS[name])
    assert model.decoder is not None
    computed: list[int] = []

    def count(_: Any, inputs: tuple[Tensor]) -> None:
        computed.append(inputs[0].shape[:-1].numel())

    feed_forward: Any = model.decoder.blocks[0].feed_forward
    feed_forward.register_forward_pre_hook(count)
    source = torch.tensor([[5, 6, 7]] * 3) if model.config.is_encoder_decoder else None
    texts: list[list[int]] = [[], [], []]
    cache = model.make_cache(batch=3, capacity=16)
    for step in range(2):
        # Padding is anywhere, and in the second step, of which only the last logits are looked at, on the left.
        lengths = data.draw(st.tuples(*[st.integers(1, 4)] * 3))
        mask = torch.arange(4) >= 4 - torch.tensor(lengths)[:, None]
        if step == 0:
            mask = mask[:, torch.tensor(data.draw(st.permutations(range(4))))]
        ids = torch.tensor([[data.draw(token) for _ in range(4)] for _ in range(3)])
        for text, row, real in zip(texts, ids, mask, strict=True):
            text += row[real].tolist()
        with torch.no_grad():
            given_ = source if step == 0 else None
            logits = model(ids, given_, mask=mask, cache=cache, last_only=step == 1).logits
        assert computed == [int(mask.sum())]
        for row, text in enumerate(texts):
            with torch.no_grad():
                alone = model(torch.tensor([text]), None if source is None else source[:1]).logits[0]
            found, wanted = (logits[row], alone[-1:]) if step == 1 else (logits[row][mask[row]], alone)
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        computed.clear()
