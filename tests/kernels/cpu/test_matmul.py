"""Compiled products in float32, and by way of 8-bit integers. How near these are: tests/training/test_int8.py."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from anyformer.kernels import cross_entropy, linear, linear_cross_entropy
from anyformer.kernels.cpu import matmul
from anyformer.kernels.cpu.matmul import fp32_matmul, int8_matmul
from anyformer.native.levels import has_avx512_bf16


@pytest.fixture(scope="module", autouse=True)
def _supported() -> None:
    """Compiled when it is needed, not while tests are collected."""
    if not matmul.supports_int8():
        pytest.skip("this processor has no such instructions")


def empty(rows: int, outputs: int) -> Tensor:
    return torch.full((rows, outputs), torch.nan)


@settings(max_examples=150)
@given(
    rows=st.integers(1, 70),
    outputs=st.integers(1, 100),
    depth=st.sampled_from([1, 3, 4, 15, 63, 64, 65, 200, 4095, 4096, 4097, 9000]),
    standing=st.tuples(st.booleans(), st.booleans()),
    narrow=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    biased=st.booleans(),
    summed=st.booleans(),
    add=st.booleans(),
    dither=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_whole_numbers_are_exact(
    rows: int,
    outputs: int,
    depth: int,
    standing: tuple[bool, bool],
    narrow: tuple[bool, bool, bool],
    biased: bool,
    summed: bool,
    add: bool,
    dither: bool,
    seed: int,
) -> None:
    chance = torch.Generator().manual_seed(seed)

    def drawn(count: int, stands: bool, is_narrow: bool) -> Tensor:
        whole = torch.randint(-127, 128, (count, depth), generator=chance).float()
        whole[torch.arange(count), torch.randint(depth, (count,), generator=chance)] = 127
        # Each row has a step of its own.
        whole *= 2.0 ** torch.randint(-9, 9, (count, 1), generator=chance)
        kept = whole.bfloat16() if is_narrow else whole
        # What lies between the rows belongs to somebody else.
        wide = torch.full((depth, count + 3) if stands else (count, depth + 3), torch.nan, dtype=kept.dtype)
        part = wide[:, 1:-2]
        part.copy_(kept.t() if stands else kept)
        return part.t() if stands else part

    left, right = drawn(rows, standing[0], narrow[0]), drawn(outputs, standing[1], narrow[1])
    bias = torch.randn(outputs, generator=chance) if biased else None
    out = empty(rows, outputs)
    expected = left.double() @ right.double().t() + (0 if bias is None else bias.double())
    if add:
        out = torch.randn(rows, outputs, generator=chance)
    out = out.bfloat16() if narrow[2] else out
    if add:
        expected += out.double()
    room = torch.full((rows + 1,), torch.nan)
    sums = room[:rows] if summed else None
    found = int8_matmul(left, right, bias, out=out, sums=sums, add=add, stochastic=dither)
    assert found is out
    if sums is not None:
        steps = left.double().abs().sum(dim=1)
        assert bool(((sums.double() - left.double().sum(dim=1)).abs() <= 1e-5 * steps).all())
    assert bool(room[rows:].isnan().all())
    near = 2.0**-7 if narrow[2] else 1e-6
    # By the smallest chance a whole number may become its neighbor: once in a few million.
    flips = 3 * float(left.abs().max() * right.abs().max()) / 127 if dither else 0
    bound = near * float(expected.abs().max()) + flips
    torch.testing.assert_close(found.double(), expected, rtol=near, atol=bound)


@pytest.mark.parametrize("standing", [False, True])
def test_small_numbers_count_in_the_mean(standing: bool) -> None:
    left = torch.full((64, 3000), 0.002)
    left[:, 7] = torch.linspace(0.9, 1.1, 64)
    if standing:
        left = left.t().contiguous().t()
    ones = torch.ones(2, 3000)
    assert float((int8_matmul(left, ones, out=empty(64, 2))[:, 0] - left[:, 7]).abs().max()) < 1e-5
    found = int8_matmul(left, ones, out=empty(64, 2), stochastic=True)
    assert torch.equal(found, int8_matmul(left, ones, out=empty(64, 2), stochastic=True))
    # A quarter of a step each: a sum of as many coins.
    steps = left[:, 7] / 127
    share = 0.002 / steps
    spread = steps * (3000 * share * (1 - share)).sqrt()
    errors = (found[:, 0] - left.sum(dim=1)) / spread
    assert float(errors.abs().max()) < 5
    assert float(errors.mean().abs()) < 5 / 64**0.5
    assert float(errors.std()) > 0.5


@pytest.mark.parametrize("standing", [False, True])
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_largest_numbers_stay_what_they_are(standing: bool, sign: int) -> None:
    left = sign * torch.linspace(1, 2, 512)[:, None].expand(-1, 512)
    left = left.t().contiguous().t() if standing else left.contiguous()
    found = int8_matmul(left, torch.ones(1, 512), out=empty(512, 1), stochastic=True)
    torch.testing.assert_close(found[:, 0], left.sum(dim=1), rtol=0.005 if sign < 0 else 1e-4, atol=0)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tokens=st.integers(2, 90),
    vocab=st.integers(30, 500),
    smoothing=st.sampled_from([0.0, 0.1]),
    biased=st.booleans(),
    narrow=st.booleans(),
    sampled=st.booleans(),
    ignored=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 1000),
)
def test_a_loss_of_rounded_numbers(
    monkeypatch: pytest.MonkeyPatch,
    tokens: int,
    vocab: int,
    smoothing: float,
    biased: bool,
    narrow: bool,
    sampled: bool,
    ignored: float,
    seed: int,
) -> None:
    monkeypatch.setattr(matmul, "_MIN_SIZE", 0)
    monkeypatch.setattr(cross_entropy, "_SAMPLED_VOCAB", 0 if sampled else vocab + 1)
    torch.manual_seed(seed)
    operands = [torch.randn(tokens, 64), 0.3 * torch.randn(vocab, 64), *([torch.randn(vocab)] if biased else [])]
    targets = torch.randint(vocab, (tokens,))
    targets[1:][torch.rand(tokens - 1) < ignored] = -100

    def found(rounds: bool) -> list[Tensor]:
        leaves = [part.clone().requires_grad_() for part in operands]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=narrow):
            bias = leaves[2] if biased else None
            loss = linear_cross_entropy(
                leaves[0],
                leaves[1],
                targets,
                linear_bias=bias,
                label_smoothing=smoothing,
                matmul="int8" if rounds else "float",
            )
        return [loss.detach(), *torch.autograd.grad(loss, leaves)]

    ours, exact = found(True), found(False)
    assert not torch.equal(ours[1], exact[1])
    torch.testing.assert_close(ours[0], exact[0], rtol=0.01, atol=0.01)
    for one, other in zip(ours[1:], exact[1:], strict=True):
        assert float((one - other).norm()) < 0.15 * float(other.norm())


fp32_only = pytest.mark.skipif(not has_avx512_bf16(), reason="needs a processor with vectors of 512 bits")


@fp32_only
@settings(max_examples=150, deadline=None)
@given(
    # Whole panels of 12 rows and 32 columns, blocks of 16 and 8 panels, and of 512 terms; and what is left of each.
    rows=st.one_of(st.integers(1, 30), st.integers(180, 210)),
    outputs=st.one_of(st.integers(1, 70), st.integers(250, 300)),
    depth=st.one_of(st.integers(0, 40), st.sampled_from([511, 512, 513, 1030])),
    standing=st.tuples(st.booleans(), st.booleans()),
    biased=st.booleans(),
    add=st.booleans(),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
def test_whole_numbers_are_exact_in_float32(
    rows: int,
    outputs: int,
    depth: int,
    standing: tuple[bool, bool],
    biased: bool,
    add: bool,
    threads: int,
    seed: int,
) -> None:
    chance = torch.Generator().manual_seed(seed)

    def whole(*shape: int) -> Tensor:
        return torch.randint(-100, 101, shape, generator=chance).float()

    def drawn(count: int, stands: bool) -> Tensor:
        # What lies between the rows belongs to somebody else.
        wide = torch.full((depth, count + 3) if stands else (count, depth + 3), torch.nan)
        part = wide[:, 1:-2]
        part.copy_(whole(*part.shape))
        return part.t() if stands else part

    left, right = drawn(rows, standing[0]), drawn(outputs, standing[1])
    bias = whole(outputs) if biased else None
    room = torch.full((rows + 1, outputs), torch.nan)
    out = room[:rows]
    expected = left.double() @ right.double().t() + (0 if bias is None else bias.double())
    if add:
        out.copy_(whole(rows, outputs))
        expected += out.double()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert fp32_matmul(left, right, bias, out=out, add=add) is out
    finally:
        torch.set_num_threads(before)
    assert torch.equal(out.double(), expected)
    assert bool(room[rows:].isnan().all())


@fp32_only
@pytest.mark.parametrize("standing", [False, True])
def test_operands_that_are_packed_in_parts(standing: bool) -> None:
    """Some of the rows and the columns of operands of more than 4 and 2 million numbers."""
    shapes = ((2200, 2100), (1100, 2100))
    left, right = (torch.randint(-9, 10, shape[::-1] if standing else shape).float() for shape in shapes)
    if standing:
        left, right = left.t(), right.t()
    found = fp32_matmul(left, right, out=empty(2200, 1100))
    assert torch.equal(found, left @ right.t())  # sums of whole numbers below 2^24


@fp32_only
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch=st.sampled_from([(7,), (2, 30), (3, 1, 5)]),
    inputs=st.integers(1, 70),
    outputs=st.integers(1, 70),
    biased=st.booleans(),
    frozen=st.booleans(),
    narrow=st.booleans(),
)
def test_linear_layers_use_the_product_in_float32(
    monkeypatch: pytest.MonkeyPatch,
    batch: tuple[int, ...],
    inputs: int,
    outputs: int,
    biased: bool,
    frozen: bool,
    narrow: bool,
) -> None:
    used: list[int] = []
    run = matmul.FP32.run
    monkeypatch.setattr(matmul, "_MIN_FP32_SIZE", 0)
    monkeypatch.setattr(matmul, "_mkl_halves_vectors", lambda: True)
    monkeypatch.setattr(matmul.FP32, "run", lambda **arguments: (used.append(1), run(**arguments)))
    x, weight = torch.randn(*batch, inputs, requires_grad=True), torch.randn(outputs, inputs, requires_grad=not frozen)
    bias = torch.randn(outputs, requires_grad=True) if biased else None
    leaves = [part for part in (x, weight, bias) if part is not None and part.requires_grad]

    def found(exact: bool) -> list[Tensor]:
        used.clear()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=narrow):
            out = (torch.nn.functional.linear if exact else linear)(x, weight, bias)
        return [out.detach(), *torch.autograd.grad((out.float() ** 2).sum(), leaves)]

    ours = found(False)
    assert len(used) == (0 if narrow else 2 if frozen else 3)
    for one, other in zip(ours, found(True), strict=True):
        near = 1e-2 if narrow else 1e-5
        torch.testing.assert_close(one, other, rtol=near, atol=near * float(other.abs().max()))
    with torch.inference_mode():
        used.clear()
        torch.testing.assert_close(
            linear(x, weight, bias), ours[0].float(), rtol=0.02 if narrow else 0, atol=0.1 if narrow else 0
        )
        assert len(used) == 1


@fp32_only
def test_an_infinite_number_or_a_nan_is_noticed() -> None:
    left = torch.randn(40, 600)
    left[3, 70], left[9, 555] = torch.inf, torch.nan
    found = fp32_matmul(left, torch.randn(50, 600), out=empty(40, 50))
    assert found.isfinite().all(dim=1).tolist() == [row not in (3, 9) for row in range(40)]
