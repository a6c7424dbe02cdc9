"""Dropout (Srivastava et al. 2014)."""

from jaxtyping import Float
from torch import Tensor, nn

from anyformer import kernels


class Dropout(nn.Module):
    """``x * keep / (1 - p)``, where `keep` is 0 with probability p and otherwise 1, in training."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    @property
    def rate(self) -> float:
        """The probability of dropping a number: p in training, otherwise 0."""
        return self.p if self.training else 0.0

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Drop some of the numbers."""
        return kernels.dropout(x, self.p, self.training)

    def extra_repr(self) -> str:
        """The rate, as `nn.Dropout` prints it."""
        return f"p={self.p}"


def any_dropout(module: nn.Module) -> bool:
    """Whether any part of a module drops something."""
    return module.training and any(part.rate > 0 for part in module.modules() if isinstance(part, Dropout))
