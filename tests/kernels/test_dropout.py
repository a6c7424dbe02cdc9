"""Masks of dropout: compiled code's are the equation's, and those of parts of a batch the whole batch's."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from anyformer import kernels
from anyformer.kernels import Layout, reference
from anyformer.kernels.cpu import attention as cpu

MODULE = import_module("anyformer.kernels.dropout")
needs_compiler = pytest.mark.skipif(not MODULE.KERNEL.supported(), reason="needs compiled code")
SHAPES = st.lists(st.integers(1, 9), max_size=3).flatmap(
    lambda vectors: st.tuples(*map(st.just, vectors), st.sampled_from([1, 15, 16, 40, 700, 9000]))
)


def drop(x: Tensor, p: float, rows: Tensor | None = None) -> Tensor:
    torch.manual_seed(7)
    with kernels.counting_rows(rows):
        return kernels.dropout(x, p)


@needs_compiler
@given(SHAPES, st.floats(0.01, 0.99), st.sampled_from([torch.float32, torch.bfloat16]), st.integers(0, 1 << 20))
def test_compiled_masks_are_the_equations(shape: tuple[int, ...], p: float, dtype: torch.dtype, row: int) -> None:
    x, rows = torch.randn(shape, dtype=dtype), row + torch.arange(shape[0])
    compiled = drop(x, p, rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODULE.KERNEL, "supported", lambda: False)
        assert torch.equal(drop(x, p, rows), compiled)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 70), st.integers(1, 40), st.integers(0, 9), st.booleans())
def test_compiled_attention_drops_the_equations_weights(
    batch: int, heads: int, queries: int, keys: int, share: int, is_part: bool
) -> None:
    query, key, value = (torch.randn(batch, heads, time, 8) for time in (queries, keys, keys))
    if not cpu.supports(query, torch.float32, 0.4):
        pytest.skip("needs a processor with AVX-512")
    found = list[Tensor]()
    for attention in (kernels.attention, reference.attention):
        torch.manual_seed(7)
        with kernels.counting_rows(3 + torch.arange(batch) if is_part else None), kernels.counting_heads(share):
            found.append(attention(query, key, value, None, 0.4))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


@given(st.data(), st.integers(1, 6), st.integers(1, 9))
def test_parts_are_dropped_as_in_the_whole(data: st.DataObject, batch: int, time: int) -> None:
    begin = data.draw(st.integers(0, batch - 1))
    part = slice(begin, data.draw(st.integers(begin + 1, batch)))
    x, rows = torch.randn(batch, time, 33), torch.arange(batch)[part]
    whole = drop(x, 0.5)
    assert torch.equal(drop(x[part], 0.5, rows), whole[part])
    queries = torch.arange(time)[None]
    mask = torch.rand(len(rows), time) < 0.6
    mask[0, 0] = True
    layout = Layout.of(mask)
    with kernels.counting_rows(rows), kernels.counting_tokens(len(rows), queries, layout):
        packed = drop(layout.gather(x[part]), 0.5)
    assert torch.equal(packed, layout.gather(whole[part]))
    first = data.draw(st.integers(0, time - 1))  # a stretch of each sequence
    with kernels.counting_tokens(batch, queries[:, first:]):
        assert torch.equal(drop(x[:, first:], 0.5), whole[:, first:])


def test_neither_rows_nor_heads_nor_positions_share_a_mask() -> None:
    weights = kernels.attention(*(torch.zeros(3, 4, 48, 48),) * 2, torch.eye(48).expand(3, 4, 48, 48), None, 0.5)
    vectors = [*(weights > 0).flatten(0, 2), *(drop(torch.ones(7, 9, 48), 0.5) > 0).flatten(0, 1)]
    matrix = torch.stack(vectors).float() * 2 - 1
    correlation = (matrix @ matrix.t() / 48).fill_diagonal_(0.0)
    assert float(correlation.abs().max()) < 0.85  # of 48 coin tosses each, of 200,000 pairs: 1e-4 exceed it
    assert abs(float(correlation.mean())) < 0.01


def test_what_rows_share_does_not_depend_on_them() -> None:
    x, masks = torch.ones(1, 5, 40), list[Tensor]()
    for rows in (torch.arange(3), torch.arange(1) + 2):
        torch.manual_seed(7)
        with kernels.counting_rows(rows):
            masks.append(kernels.dropout(x, 0.5, counters=kernels.shared_counters(x)))
    assert torch.equal(*masks)
