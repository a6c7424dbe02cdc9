from __future__ import annotations

import copy
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor, nn

import anyformer as af
from anyformer.errors import UserError
from anyformer.training.config import OPTIMIZERS
from anyformer.training.optimizer import (
    AdamW,
    Muon,
    clip_grad_norm_,
    flatten_state,
    load_flat_state,
    make_optimizer,
    orthogonalise,
    set_learning_rate,
)

VOCAB = 32
SMALL = {"vocab_size": VOCAB, "d_model": 16, "dropout": 0.0}


def _model(name: str = "llama-nano") -> af.Transformer:
    torch.manual_seed(0)
    heads = {"heads": 2, "kv_heads": None, "head_dim": None, "dropout": 0.0}
    layers = {
        "gpt2-nano": {"decoder_layers": 2},
        "llama-nano": {"decoder_layers": 2},
        "bert-tiny": {"encoder_layers": 2},
        "t5-small": {"encoder_layers": 1, "decoder_layers": 1},
    }[name]
    return af.build(
        af.preset(name, **SMALL, **layers, attention=heads, feed_forward={"width": 40}, embedding={"dropout": 0.0})
    ).eval()  # without dropout


def _names(model: nn.Module) -> dict[nn.Parameter, str]:
    return {parameter: name for name, parameter in model.named_parameters()}


def _train(model: af.Transformer, optimizer: torch.optim.Optimizer, steps: range, rate: float = 1e-2) -> None:
    for step in steps:
        tokens = torch.randint(0, VOCAB, (2, 9), generator=torch.Generator().manual_seed(step))
        set_learning_rate(optimizer, rate / (1 + step))
        source = {"source": tokens} if model.encoder is not None and model.decoder is not None else {}
        output = model(tokens, targets=tokens, **source)
        assert output.loss is not None
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


@pytest.mark.parametrize("name", ["gpt2-nano", "llama-nano", "bert-tiny"])
def test_only_matrices_are_decayed(name: str):
    model = _model(name)
    optimizer = make_optimizer("adamw", model, 1e-3, weight_decay=0.1)
    decayed, spared = optimizer.param_groups
    assert decayed["weight_decay"] == 0.1
    assert spared["weight_decay"] == 0.0
    assert all(parameter.dim() >= 2 for parameter in decayed["params"])
    assert all(parameter.dim() < 2 for parameter in spared["params"])
    grouped = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters())


@pytest.mark.parametrize("name", ["gpt2-nano", "llama-nano", "bert-tiny", "t5-small"])
def test_muon_has_the_matrices_of_the_blocks_and_adamw_the_rest(name: str):
    model = _model(name)
    optimizer = make_optimizer("muon", model, 1e-3, weight_decay=0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    own, tables, vectors = ([names[id(p)] for p in group["params"]] for group in optimizer.param_groups)
    assert sorted(own + tables + vectors) == sorted(names.values())
    assert own
    assert all(".blocks." in name and model.get_parameter(name).dim() == 2 for name in own)
    assert "token_embedding.table.weight" in tables
    assert all(".blocks." not in name for name in tables)
    assert all(model.get_parameter(name).dim() == 1 for name in vectors)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.1, 0.0]
    assert any("position" in name for name in tables) == (name != "llama-nano")


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_frozen_parameters_are_left_out(name: str):
    model = _model()
    model.token_embedding.requires_grad_(False)
    assert model.decoder is not None
    model.decoder.blocks[0].requires_grad_(False)
    optimizer = make_optimizer(name, model, 1e-3)
    frozen = {id(parameter) for parameter in model.parameters() if not parameter.requires_grad}
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert trained == {id(parameter) for parameter in model.parameters()} - frozen


def test_a_step_is_that_of_plain_adamw():
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    twin = copy.deepcopy(model)
    ours = make_optimizer("adamw", model, 1e-2, weight_decay=0.1, betas=(0.9, 0.99))
    groups = [{"params": [twin.weight], "weight_decay": 0.1}, {"params": [twin.bias], "weight_decay": 0.0}]
    plain = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.99), foreach=False)
    for _ in range(5):
        x = torch.randn(8, 4)
        for net, optimizer in ((model, ours), (twin, plain)):
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(model.weight, twin.weight)
    torch.testing.assert_close(model.bias, twin.bias)


def test_outside_blocks_muon_is_adamw():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3))
    twin = copy.deepcopy(model)
    for net, name in ((model, "muon"), (twin, "adamw")):
        optimizer = make_optimizer(name, net, 1e-2)
        net(torch.arange(5)).square().mean().backward()
        optimizer.step()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert ours.equal(theirs)


@st.composite
def _matrices(draw: st.DrawFn) -> list[Tensor]:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    size = st.integers(1, 40)
    scale = draw(st.sampled_from([1e-4, 1.0, 1e4]))
    shapes = draw(st.lists(st.tuples(size, size), min_size=1, max_size=3))
    return [scale * torch.randn(shape, generator=generator) for shape in shapes]


@contextmanager
def _in_float64() -> Generator[None]:
    """Torch's Muon multiplies in bfloat16 whatever the weights are: by `Tensor.bfloat16`, since 2.15 by its dtype."""
    with patch.object(Tensor, "bfloat16", Tensor.double), patch.object(torch, "bfloat16", torch.float64):
        yield


@settings(max_examples=60)
@given(_matrices(), st.booleans(), st.floats(0.0, 0.2), st.floats(1e-4, 0.1))
def test_muon_is_torchs_muon(gradients: list[Tensor], half: bool, decay: float, rate: float):
    start = [torch.randn_like(gradient) for gradient in gradients]
    ours, theirs = ([nn.Parameter(tensor.clone()) for tensor in start] for _ in range(2))
    dtype = torch.bfloat16 if half else torch.float32
    own = Muon(ours, torch.optim.AdamW([nn.Parameter(torch.zeros(1))]), rate, weight_decay=decay, dtype=dtype)
    torchs = torch.optim.Muon(theirs, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
    for step in range(3):
        for mine, its, gradient in zip(ours, theirs, gradients, strict=True):
            mine.grad = gradient.roll(step, 1) * (1 + step)
            its.grad = mine.grad.clone()
        own.step()
        with nullcontext() if half else _in_float64():
            torchs.step()
    for mine, its, before in zip(ours, theirs, start, strict=True):
        moved = (its - before).norm().item()
        assert (mine - its).norm().item() <= (0.15 if half else 5e-3) * moved + 1e-6


@settings(max_examples=60)
@given(st.integers(1, 24), st.integers(1, 96), st.booleans(), st.integers(0, 6), st.integers(0, 2**31))
def test_both_forms_of_the_iteration_are_one(short: int, long: int, tall: bool, orders: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(*((long, short) if tall else (short, long)), generator=generator)
    matrix = matrix * torch.logspace(0, -orders, matrix.shape[1])
    x = matrix.double()
    x = x.T if x.shape[0] > x.shape[1] else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
    expected = x if x.shape == matrix.shape else x.T
    torch.testing.assert_close(orthogonalise(matrix).double(), expected, rtol=0, atol=2e-3)
    torch.testing.assert_close(orthogonalise(matrix.double(), torch.float64), expected, rtol=0, atol=1e-9)


@settings(max_examples=30)
@given(st.integers(1, 24), st.integers(1, 96), st.integers(0, 2**31))
def test_an_update_is_about_orthogonal(rows: int, columns: int, seed: int):
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    before, after = torch.linalg.svdvals(matrix), torch.linalg.svdvals(orthogonalise(matrix))
    assert after.max() < 1.3
    if before.min() > 0.01 * before.norm():
        assert after.min() > 0.6


@pytest.mark.parametrize("size", [1e-9, 1e9])
def test_gradients_beyond_float16_are_orthogonalised_in_it(size: float):
    torch.manual_seed(0)
    matrix = torch.randn(8, 24)
    torch.testing.assert_close(
        orthogonalise(matrix * size * 100, torch.float16), orthogonalise(matrix), rtol=0, atol=0.02
    )


@pytest.mark.parametrize("orders", [0, 3, 6])
def test_half_precision_bears_small_singular_values(orders: int):
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(96, 96))[0]
    matrix = basis @ (torch.logspace(0, -orders, 96)[:, None] * torch.randn(96, 384))
    expected = orthogonalise(matrix.double(), torch.float64)
    for dtype, bound in ((torch.bfloat16, 0.25), (torch.float32, 1e-3)):
        found = orthogonalise(matrix, dtype).double()
        assert (found - expected).norm() < bound * expected.norm()


def test_a_matrix_without_gradient_stays():
    assert orthogonalise(torch.zeros(3, 5)).equal(torch.zeros(3, 5))


def test_muon_declines_what_is_no_matrix():
    vector = nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match="matrices"):
        Muon([vector], torch.optim.AdamW([vector]), 0.1)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_learning_rate_is_set_for_all_groups(name: str):
    optimizer = make_optimizer(name, _model(), 1e-3)
    set_learning_rate(optimizer, 5e-4)
    assert {group["lr"] for group in optimizer.param_groups} == {5e-4}


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_a_learning_rate_of_zero_changes_nothing(name: str):
    model = _model()
    before = copy.deepcopy(model)
    _train(model, make_optimizer(name, model, 1.0), range(2), rate=0.0)
    for ours, old in zip(model.parameters(), before.parameters(), strict=True):
        assert ours.equal(old)


@pytest.mark.parametrize("family", ["gpt2-nano", "llama-nano", "t5-small"])
@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
@pytest.mark.parametrize("stopped", [0, 1, 3])
def test_stopping_makes_no_difference(name: str, family: str, stopped: int):
    through = _model(family)
    _train(through, make_optimizer(name, through, 1e-2), range(6))

    first = _model(family)
    optimizer = make_optimizer(name, first, 1e-2)
    _train(first, optimizer, range(stopped))
    file = save(flatten_state(optimizer, _names(first)))

    second = _model(family)
    second.load_state_dict(first.state_dict())
    optimizer = make_optimizer(name, second, 1e-2)
    names = dict(reversed(_names(second).items()))
    load_flat_state(optimizer, names, load(file))
    _train(second, optimizer, range(stopped, 6))
    for ours, theirs in zip(second.parameters(), through.parameters(), strict=True):
        assert ours.equal(theirs)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_torchs_own_state_dict_works_too(name: str):
    through = _model()
    optimizer = make_optimizer(name, through, 1e-2)
    _train(through, optimizer, range(2))
    resumed = copy.deepcopy(through)
    twin = make_optimizer(name, resumed, 1e-2)
    twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    _train(through, optimizer, range(2, 4))
    _train(resumed, twin, range(2, 4))
    for ours, theirs in zip(resumed.parameters(), through.parameters(), strict=True):
        assert ours.equal(theirs)


def test_the_state_is_named_by_parameter_and_copied_when_loaded():
    model = _model()
    optimizer = make_optimizer("muon", model, 1e-2)
    names = _names(model)
    assert flatten_state(optimizer, names) == {}
    _train(model, optimizer, range(1))
    state = flatten_state(optimizer, names)
    assert "momentum_buffer.decoder.blocks.0.attention.query.weight" in state
    assert {
        "exp_avg.token_embedding.table.weight",
        "exp_avg_sq.token_embedding.table.weight",
        "step.token_embedding.table.weight",
    } <= set(state)
    assert not any(key.startswith("exp_avg") and ".attention." in key for key in state)
    kept = {key: value.clone() for key, value in state.items()}
    other = make_optimizer("muon", model, 1e-2)
    load_flat_state(other, names, state)
    _train(model, other, range(1, 2))
    assert all(value.equal(kept[key]) for key, value in state.items())


def test_a_state_that_does_not_fit_is_declined_and_changes_nothing():
    model = _model()
    names = _names(model)
    muon, plain = make_optimizer("muon", model, 1e-2), make_optimizer("adamw", model, 1e-2)
    _train(model, muon, range(1))
    _train(model, plain, range(1))
    before = flatten_state(muon, names)
    with pytest.raises(UserError, match=r"exp_avg.*--optimizer"):
        load_flat_state(muon, names, flatten_state(plain, names))
    with pytest.raises(UserError, match=r"no\.such\.weight"):
        load_flat_state(muon, names, {**before, "step.no.such.weight": torch.tensor(1.0)})
    with pytest.raises(UserError, match=r"shape \(2,\)"):
        load_flat_state(
            plain, names, {**flatten_state(plain, names), "exp_avg.token_embedding.table.weight": torch.zeros(2)}
        )
    incomplete = {
        key: value for key, value in flatten_state(plain, names).items() if key != "step.token_embedding.table.weight"
    }
    with pytest.raises(UserError, match=r"token_embedding\.table\.weight"):
        load_flat_state(plain, names, incomplete)
    after = flatten_state(muon, names)
    assert set(after) == set(before)
    assert all(after[key] is before[key] for key in before)


def test_unknown_names_are_declined():
    with pytest.raises(UserError, match="did you mean 'adamw'"):
        make_optimizer("adam", nn.Linear(2, 2), 1e-3)


def parameter(gradient: Tensor | None, shape: tuple[int, ...]) -> nn.Parameter:
    made = nn.Parameter(torch.zeros(shape))
    made.grad = None if gradient is None else gradient.clone()
    return made


@given(
    shapes=st.lists(st.lists(st.integers(0, 40), min_size=0, max_size=3).map(tuple), max_size=4),
    absent=st.integers(0, 4),
    scale=st.sampled_from([0.0, 1e-6, 1e-2, 1.0, 1e4]),
    max_norm=st.sampled_from([1e-3, 1.0, 10.0]),
    stands=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_it_is_that_of_torch(
    shapes: list[tuple[int, ...]], absent: int, scale: float, max_norm: float, stands: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    drawn = [scale * torch.randn(shape, generator=generator) for shape in shapes]
    if stands:
        drawn = [gradient.mT.contiguous().mT if gradient.dim() >= 2 else gradient for gradient in drawn]
    gradients = [None if index == absent else gradient for index, gradient in enumerate(drawn)]
    ours, theirs = ([parameter(g, s) for g, s in zip(gradients, shapes, strict=True)] for _ in range(2))
    norm = clip_grad_norm_(iter(ours), max_norm)
    torch.testing.assert_close(norm, nn.utils.clip_grad_norm_(theirs, max_norm), rtol=1e-5, atol=0)
    for our, their in zip(ours, theirs, strict=True):
        # Torch multiplies by max_norm / (norm + 1e-6) even where that is next to 1.
        torch.testing.assert_close(our.grad, their.grad, rtol=1e-5, atol=0)


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_a_norm_that_is_not_finite_is_told(number: float) -> None:
    broken = parameter(torch.tensor([1.0, number]), (2,))
    assert not clip_grad_norm_([broken], 1.0).isfinite()


def test_a_step_of_kernels_that_are_not_fused_is_taken_back():
    """Also the first, which makes the state."""
    weight, twin = (nn.Parameter(torch.arange(6.0)) for _ in range(2))
    ours, theirs = AdamW([weight], fused=False), torch.optim.AdamW([twin])
    for number in range(4):
        weight.grad = torch.full((6,), torch.nan if number % 2 == 0 else 1.0)
        ours.found_inf = torch.tensor(float(number % 2 == 0))
        ours.step()
        if number % 2:
            twin.grad = weight.grad.clone()
            theirs.step()
        assert weight.equal(twin)
        assert all(tensor.isfinite().all() for tensor in ours.state[weight].values())
    assert all(tensor.equal(theirs.state[twin][name]) for name, tensor in ours.state[weight].items())
