"""How operations are registered."""

import subprocess
import sys

import torch

from anyformer.kernels.operation import constant_result


def test_a_constant_result_is_what_torch_calls_one() -> None:
    def ours() -> bool:
        return True

    def theirs() -> bool:
        return True

    assert vars(constant_result(ours)) == vars(torch.compiler.assume_constant_result(theirs))


def test_the_compiler_is_not_imported_with_the_kernels_nor_by_a_step() -> None:
    command = """
import sys, torch, anyformer.blocks.attention
from anyformer.training.optimizer import make_optimizer
optimizer = make_optimizer("muon", torch.nn.Linear(2, 2), 0.1)
optimizer.zero_grad()
optimizer.step()
print('torch._dynamo' in sys.modules)"""
    assert subprocess.check_output([sys.executable, "-c", command], text=True).strip() == "False"
