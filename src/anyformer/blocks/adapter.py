"""Low-rank adapters: what fine-tuning adds to a weight that stays as it is."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from anyformer.blocks.dropout import Dropout
from anyformer.blocks.quantized import QuantizedMatrix

Weight = Tensor | QuantizedMatrix


class LowRankAdapter(nn.Module):
    """LoRA (Hu et al. 2021, section 4.1): a weight W acts as ``W + scale * B @ A``.

    With a magnitude m it is DoRA (Liu et al. 2024, equation 5): each row of ``V = W + scale * B @ A`` is scaled to the
    length that m has for it. The norms of V get no gradient (section 4.3).

    Args:
        a: A parameter, [rank, inputs]; layers that one matrix on disk holds side by side share it.
        b: A parameter, [outputs, rank].
        scale: alpha / rank, or alpha / sqrt(rank) (rsLoRA: Kalajdzievski 2023, section 3).
        dropout: Of the input of A.
        magnitude: A parameter, [outputs]; None: no DoRA.

    Attributes:
        enabled: False leaves the layer as it is.
    """

    def __init__(
        self,
        a: nn.Parameter,
        b: nn.Parameter,
        scale: float,
        *,
        dropout: float = 0.0,
        magnitude: nn.Parameter | None = None,
    ) -> None:
        super().__init__()
        self.a, self.b, self.magnitude = a, b, magnitude
        self.dropout = Dropout(dropout)
        self.scale, self.enabled = scale, True

    def forward(
        self,
        x: Float[Tensor, "*batch inputs"],
        out: Float[Tensor, "*batch outputs"],
        weight: Weight,
        bias: Tensor | None,
    ) -> Float[Tensor, "*batch outputs"]:
        """The output of a linear layer with the adapter, from its input, its output without, its weight and bias."""
        if not self.enabled:
            return out
        dropped = self.dropout(x).to(self.a.dtype)
        delta = F.linear(self.scale * F.linear(dropped, self.a), self.b)
        if self.magnitude is None:
            return out + delta.to(out.dtype)
        ratio = self.magnitude / self._norms(weight)
        base = out if bias is None else out - bias
        if self.dropout.rate > 0:
            base = F.linear(dropped, dense(weight, dropped.dtype))
        return out + ((ratio - 1) * base + ratio * delta).to(out.dtype)

    def rows(self, ids: Int[Tensor, "*batch"], out: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """The rows of an embedding with the adapter, from those without; A is [rank, rows], B [width, rank]."""
        if not self.enabled:
            return out
        return out + (self.scale * F.linear(F.embedding(ids, self.a.t()), self.b)).to(out.dtype)

    def merged(self, weight: Float[Tensor, "outputs inputs"]) -> Float[Tensor, "outputs inputs"]:
        """The weight that acts as this one does with the adapter."""
        merged = weight.to(self.a.dtype) + self.scale * self.b @ self.a
        if self.magnitude is not None:
            merged = (self.magnitude / torch.linalg.vector_norm(merged, dim=1))[:, None] * merged
        return merged.to(weight.dtype)

    def _norms(self, weight: Weight) -> Float[Tensor, " outputs"]:
        with torch.no_grad():
            return torch.linalg.vector_norm(dense(weight, self.a.dtype) + self.scale * self.b @ self.a, dim=1)


def dense(weight: Weight, dtype: torch.dtype) -> Tensor:
    """The weight in floating point."""
    return weight.dequantize(dtype) if isinstance(weight, QuantizedMatrix) else weight.to(dtype)
