"""Linear layers: where int8 training, quantized weights and adapters attach."""

from typing import cast

from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from anyformer import kernels
from anyformer.blocks.quantized import QuantizedMatrix


def linear(
    x: Float[Tensor, "*batch inputs"],
    weight: Float[Tensor, "outputs inputs"] | QuantizedMatrix,
    bias: Float[Tensor, " outputs"] | None = None,
    *,
    matmul: kernels.Matmul = "float",
) -> Float[Tensor, "*batch outputs"]:
    """``x @ weight.T + bias``, of a weight in floating point or quantized (see `kernels.linear` for `matmul`)."""
    if isinstance(weight, QuantizedMatrix):
        return kernels.quantized_linear(x, weight.packed, weight.shape[0], bias)
    return kernels.linear(x, weight, bias, matmul=matmul)


class Linear(nn.Linear):
    """``x @ weight.T + bias``.

    Attributes:
        weight: A parameter, or a `QuantizedMatrix` instead of it.
        matmul: "int8" lets it train in products of 8-bit integers (see `kernels.linear`).
        prepacked: Weight and bias in another dtype, which are used in their place (see `kernels.prepacked_linear`).
    """

    matmul: kernels.Matmul = "float"
    prepacked: kernels.PrepackedWeight | None = None

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Float[Tensor, "*batch inputs"]
    ) -> Float[Tensor, "*batch outputs"]:
        """Transform each vector by itself."""
        if self.prepacked is not None:
            return kernels.prepacked_linear(x, self.prepacked)
        return linear(x, self.weight, self.bias, matmul=self.matmul if self.training else "float")

    @override
    def reset_parameters(self) -> None:
        if not self.weight.is_meta:  # where drawing would do nothing but import torch's compiler
            super().reset_parameters()


class Embedding(nn.Embedding):
    """A row of the weight for each id, as `nn.Embedding`; the weight may be quantized."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, ids: Tensor
    ) -> Float[Tensor, "*batch width"]:
        """Look up the rows of the ids, of any shape."""
        weight = cast("Tensor | QuantizedMatrix", self.weight)
        return weight.rows(ids) if isinstance(weight, QuantizedMatrix) else super().forward(ids)

    @override
    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


def replace_weight(module: nn.Module, weight: QuantizedMatrix) -> None:
    """Replace a module's parameter by a quantized weight."""
    del module.weight
    module.weight = weight
