"""Quantization to int4: the compiled search for scales and minima, against the same search by torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from anyformer.kernels import packed_weight, quantization
from anyformer.kernels.cpu import library, structs
from anyformer.kernels.cpu.library import Kernel
from anyformer.kernels.packed_weight import pack, unpack
from anyformer.kernels.quantization import GROUP, KERNEL, QuantizedWeight, dequantize, quantize_int4, quantize_int8
from anyformer.native import compiler, levels
from tests.examples import examples

needs_kernel = pytest.mark.skipif(not KERNEL.supported(), reason="needs compiled code")


@st.composite
def matrices(draw: st.DrawFn) -> Tensor:
    """Of sizes that fill no vector and no chunk; wide and narrow, far from zero, on few values, or with outliers."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1 << 30)))
    shape = (draw(st.integers(1, 70)), GROUP * draw(st.integers(1, 9)))
    matrix = torch.randn(shape, generator=generator) ** draw(st.sampled_from([1, 5]))
    matrix = matrix.round() if draw(st.booleans()) else matrix
    matrix = matrix * 10.0 ** draw(st.integers(-9, 2)) + draw(st.sampled_from([0.0, 0.0, 1e-3, -7.0, 3000.0]))
    return matrix.clamp(-31_000, 31_000).to(draw(st.sampled_from([torch.float32, torch.bfloat16])))


def by_torch(matrix: Tensor) -> QuantizedWeight:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KERNEL, "supported", lambda: False)
        return quantize_int4(matrix)


def errors(weight: QuantizedWeight, matrix: Tensor) -> Tensor:
    """The squared error of each group, as the search sees it."""
    return (dequantize(weight, torch.float32) - matrix.float()).unflatten(1, (-1, GROUP)).square().sum(dim=-1)


@needs_kernel
@examples(60)
@given(matrices())
def test_it_finds_what_torch_finds(matrix: Tensor) -> None:
    found, expected = quantize_int4(matrix), by_torch(matrix)
    assert [part.dtype for part in found[:3]] == [part.dtype for part in expected[:3]]
    assert [part.shape for part in found[:3]] == [part.shape for part in expected[:3]]
    ours, theirs = errors(found, matrix), errors(expected, matrix)
    # Errors of float32 decide between scales that are about as good.
    rounding = GROUP * (1e-6 * matrix.float().abs().max()) ** 2
    assert bool((ours <= theirs * (1 + 1e-3) + rounding).all())


@needs_kernel
def test_nearly_all_integers_are_the_same() -> None:
    matrix = torch.randn(300, 640, generator=torch.Generator().manual_seed(0))
    found, expected = quantize_int4(matrix), by_torch(matrix)
    for ours, theirs in zip(found[:3], expected[:3], strict=True):
        assert float((ours != theirs).float().mean()) < 1e-3


@needs_kernel
def test_it_is_the_same_in_any_number_of_threads() -> None:
    matrix, threads = torch.randn(90, 320), torch.get_num_threads()
    try:
        found = list[QuantizedWeight]()
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            found.append(quantize_int4(matrix))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(*parts) for other in found[1:] for parts in zip(found[0][:3], other[:3], strict=True))


@pytest.fixture
def other_level(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    """The kernel, compiled for a lesser processor."""
    level: levels.Level = request.param
    if compiler.find_of_system(level) is None:
        pytest.skip("no compiler for such processors")
    monkeypatch.setenv(levels.SWITCH, level.name)
    monkeypatch.setattr(levels, "LIBRARIES", tmp_path)
    monkeypatch.setattr(library, "LIBRARIES", [])
    levels.level.cache_clear()
    yield Kernel("quantize_int4", structs.QuantizeArgs, "quantization to int4")
    levels.level.cache_clear()


@pytest.mark.parametrize("other_level", levels.usable()[1:][::-1], indirect=True, ids=lambda level: level.name)
def test_lesser_processors_find_the_same(other_level: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    for size in (1e-9, 1e-7, 1e-5, 1.0, 1e4):  # scales are subnormal, or 0, with the smallest
        matrix = torch.randn(37, 160, generator=generator).clamp(-3, 3) * size
        with monkeypatch.context() as patch:
            patch.setattr(quantization, "KERNEL", other_level)
            found = quantize_int4(matrix)
        expected = by_torch(matrix)
        for ours, theirs in zip(found[:3], expected[:3], strict=True):
            assert float((ours != theirs).float().mean()) < 0.01


@examples(30)
@given(matrices(), st.sampled_from([quantize_int4, quantize_int8]))
def test_rows_are_interleaved_some_at_a_time(matrix: Tensor, quantize: Callable[[Tensor], QuantizedWeight]) -> None:
    weight = quantize(matrix)
    whole = pack(weight)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed_weight, "_PACKED", 1)
        packed = pack(weight)
    for part, expected, restored, original in zip(packed[:3], whole[:3], unpack(packed), weight, strict=True):
        assert (part is None) == (expected is None)
        assert part is None or expected is None or torch.equal(part, expected)
        assert restored is None or torch.equal(restored, original)
