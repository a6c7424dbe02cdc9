"""Linear layers: where int8 training, quantized weights and adapters attach."""

from collections.abc import Iterable
from typing import cast

from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from anyformer import kernels
from anyformer.blocks.adapter import LowRankAdapter
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
        return kernels.quantized_linear(x, weight.packed_weight, weight.shape[0], bias, transposed=weight.transposed)
    return kernels.linear(x, weight, bias, matmul=matmul)


class Linear(nn.Linear):
    """``x @ weight.T + bias``.

    Attributes:
        weight: A parameter, or a `QuantizedMatrix` instead of it.
        matmul: "int8" lets it train in products of 8-bit integers (see `kernels.linear`).
        prepacked: Weight and bias in another dtype, which are used in their place (see `kernels.prepacked_linear`).
        adapters: What fine-tuning adds, by name (see `LowRankAdapter`); None: nothing.
    """

    matmul: kernels.Matmul = "float"
    prepacked: kernels.PrepackedWeight | None = None
    adapters: nn.ModuleDict | None

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        self.register_module("adapters", None)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Float[Tensor, "*batch inputs"]
    ) -> Float[Tensor, "*batch outputs"]:
        """Transform each vector by itself."""
        if self.prepacked is not None:
            out = kernels.prepacked_linear(x, self.prepacked)
        else:
            out = linear(x, self.weight, self.bias, matmul=self.matmul if self.training else "float")
        return out if self.adapters is None else self.adapted(x, out, self.bias)

    def adapted(
        self, x: Float[Tensor, "*batch inputs"], out: Float[Tensor, "*batch outputs"], bias: Tensor | None
    ) -> Float[Tensor, "*batch outputs"]:
        """The output with the adapters, from the input, the output without them, and the bias that is in it."""
        for adapter in _adapters(self):
            out = adapter(x, out, self.weight, bias)
        return out

    @override
    def reset_parameters(self) -> None:
        if not self.weight.is_meta:  # where drawing would do nothing but import torch's compiler
            super().reset_parameters()


class Embedding(nn.Embedding):
    """A row of the weight for each id, as `nn.Embedding`; the weight may be quantized, and have adapters."""

    adapters: nn.ModuleDict | None

    def __init__(self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx)
        self.register_module("adapters", None)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, ids: Tensor
    ) -> Float[Tensor, "*batch width"]:
        """Look up the rows of the ids, of any shape."""
        weight = cast("Tensor | QuantizedMatrix", self.weight)
        out = weight.rows(ids) if isinstance(weight, QuantizedMatrix) else kernels.in_float32(super().forward(ids))
        for adapter in _adapters(self):
            out = adapter.rows(ids, out)
        return out

    @override
    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


def _adapters(module: Linear | Embedding) -> Iterable[LowRankAdapter]:
    return () if module.adapters is None else cast("Iterable[LowRankAdapter]", module.adapters.values())


def replace_weight(module: nn.Module, weight: QuantizedMatrix) -> None:
    """Replace a module's parameter by a quantized weight."""
    del module.weight
    module.weight = weight
