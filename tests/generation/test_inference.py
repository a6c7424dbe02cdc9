"""Evaluation mode, whoever else runs the model."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from anyformer.generation.inference import evaluating, likeliest
from tests.generation.models import WRITERS, build


def _modes(model: torch.nn.Module) -> set[bool]:
    return {module.training for module in model.modules()}


def test_the_last_user_puts_a_model_back() -> None:
    model = build(WRITERS["learned"]).train()
    model.decoder.eval()
    before = [module.training for module in model.modules()]
    first, second = evaluating(model), evaluating(model)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert _modes(model) == {False}
    second.__exit__(None, None, None)
    assert [module.training for module in model.modules()] == before


def test_the_likeliest_of_logits_with_nan_is_none() -> None:
    logits = torch.tensor([[0.0, 2.0, 2.0], [1.0, torch.nan, 3.0], [-torch.inf] * 3])
    assert likeliest(logits).tolist() == [1, -1, 0]
    assert likeliest(logits[None].bfloat16()).tolist() == [[1, -1, 0]]


def test_a_generator_that_was_left_half_read_does_not_keep_a_model_from_training() -> None:
    model = build(WRITERS["learned"]).train()
    left = evaluating(model)
    left.__enter__()
    model.train()
    with evaluating(model):
        assert _modes(model) == {False}
    assert _modes(model) == {True}
    model.eval()
    with evaluating(model):
        pass
    assert _modes(model) == {False}


_FORK = """
import os, signal, torch
from anyformer.generation import generate_ids
from tests.generation.models import WRITERS, build
torch.set_num_threads(2)
model = build(WRITERS["learned"])
prompt, large = torch.tensor([[3, 4, 5]]), torch.ones(600, 600)
expected = generate_ids(model, prompt, max_new_tokens=4)
large @ large
if os.fork() == 0:
    signal.alarm(60)
    equal = torch.equal(generate_ids(model, prompt, max_new_tokens=4), expected)
    large @ large
    os._exit(0 if equal else 1)
print(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_process_that_is_forked_after_generating_can_generate() -> None:
    environment = {**os.environ, "ANYFORMER_NATIVE": "0"}  # nothing to compile
    done = subprocess.run([sys.executable, "-c", _FORK], capture_output=True, text=True, check=False, env=environment)
    assert done.stdout == "0\n", done.stderr
