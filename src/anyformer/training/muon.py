"""Muon (Jordan et al. 2024): momentum, made orthogonal, for the matrices of a network.

torch.optim.Muon is the same update with its products always in bfloat16, which halves the speed of CPUs that have
bfloat16 instructions but no matrix unit for them. Here the format is chosen; the tests hold the two to be equal.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anyformer.training.dtensor import distribute_like, full_tensor

# As in https://kellerjordan.github.io/posts/muon/ and torch.optim.Muon.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_STACK = 1 << 20
"""Numbers that are orthogonalised at a time, but at least one matrix: larger products fill the cores alone."""


class Muon(torch.optim.Optimizer):
    """Muon for matrices and AdamW for the rest, as one optimizer with one learning rate.

    An orthogonal update is scaled by ``0.2 sqrt(max(rows, columns))``, to be as large as AdamW's usual one, so both
    are content with the same learning rate and weight decay (Liu et al. 2025, Muon is scalable for LLM training,
    section 2.2).

    Small matrices of one shape are orthogonalised as one stack: with many tiny products, starting them is what takes
    time. Matrices may be DTensors (FSDP2): a stack of them at a time is gathered, and orthogonalised in every process.

    Args:
        matrices: what Muon updates.
        rest: the optimizer of everything else.
        weight_decay: of the matrices, decoupled.
        momentum: share of the old momentum that is kept; the update looks ahead (Nesterov).
        dtype: the format of the matrix products.

    Raises:
        ValueError: one of the matrices isn't one.
    """

    found_inf: Tensor | None = None
    """As of a fused AdamW: where it is 1, a step changes nothing, and the host need not know."""

    def __init__(
        self,
        matrices: list[nn.Parameter],
        rest: torch.optim.AdamW,
        learning_rate: float,
        *,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        for matrix in matrices:
            if matrix.dim() != 2:
                raise ValueError(f"Muon updates matrices, not a parameter of shape {tuple(matrix.shape)}")
        own = {"params": matrices, "lr": learning_rate, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__([own, *rest.param_groups], {})
        self._rest = rest
        self._step_supports_amp_scaling = getattr(rest, "_step_supports_amp_scaling", False)
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        own, *others = self.param_groups
        for stack in _stacks([matrix for matrix in own["params"] if matrix.grad is not None]):
            self._update(stack, own)
        # One state and one set of groups, wherever they were loaded from.
        self._rest.param_groups, self._rest.state = others, self.state
        self._rest.found_inf = self.found_inf  # pyright: ignore[reportAttributeAccessIssue]
        self._rest.step()
        return loss

    def _update(self, matrices: list[nn.Parameter], group: dict[str, Any]) -> None:
        ahead = [full_tensor(self._ahead(matrix, group["momentum"])) for matrix in matrices]
        wide = torch.stack([matrix if _is_wide(matrix) else matrix.T for matrix in ahead])
        for matrix, update in zip(matrices, orthogonalise(wide, self.dtype), strict=True):
            mine = distribute_like(update if _is_wide(matrix) else update.T, matrix)
            decay = group["lr"] * group["weight_decay"]
            if self.found_inf is not None:
                taken = 1 - self.found_inf
                mine, decay = mine * taken, decay * taken
            matrix.mul_(1 - decay)
            matrix.add_(mine, alpha=-0.2 * group["lr"] * math.sqrt(max(matrix.shape)))

    def _ahead(self, matrix: nn.Parameter, share: float) -> Tensor:
        """The gradient, seen from where the momentum leads."""
        gradient, state = matrix.grad, self.state[matrix]
        assert gradient is not None
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        momentum: Tensor = state["momentum_buffer"]
        if self.found_inf is not None:
            gradient = torch.where(self.found_inf > 0, momentum, gradient)
        momentum.lerp_(gradient, 1 - share)
        return gradient.lerp(momentum, share)


def _is_wide(matrix: Tensor) -> bool:
    return matrix.shape[0] <= matrix.shape[1]


def _stacks(matrices: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Matrices of one shape, lying or standing, a few at a time."""
    alike: dict[tuple[int, ...], list[nn.Parameter]] = {}
    for matrix in matrices:
        alike.setdefault(tuple(sorted(matrix.shape)), []).append(matrix)
    for (rows, columns), members in alike.items():
        count = max(1, _STACK // (rows * columns))
        for first in range(0, len(members), count):
            yield members[first : first + count]


def orthogonalise(
    matrix: Float[Tensor, "*stack rows columns"], dtype: torch.dtype = torch.float32
) -> Float[Tensor, "*stack rows columns"]:
    """About ``U V^T`` of each matrix ``U S V^T``: singular values between 0.7 and 1.2, by a Newton-Schulz iteration.

    Each iteration is ``X <- a X + b (X X^T) X + c (X X^T)^2 X``. In float32 and for long matrices it runs on the
    small Gram matrix ``X X^T`` alone, of which each iteration is a polynomial, and X comes in at the end: 1.8 times
    fewer operations at 1 to 4. In bfloat16 that diverges: squares of small singular values are lost in its rounding,
    which the polynomials then enlarge.

    Args:
        matrix: is scaled in its own format first, for a gradient can be too small or too large for float16.
        dtype: the format of the products.
    """
    if matrix.shape[-2] > matrix.shape[-1]:
        return orthogonalise(matrix.mT, dtype).mT
    x = (matrix / matrix.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)).to(dtype)
    rows, columns = x.shape[-2:]
    if columns >= 2 * rows and torch.finfo(dtype).bits >= 32:
        return _by_gram(x).to(matrix.dtype)
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = _sum(x, _sum(gram, gram, gram, b, c), x, a, 1.0)
    return x.to(matrix.dtype)


def _by_gram(x: Tensor) -> Tensor:
    a, b, c = _COEFFICIENTS
    gram = x @ x.mT
    product = None
    for iteration in range(_ITERATIONS):
        factor = _sum(gram, gram, gram, b, c)
        factor.diagonal(dim1=-2, dim2=-1).add_(a)
        product = factor if product is None else factor @ product
        if iteration < _ITERATIONS - 1:
            gram = factor @ gram @ factor
    assert product is not None
    return product @ x


def _sum(added: Tensor, left: Tensor, right: Tensor, beta: float, alpha: float) -> Tensor:
    """``beta added + alpha left @ right``."""
    fused = torch.addmm if added.dim() == 2 else torch.baddbmm
    return fused(added, left, right, beta=beta, alpha=alpha)
