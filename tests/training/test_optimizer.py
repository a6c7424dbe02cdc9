from __future__ import annotations

import pytest
import torch

import anyformer as af
from anyformer.training.optimiser import adamw, set_learning_rate


@pytest.mark.parametrize("name", ["gpt2-nano", "llama-nano", "bert-tiny"])
def test_only_matrices_are_decayed(name: str):
    model = af.build(af.preset(name, vocab_size=64))
    optimiser = adamw(model, 1e-3, weight_decay=0.1)
    decayed, spared = optimiser.param_groups
    assert decayed["weight_decay"] == 0.1
    assert spared["weight_decay"] == 0.0
    assert all(parameter.dim() >= 2 for parameter in decayed["params"])
    assert all(parameter.dim() < 2 for parameter in spared["params"])
    grouped = [id(parameter) for group in optimiser.param_groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters())


def test_frozen_parameters_are_left_out():
    model = af.build(af.preset("gpt2-nano", vocab_size=64))
    model.tokens.requires_grad_(False)
    optimiser = adamw(model, 1e-3)
    table = model.tokens.table.weight
    assert all(parameter is not table for group in optimiser.param_groups for parameter in group["params"])


def test_a_step_is_that_of_plain_adamw():
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)
    twin = torch.nn.Linear(4, 3)
    twin.load_state_dict(model.state_dict())
    ours = adamw(model, 1e-2, weight_decay=0.1, betas=(0.9, 0.99))
    groups = [{"params": [twin.weight], "weight_decay": 0.1}, {"params": [twin.bias], "weight_decay": 0.0}]
    plain = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.99), foreach=False)
    for _ in range(5):
        x = torch.randn(8, 4)
        for net, optimiser in ((model, ours), (twin, plain)):
            optimiser.zero_grad()
            net(x).square().mean().backward()
            optimiser.step()
    torch.testing.assert_close(model.weight, twin.weight)
    torch.testing.assert_close(model.bias, twin.bias)


def test_learning_rate_is_set_for_all_groups():
    optimiser = adamw(torch.nn.Linear(2, 2), 1e-3)
    set_learning_rate(optimiser, 5e-4)
    assert [group["lr"] for group in optimiser.param_groups] == [5e-4, 5e-4]
