"""Matrices in integers: what rounding may cost, the order of the bits, and layers made of them."""

from collections.abc import Iterator
from importlib import import_module

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from anyformer.blocks.linear import Embedding, Linear, replace_weight
from anyformer.blocks.quantized import QuantizedMatrix
from anyformer.kernels import quantized_linear
from anyformer.kernels.cpu.matmul import QUANTIZED
from anyformer.kernels.packed_weight import BLOCK_ROWS, pack, select_rows, transpose, unpack
from anyformer.kernels.quantization import (
    GROUP,
    QUANTIZERS,
    Quantization,
    QuantizedWeight,
    dequantize,
    pack_int4,
    quantize_int4,
    quantize_int8,
)
from anyformer.native.levels import SWITCH

_HALF_STEP = 2.0**-11
"""Relative error of a float16."""


@st.composite
def matrices(draw: st.DrawFn) -> Tensor:
    rows, groups = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    seed = draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows, groups, GROUP, generator=generator) * 10.0 ** draw(st.integers(-2, 2))
    matrix += draw(st.sampled_from([0.0, 0.5, -3.0]))
    if draw(st.booleans()):
        matrix[0, 0] = draw(st.sampled_from([0.0, 1.0, -7.0]))  # a group without any spread
    if draw(st.booleans()):
        matrix[-1, -1, 3] *= 50  # an outlier
    return matrix.flatten(1)


def _quantized(ordinary: nn.Linear, kind: Quantization) -> Linear:
    """A linear layer with the other's weight, quantized, and its bias."""
    layer = Linear(ordinary.in_features, ordinary.out_features, bias=ordinary.bias is not None).requires_grad_(False)
    layer.load_state_dict(ordinary.state_dict())
    replace_weight(layer, QuantizedMatrix(QUANTIZERS[kind](ordinary.weight.detach()), torch.float32))
    return layer


def _groups(matrix: Tensor) -> Tensor:
    return matrix.unflatten(1, (-1, GROUP))


@given(matrices())
def test_int8_is_within_half_a_step(matrix: Tensor) -> None:
    rounded = quantize_int8(matrix)
    assert rounded.integers.dtype == torch.int8
    error = _groups(dequantize(rounded, torch.float32) - matrix).abs().amax(dim=-1)
    largest = _groups(matrix).abs().amax(dim=-1)
    # Half a step, and what the scale lost when it became a float16 (very small ones lose more).
    assert bool((error <= largest * (0.5 / 127 + _HALF_STEP) + 127 * 2.0**-25).all())


@given(matrices())
def test_int4_is_no_worse_than_from_end_to_end(matrix: Tensor) -> None:
    rounded = quantize_int4(matrix)
    lowest, highest = _groups(matrix).aminmax(dim=-1)
    scale, minimum = ((highest - lowest) / 15).half().float(), lowest.half().float()
    inverse = torch.where(scale == 0, 0, 1 / scale)
    codes = ((_groups(matrix) - minimum[..., None]) * inverse[..., None]).round().clamp(0, 15)
    plain = (codes * scale[..., None] + minimum[..., None] - _groups(matrix)).square().sum(dim=-1)
    searched = _groups(dequantize(rounded, torch.float32) - matrix).square().sum(dim=-1)
    assert bool((searched <= plain * (1 + 1e-4) + 1e-9).all())


def test_int4_finds_smaller_errors() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(256, 256)
    rounded = quantize_int4(matrix)
    lowest, highest = _groups(matrix).aminmax(dim=-1)
    scale = ((highest - lowest) / 15)[..., None]
    plain = ((_groups(matrix) - lowest[..., None]) / scale).round() * scale + lowest[..., None] - _groups(matrix)
    assert float((dequantize(rounded, torch.float32) - matrix).square().mean()) < 0.9 * float(plain.square().mean())


@given(matrices())
def test_what_is_on_the_grid_already_stays(matrix: Tensor) -> None:
    for rounding in QUANTIZERS.values():
        once = dequantize(rounding(matrix), torch.float32)
        error = _groups(dequantize(rounding(once), torch.float32) - once).abs().amax(dim=-1)
        assert bool((error <= 2 * _HALF_STEP * _groups(once).abs().amax(dim=-1) + 1e-5).all())


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 1000))
def test_packing_loses_nothing(rows: int, groups: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 16, (rows, groups * GROUP), dtype=torch.uint8, generator=generator)
    packed = pack_int4(codes).unflatten(1, (-1, GROUP // 2))
    assert torch.equal(torch.cat([packed & 15, packed >> 4], dim=2).flatten(1), codes)


@given(matrices(), st.sampled_from(sorted(QUANTIZERS)), st.data())
def test_tiles_lose_nothing(matrix: Tensor, kind: Quantization, data: st.DataObject) -> None:
    rounded = QUANTIZERS[kind](matrix.repeat(9, 1))
    rows = len(rounded.scales)
    for whole, back in zip(rounded, unpack(pack(rounded)), strict=True):
        assert (whole is None and back is None) or torch.equal(whole, back)
    some = torch.tensor(data.draw(st.lists(st.integers(0, rows - 1), min_size=1, max_size=5)))
    for whole, back in zip(rounded, select_rows(pack(rounded), some), strict=True):
        assert (whole is None and back is None) or torch.equal(whole[some], back)


@given(matrices(), st.sampled_from(list(QUANTIZERS)), st.sampled_from([32, 1 << 18]))
def test_a_transpose_is_that_of_the_matrix(matrix: Tensor, kind: Quantization, chunk: int) -> None:
    whole = QUANTIZERS[kind](matrix.repeat(GROUP, 1))
    rows, columns = whole.shape
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("anyformer.kernels.packed_weight._CHUNK", chunk)
        found = transpose(pack(whole))
    expected = pack(quantize_int8(dequantize(whole, torch.float32).T))
    assert found.minima is None
    assert all(torch.equal(a, b) for a, b in zip(found[:2], expected[:2], strict=True))
    assert unpack(found).shape == (columns, rows)


@given(st.integers(1, 200), st.integers(1, 3), st.integers(0, 99))
def test_a_transpose_is_padded_to_whole_groups(rows: int, groups: int, seed: int) -> None:
    torch.manual_seed(seed)
    quantized = quantize_int8(torch.randn(rows, groups * GROUP))
    transposed = dequantize(unpack(transpose(pack(quantized))), torch.float32)
    assert transposed.shape == (groups * GROUP, -(-rows // GROUP) * GROUP)
    assert not transposed[:, rows:].any()
    expected = dequantize(quantized, torch.float32).T
    assert (transposed[:, :rows] - expected).abs().max() <= 0.52 * expected.abs().max() / 127


@given(matrices())
def test_the_layout_is_that_of_gguf(matrix: Tensor) -> None:
    """The same numbers as the package gguf makes of the same bytes."""
    kinds = {quantize_int8: gguf.GGMLQuantizationType.Q8_0, quantize_int4: gguf.GGMLQuantizationType.Q4_1}
    for rounding, kind in kinds.items():
        integers, scales, minima = rounding(matrix)
        heads = [scales] if minima is None else [scales, minima]
        head = torch.stack(heads, dim=-1).contiguous().view(torch.uint8)
        body = integers.view(torch.uint8).unflatten(1, (scales.shape[1], -1))
        blocks = torch.cat([head.unflatten(1, (scales.shape[1], -1)).flatten(2), body], dim=2).flatten(1).numpy()
        theirs = gguf.quants.dequantize(np.ascontiguousarray(blocks), kind)
        torch.testing.assert_close(
            dequantize(QuantizedWeight(integers, scales, minima), torch.float32),
            torch.from_numpy(theirs),
            rtol=1e-6,
            atol=1e-6,
        )


@pytest.fixture(params=["compiled", "torch"], scope="module")
def compiled(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether products are those of compiled code."""
    if request.param == "compiled" and QUANTIZED.get() is None:
        pytest.skip("needs a compiler")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SWITCH, str(int(request.param == "compiled")))
        yield request.param == "compiled"


def _in_8_bits(x: Tensor, *, near: float = 0.5) -> Tensor:
    """What compiled code takes a vector for, as to numbers so many steps or fewer from the middle of two steps."""
    groups = _groups(x.float().reshape(-1, x.shape[-1]))
    most = groups.abs().amax(dim=-1, keepdim=True)
    steps = groups.double() * torch.where(most > 0, 127 / most, 0).double()
    codes = steps.round()
    stays = (steps - codes).abs() < 0.5 - near
    return torch.where(stays, groups, codes.float() * (most / 127)).view(x.shape)


def _in_codes(rounded: QuantizedWeight) -> Tensor:
    """What many vectors meet of 4 bits where processors sum products of bytes: 8 bits with a scale an output."""
    assert rounded.minima is not None
    scales, minima = (part.float()[..., None] for part in (rounded.scales, rounded.minima))
    ones = QuantizedWeight(rounded.integers, torch.ones_like(rounded.scales), torch.zeros_like(rounded.scales))
    quads = dequantize(ones, torch.float32).unflatten(1, (-1, GROUP))
    most = torch.maximum(minima.abs(), (minima + 15 * scales).abs()).amax(1, keepdim=True)
    inverse = torch.where(most > 0, 127 / most, 0)
    factors, base = (256 * scales * inverse).round(), (256 * (minima * inverse + 128.5)).round()
    return ((((quads * factors + base) / 256).floor() - 128) * most / 127).flatten(1)


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(
    st.integers(1, 5),
    st.sampled_from([(), (1,), (3,), (2, 3), (9,), (2, 12), (37,), (0,)]),
    st.sampled_from([32, 45, 1000]),
    st.booleans(),
    st.integers(0, 99),
)
@settings(max_examples=20)
def test_layers_multiply_like_their_matrix(
    compiled: bool,
    kind: str,
    dtype: torch.dtype,
    groups: int,
    batch: tuple[int, ...],
    rows: int,
    bias: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    ordinary = nn.Linear(groups * GROUP, rows, bias=bias).requires_grad_(False)
    layer = _quantized(ordinary, kind).to(dtype)
    weight = layer.weight
    assert weight.bits == int(kind[3:])
    assert weight.shape == ordinary.weight.shape
    assert weight.scales.dtype == torch.float16
    # In the middle of two steps the last place would decide.
    x = _in_8_bits(torch.randn(*batch, groups * GROUP), near=1e-3).to(dtype)
    out = layer(x)
    assert out.dtype == dtype
    assert out.shape == (*batch, rows)
    seen, matrix, count = x.float(), weight.dequantize(torch.float32), x[..., 0].numel()
    library = QUANTIZED.get() if compiled else None
    if library and 0 < library.amx_min_rows() <= count:
        seen, matrix = (part.bfloat16().float() for part in (seen, matrix))
    elif library and weight.bits == 4 and 0 < library.code_tiles_min_rows() <= count:
        seen = x.bfloat16().float()
    elif library:
        seen = _in_8_bits(x)
    bound = 1e-5 if dtype == torch.float32 else 2e-2
    if library and weight.bits == 4 and 0 < library.int8_min_rows() <= count:
        matrix, bound = _in_codes(weight.unpacked()), max(bound, 1e-3)  # where a half is met, a code may be another
    expected = nn.functional.linear(seen, matrix, ordinary.bias)
    assert float((out.float() - expected).norm()) <= bound * float(expected.norm())


def _as_in_files(scales: Tensor, *, is_centered: bool) -> tuple[Tensor, Tensor]:
    """Scales and minima [rows, groups]: those of Q4_0, or any."""
    return scales, -8 * scales if is_centered else (scales * torch.randn(scales.shape) * 8).half()


@pytest.mark.parametrize(("is_centered", "bits"), [(False, 5.0), (True, 4.5)])
def test_minima_that_follow_from_scales_take_no_memory(is_centered: bool, bits: float) -> None:
    torch.manual_seed(0)
    scales, lowest = _as_in_files(torch.randn(32, 64).half(), is_centered=is_centered)
    weight = QuantizedWeight(torch.randint(0, 256, (32, 64 * 16), dtype=torch.uint8), scales, lowest)
    packed = pack(weight)
    assert packed.bits == 4
    assert all(torch.equal(*pair) for pair in zip(unpack(packed), weight, strict=True))
    assert sum(part.nbytes for part in packed[:3] if part is not None) * 8 == bits * weight.shape.numel()


@given(
    st.integers(1, 6),
    st.integers(1, 40),
    st.integers(1, 70),
    st.booleans(),
    st.integers(0, 99),
)
def test_any_four_bits_multiply_like_their_matrix(
    compiled: bool, groups: int, rows: int, vectors: int, is_centered: bool, seed: int
) -> None:
    """As GGUF files hold them: scales of either sign and any minima, rows of zeros, one large group."""
    torch.manual_seed(seed)
    scales = torch.randn(rows, groups).half()
    scales[:, 0] *= 8
    scales[rows // 2] = 0
    integers = torch.randint(0, 256, (rows, groups * GROUP // 2), dtype=torch.uint8)
    matrix = QuantizedMatrix(QuantizedWeight(integers, *_as_in_files(scales, is_centered=is_centered)))
    x, numbers = torch.randn(vectors, groups * GROUP), matrix.dequantize(torch.float32)
    off = quantized_linear(x, matrix.packed_weight) - x @ numbers.T
    assert float(off.norm()) <= (1e-2 if compiled else 1e-5) * float((x.abs() @ numbers.abs().T).norm())


@given(st.integers(1, 4), st.integers(1, 4), st.sampled_from([0, 0, 8]), st.integers(1, 40), st.integers(0, 99))
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_inputs_get_the_gradient_of_their_matrix(
    compiled: bool, kind: Quantization, groups: int, across: int, more: int, vectors: int, seed: int
) -> None:
    """Compiled code rounds the gradient, and the transposed weight, to 8 bits."""
    torch.manual_seed(seed)
    outputs = across * GROUP + more
    layer = _quantized(nn.Linear(groups * GROUP, outputs), kind)
    x, grad = torch.randn(2, vectors, groups * GROUP, requires_grad=True), torch.randn(2, vectors, outputs)
    weight = layer.weight
    assert isinstance(weight, QuantizedMatrix)
    (found,) = torch.autograd.grad(layer(x), x, grad)
    expected = grad @ weight.dequantize(torch.float32)
    assert float((found - expected).norm()) <= (1.5e-2 if compiled else 1e-5) * float(expected.norm())
    assert layer.state_dict().keys() == _quantized(nn.Linear(groups * GROUP, outputs), kind).state_dict().keys()


def test_a_dropped_transpose_is_made_anew() -> None:
    matrix = QuantizedMatrix(quantize_int8(torch.randn(64, 96)))
    before = matrix.transposed()
    assert before is not None
    assert matrix.transposed() is before
    matrix.drop_transposed()
    after = matrix.transposed()
    assert after is not None
    assert after is not before
    assert torch.equal(after.integers, before.integers)


def test_a_transpose_too_large_for_its_scales_is_not_made() -> None:
    scales = torch.full((32, 1), 6e4).half()
    matrix = QuantizedMatrix(QuantizedWeight(torch.full((32, 32), 100, dtype=torch.int8), scales, None))
    assert matrix.transposed() is None
    x = torch.randn(2, 32, requires_grad=True)
    quantized_linear(x, matrix.packed_weight, transposed=matrix.transposed).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_what_is_no_number_stays_none(compiled: bool, kind: str, wrong: float) -> None:
    torch.manual_seed(0)
    ordinary = nn.Linear(64, 40).requires_grad_(False)
    layer = _quantized(ordinary, kind)
    x = torch.randn(3, 64)
    x[1, 40] = wrong
    out = layer(x)
    assert not bool(out[1].isfinite().any())
    assert bool(out[::2].isfinite().all())


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_large_matrices_are_multiplied_in_parts(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    ordinary = nn.Linear(64, 100)
    layer = _quantized(ordinary, kind)
    x = torch.randn(2, 3, 64)
    monkeypatch.setenv(SWITCH, "0")
    whole = layer(x)
    monkeypatch.setattr(import_module("anyformer.kernels.linear"), "_CHUNK", 64 * BLOCK_ROWS * 2)
    torch.testing.assert_close(layer(x), whole)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_tables_look_up_their_rows(kind: str) -> None:
    torch.manual_seed(0)
    ordinary = nn.Embedding(50, 64)
    table = Embedding(50, 64)
    replace_weight(table, QuantizedMatrix(QUANTIZERS[kind](ordinary.weight.detach()), torch.bfloat16))
    ids = torch.randint(50, (2, 7))
    assert torch.equal(table(ids), table.weight.dequantize(torch.bfloat16)[ids])
    assert table(ids).dtype == torch.bfloat16
    assert table.float()(ids).dtype == torch.float32


def test_scales_keep_their_format_and_follow_the_device() -> None:
    layer = QuantizedMatrix(quantize_int4(torch.randn(32, 64)))
    before = layer.scales.clone(), layer.integers.clone()
    layer = layer.bfloat16().float()
    assert torch.equal(layer.scales, before[0])
    assert torch.equal(layer.integers, before[1])
    assert layer.to("meta").scales.device.type == "meta"
    assert layer.bfloat16().scales.device.type == "meta"
