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


def test_the_compiler_is_not_imported_with_the_kernels() -> None:
    command = "import sys, anyformer.blocks.attention; print('torch._dynamo' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", command], text=True).strip() == "False"
