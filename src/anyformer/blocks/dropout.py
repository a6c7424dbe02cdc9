"""Dropout (Srivastava et al. 2014)."""

from jaxtyping import Float
from torch import Tensor, nn

from anyformer import kernels


class Dropout(nn.Module):
    """``x * keep / (1 - p)``, where `keep` is 0 with probability p and otherwise 1, in training."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Drop some of the numbers."""
        return kernels.dropout(x, self.p, self.training)

    def extra_repr(self) -> str:
        """The rate, as `nn.Dropout` prints it."""
        return f"p={self.p}"
