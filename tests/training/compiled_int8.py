"""Compare an int8 layer under torch.compile with an eager one.

A program of its own, for torch.compile can't look through the checks of shapes that tests run with.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from anyformer.blocks.linear import Linear
from anyformer.kernels.cpu import matmul

linear_module: Any = import_module("anyformer.kernels.linear")  # where a function of the package has its name


def main(library: str) -> None:
    matmul._MIN_SIZE = 0
    if library == "torch's":
        linear_module._int8_matmul = linear_module._int8_reference
    torch.manual_seed(0)
    layer, x = Linear(24, 53), torch.randn(37, 24)
    layer.matmul = "int8"
    whole = nn.Sequential(layer, nn.GELU()).train()

    def found(function: Callable[[Tensor], Tensor]) -> list[Tensor]:
        leaves = [x.clone().requires_grad_(), *whole.parameters()]
        product = function(leaves[0]).tanh()
        return [product.detach(), *torch.autograd.grad(product, leaves, torch.ones_like(product))]

    eager, compiled = found(whole), found(torch.compile(whole, fullgraph=True))
    for one, other in zip(compiled, eager, strict=True):
        torch.testing.assert_close(one, other, atol=0.02 * float(other.abs().max()), rtol=0)
    layer.matmul = "float"
    assert not torch.equal(found(whole)[0], eager[0])
    print("equal")


if __name__ == "__main__":
    main(sys.argv[1])
