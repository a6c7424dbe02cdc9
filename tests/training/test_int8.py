"""Products of 8-bit integers: as near to float32 as they promise, and nothing but the products changes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import anyformer as af
from anyformer.blocks.linear import Linear
from anyformer.data.batch import Batch
from anyformer.errors import UserError
from anyformer.kernels.cpu import matmul
from anyformer.kernels.linear import linear
from anyformer.runs.directory import model_directory
from anyformer.training import precision
from anyformer.training.config import TrainConfig
from anyformer.training.precision import Precision, choose_precision, peak_flops_per_second
from anyformer.training.strategies.base import Strategy, use_int8
from tests.training.conftest import TINY, Trains, losses, single

linear_module: Any = import_module("anyformer.kernels.linear")  # where a function of the package has its name
CPU = torch.device("cpu")
INT8 = Precision(CPU, torch.float32, "as asked", int8=True)


# What torch warns of when it imports its own compiler.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")


@pytest.fixture(scope="module", autouse=True)
def _able() -> None:
    """Compiled when it is needed, not while tests are collected."""
    try:
        choose_precision("cpu", "int8")
    except UserError:
        pytest.skip("products of 8 bits gain nothing on this machine")


@pytest.fixture(autouse=True)
def _small_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small ones are computed in 8 bits too."""
    monkeypatch.setattr(matmul, "_MIN_SIZE", 0)


@pytest.fixture(params=["ours", "torch's"])
def eager(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """By our own code and by torch's, which is not compiled: for one shape after the other that would take long."""
    if request.param == "torch's":
        monkeypatch.setattr(linear_module, "_int8_matmul", linear_module._int8_reference)
    elif not matmul.supports_int8():
        pytest.skip("this processor has no such instructions")


def int8_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return linear(x, weight, bias, matmul="int8")


def _int8_layer() -> Linear:
    layer = Linear(24, 53)
    layer.matmul = "int8"
    return layer


def _products(
    x: Tensor, weight: Tensor, bias: Tensor | None, gradient: Tensor, linear: Callable[..., Tensor] = int8_linear
) -> list[Tensor]:
    """The output, and the gradients of x, weight and bias."""
    inputs = [tensor.clone().requires_grad_() for tensor in (x, weight, bias) if tensor is not None]
    found = linear(*inputs, *([None] if bias is None else []))
    return [found.detach(), *torch.autograd.grad(found, inputs, gradient)]


def _bound(a: Tensor, b: Tensor) -> Tensor:
    """How far ``a @ b`` may be off if each number of a row of a, of a column of b, is off by half of its step."""
    a, b = a.double().abs(), b.double().abs()
    step_a, step_b = a.amax(1, keepdim=True) / 254, b.amax(0, keepdim=True) / 254
    return 1.0001 * (step_a * b.sum(0) + a.sum(1, keepdim=True) * step_b + a.shape[1] * step_a * step_b) + 1e-6


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(1, 40),
    inputs=st.integers(1, 40),
    outputs=st.integers(1, 40),
    bias=st.booleans(),
    spread=st.floats(0, 3),
    seed=st.integers(0, 2**31),
)
def test_products_keep_within_half_a_step(
    eager: None, rows: int, inputs: int, outputs: int, bias: bool, spread: float, seed: int
):
    chance = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        wide = torch.randn(shape, generator=chance) * spread
        return torch.randn(shape, generator=chance) * wide.exp()

    x, weight, gradient = draw(rows, inputs), draw(outputs, inputs), draw(rows, outputs)
    offset = draw(outputs) if bias else None
    found = _products(x, weight, offset, gradient)
    exact = _products(x.double(), weight.double(), offset if offset is None else offset.double(), gradient, F.linear)
    rounding = 1e-5 * (x.abs() @ weight.t().abs() + (0 if offset is None else offset.abs()))
    bounds = [
        _bound(x, weight.t()) + rounding,
        _bound(gradient, weight),
        _bound(gradient.t(), x),
        1e-5 * gradient.abs().sum(0) + 1e-6,
    ]
    for one, other, bound in zip(found, exact, bounds, strict=False):
        assert one.dtype == torch.float32
        assert ((one.double() - other).abs() <= bound).all()


def test_normal_numbers_lose_about_one_percent(eager: None):
    chance = torch.Generator().manual_seed(0)
    x, weight, gradient = (torch.randn(shape, generator=chance) for shape in ((256, 192), (320, 192), (256, 320)))
    for one, other in zip(
        _products(x, weight, None, gradient), _products(x, weight, None, gradient, F.linear), strict=True
    ):
        assert 0.001 < (one - other).norm() / other.norm() < 0.015


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.tuples(*[st.integers(1, 24)] * 3),
    powers=st.tuples(*[st.integers(-20, 20)] * 3),
    seed=st.integers(0, 2**31),
)
def test_integers_that_fit_are_exact(eager: None, sizes: tuple[int, int, int], powers: tuple[int, int, int], seed: int):
    rows, inputs, outputs = sizes
    chance = torch.Generator().manual_seed(seed)

    def draw(*shape: int, power: int) -> Tensor:
        whole = torch.randint(-127, 128, shape, generator=chance)
        whole[0], whole[:, 0] = 127, -127
        return whole.float() * 2.0**power

    x, weight = draw(rows, inputs, power=powers[0]), draw(outputs, inputs, power=powers[1])
    gradient = draw(rows, outputs, power=powers[2])
    for one, other in zip(
        _products(x, weight, None, gradient),
        _products(x.double(), weight.double(), None, gradient.double(), F.linear),
        strict=True,
    ):
        assert torch.equal(one.double(), other)


def test_under_autocast_all_but_weights_is_bfloat16(eager: None):
    chance = torch.Generator().manual_seed(2)
    x, weight, bias, gradient = (torch.randn(n, generator=chance) for n in ((64, 48), (32, 48), (32,), (64, 32)))
    plain = _products(x, weight, bias, gradient)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        product = int8_linear(x, weight, bias)
    assert product.dtype == torch.bfloat16
    narrow = _products(x, weight, bias, gradient, lambda *given: _autocast(*given).float())
    for one, other in zip(narrow, plain, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 0.02 * other.norm()


def _autocast(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return int8_linear(x, weight, bias)


@pytest.mark.slow
@pytest.mark.parametrize("bias", [True, False])
def test_compiled_equals_eager(monkeypatch: pytest.MonkeyPatch, bias: bool):
    chance = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=chance)

    def found(matmul: Callable[..., Tensor]) -> list[Tensor]:
        with monkeypatch.context() as patch:
            patch.setattr(linear_module, "_int8_matmul", matmul)
            return _products(*given)

    for rows, inputs, outputs in ((37, 24, 53), (64, 33, 18)):
        given = draw(rows, inputs), draw(outputs, inputs), draw(outputs) if bias else None, draw(rows, outputs)
        given[0][3], given[3][5] = 0.0, 0.0
        for one, other in zip(
            found(linear_module._compiled_int8_reference()), found(linear_module._int8_reference), strict=True
        ):
            # The bias's gradient is a sum in another order.
            assert torch.equal(one, other) if one.dim() > 1 else torch.allclose(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("library", ["ours", "torch's"])
def test_what_torch_compiles_is_the_same(library: str):
    if library == "ours" and not matmul.supports_int8():
        pytest.skip("this processor has no such instructions")
    command = [sys.executable, "-m", "tests.training.compiled_int8", library]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "equal"


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("compiled", [True, False])
def test_what_is_not_finite_stays_so(
    eager: None, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, bad: float, compiled: bool
):
    if compiled and "torch" in request.node.name:
        monkeypatch.setattr(linear_module, "_int8_matmul", linear_module._compiled_int8_reference())
    x, weight, gradient = torch.randn(37, 24), torch.randn(53, 24), torch.randn(37, 53)
    broken = x.clone()
    broken[2, 3] = bad
    found, _, grad_weight = _products(broken, weight, None, gradient)
    assert not found[2].isfinite().any()
    assert found[3:].isfinite().all()
    assert not grad_weight.isfinite().all()
    broken = weight.clone()
    broken[2, 3] = bad
    found, grad_x, _ = _products(x, broken, None, gradient)
    assert not found[:, 2].isfinite().any()
    assert not grad_x[:, 3].isfinite().any()
    broken = gradient.clone()
    broken[2, 3] = bad
    _, grad_x, grad_weight = _products(x, weight, None, broken)
    assert not grad_x[2].isfinite().any()
    assert not grad_weight[3].isfinite().any()


def test_nothing_and_next_to_nothing_are_zero(eager: None):
    x, weight, gradient = torch.zeros(7, 8), torch.randn(9, 8), torch.randn(7, 9)
    x[1] = 1e-42
    found, _, grad_weight = _products(x, weight, None, gradient)
    assert torch.equal(found, torch.zeros(7, 9))
    assert torch.equal(grad_weight, torch.zeros(9, 8))


def test_small_and_very_long_products_stay_in_float32(monkeypatch: pytest.MonkeyPatch):
    x, weight, gradient = torch.randn(16, 8), torch.randn(4, 8), torch.randn(16, 4)

    def same() -> bool:
        pairs = zip(_products(x, weight, None, gradient), _products(x, weight, None, gradient, F.linear), strict=True)
        return all(torch.equal(one, other) for one, other in pairs)

    assert not same()
    monkeypatch.setattr(matmul, "_MAX_DEPTH", 15)
    assert same()
    monkeypatch.setattr(matmul, "_MAX_DEPTH", 16)
    monkeypatch.setattr(matmul, "_MIN_SIZE", 16 * 8 * 4 + 1)
    assert same()
    assert int8_linear(torch.empty(0, 8), weight, None).shape == (0, 4)


def _model(name: str = "gpt2-nano", *, tied: bool = True) -> af.Transformer:
    torch.manual_seed(0)
    return af.build(
        af.preset(
            name,
            vocab_size=40,
            d_model=32,
            dropout=0.0,
            decoder_layers=2,
            attention={"heads": 2, "kv_heads": None, "head_dim": None, "dropout": 0.0},
            feed_forward={"width": 64},
            embedding={"dropout": 0.0, "tied": tied},
        )
    )


def test_only_products_inside_blocks_change_and_only_in_training(eager: None):
    plain, model = _model("llama-nano", tied=False), _model("llama-nano", tied=False)
    use_int8(model)
    assert model.head is not None
    assert [type(part) for part in model.head.children()] == [Linear]
    changed = {name for name, part in model.named_modules() if getattr(part, "matmul", "float") == "int8"}
    assert changed == {n for n, part in plain.named_modules() if type(part) is Linear and ".blocks." in n} | {"head"}
    assert model.state_dict().keys() == plain.state_dict().keys()
    tokens = torch.randint(40, (3, 12))
    assert not torch.equal(model(tokens).logits, plain(tokens).logits)
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, plain(tokens).logits)
    model.eval(), plain.eval()
    assert torch.equal(model(tokens).logits, plain(tokens).logits)


def _batch(step: int = 0) -> Batch:
    tokens = torch.randint(40, (4, 13), generator=torch.Generator().manual_seed(step)).numpy()
    return Batch(tokens[:, :-1], tokens[:, 1:])


def test_a_batch_is_learnt_by_heart_and_evaluated_in_float32():
    engine = single(_model(), precision=INT8)
    assert isinstance(engine, Strategy)
    loss = [engine.step(number, _batch(), 1e-2)[0].item() for number in range(80)]
    assert loss[0] > 3
    assert loss[-1] < 0.1
    plain = _model()
    plain.load_state_dict(engine.model.state_dict())
    assert engine.evaluate(_batch(1)) == single(plain).evaluate(_batch(1))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_run_is_the_same_to_the_bit(tmp_path: Path, optimizer: str):
    first = single(_model(), precision=INT8, optimizer=optimizer)
    for number in range(4):
        first.step(number, _batch(number), 1e-3)
    (tmp_path / "saved").mkdir()
    first.save(tmp_path / "saved")
    second = single(_model(), precision=INT8, optimizer=optimizer)
    second.load(tmp_path / "saved")
    for number in range(4, 8):
        assert first.step(number, _batch(number), 1e-3).equal(second.step(number, _batch(number), 1e-3))
    for one, other in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_command_trains_and_saves_an_ordinary_model(text: Path, trains: Trains):
    flags = ["gpt2-nano", "--data", str(text), "--tokenizer", "char", *TINY]
    flags += ["--steps", "30", "--context", "16", "--batch-size", "8", "--learning-rate", "1e-2"]
    whole = trains(*flags, "--dtype", "float32", name="float32")
    run = trains(*flags, "--dtype", "int8", name="int8")
    assert "dtype: int8" in (run / "config.yaml").read_text()
    found, exact = (losses(path)[-2] for path in (run, whole))
    assert found != exact
    assert found == pytest.approx(exact, rel=0.03)
    assert (run / "model" / "config.json").read_bytes() == (whole / "model" / "config.json").read_bytes()
    assert sorted(p.name for p in (run / "model").iterdir()) == sorted(p.name for p in (whole / "model").iterdir())
    model, _ = af.load(model_directory(run))
    assert not any(getattr(part, "matmul", "float") == "int8" for part in model.modules())


@pytest.mark.parametrize(("bfloat16", "int8"), [(0.5, 0.25), (0.5, 0.49), (2.0, 0.5), (2.0, 2.0)])
def test_precision_says_what_it_is_and_what_it_gains(bfloat16: float, int8: float, monkeypatch: pytest.MonkeyPatch):
    if not matmul.supports_int8():
        pytest.skip("it is not measured without compiled code")
    times = {"float32": 1.0, "bfloat16": bfloat16, "int8": int8}
    monkeypatch.setattr(precision, "product_seconds", lambda products, dtypes: {name: times[name] for name in dtypes})
    chosen, rest = choose_precision("cpu", "int8"), "bfloat16" if bfloat16 < 1 else "float32"
    gain = times[rest] / int8
    assert chosen.dtype == getattr(torch, rest)
    assert str(chosen).startswith(f"int8 on cpu (as asked; bfloat16 products run {1 / bfloat16:.1f} times as fast")
    assert f"those of int8 {gain:.1f} times as fast as those of {rest}" in str(chosen)
    assert ("gains nothing here, leave --dtype out" in str(chosen)) == (gain < 1.1)
    assert peak_flops_per_second(chosen) > 1e9
    assert choose_precision("cpu", "bfloat16").name != "int8"


def test_it_is_refused_where_it_gains_nothing(monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        patch.setattr(precision, "_device", lambda name: torch.device("meta"))
        with pytest.raises(UserError, match="--dtype int8 is for CPUs, and this run is on meta"):
            choose_precision("meta", "int8")
    with monkeypatch.context() as patch:
        patch.setattr(precision.levels, "features", lambda: frozenset({"avx2"}))
        with pytest.raises(UserError, match="needs a CPU with VNNI"):
            choose_precision("cpu", "int8")
    monkeypatch.setattr(precision, "can_compile", lambda device: False)
    monkeypatch.setattr(matmul, "supports_int8", lambda: False)
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler"):
        choose_precision("cpu", "int8")


@pytest.mark.parametrize("engine", ["fsdp", "deepspeed"])
def test_strategies_that_it_does_not_know_are_refused(engine: str):
    with pytest.raises(UserError, match=f"--dtype int8 does not work with --engine {engine}"):
        TrainConfig(model=af.preset("gpt2-nano"), dtype="int8", engine=engine, processes=2)


def test_what_is_converted_without_gradients_is_not_taken_for_more(eager: None):
    layer, x = _int8_layer(), torch.randn(37, 24, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with torch.inference_mode():
            kept = linear_module.int8_linear(x + 0, layer.weight, layer.bias)
        products = [layer(x) for _ in range(2)]
        assert torch.equal(kept, products[0])
        products[0].sum().backward()
        first = x.grad
        x.grad = None
        products[1].sum().backward()
        assert first is not None
        assert torch.equal(first, x.grad)
        changed = x.detach().clone().requires_grad_()
        layer(changed)
        with torch.no_grad():
            changed *= 2
        assert torch.equal(layer(changed), layer(changed.detach().clone().requires_grad_()))
