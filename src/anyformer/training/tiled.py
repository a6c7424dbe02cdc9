"""Linear layers that learn in compiled code, on CPUs that multiply matrices of bfloat16 numbers (Intel's AMX).

There torch's two products that need no transposition run at full speed; the third, the gradient of the weights, at half
of it, and it comes in bfloat16, to be converted. Compiled code makes it in float32 in less time.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from anyformer.kernels.cpu.weight_grad import can_sum, outer_products
from anyformer.training.rows import rows_of


class TiledLinear(nn.Linear):
    """A linear layer whose weights get their gradient from `outer_products`; in evaluation it is an ordinary one."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Float[Tensor, "*batch inputs"]
    ) -> Float[Tensor, "*batch outputs"]:
        """``x @ weight.T + bias``."""
        if self.training and torch.is_grad_enabled() and self.weight.requires_grad and can_sum(x):
            with torch.autocast("cpu", enabled=False):
                made: Tensor = _Linear.apply(rows_of(x, torch.bfloat16), self.weight, self.bias)  # pyright: ignore[reportAssignmentType]
            return made.view(*x.shape[:-1], self.out_features)
        return F.linear(x, self.weight, self.bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        narrow = weight.bfloat16()
        ctx.save_for_backward(x, narrow)
        return F.linear(x, narrow, None if bias is None else bias.bfloat16())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        gradient = grad_outputs[0]
        sums = torch.empty(gradient.shape[1]) if wants_bias else None
        return (
            gradient @ weight if wants_x else None,
            outer_products(gradient, x, sums=sums) if wants_weight or wants_bias else None,
            sums,
        )
