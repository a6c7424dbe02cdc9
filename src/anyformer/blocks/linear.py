"""Layers with weights, where int8 training, quantized weights and low-rank adapters attach; and dropout."""

import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from typing_extensions import override

from anyformer import kernels
from anyformer.blocks.quantized import QuantizedMatrix

Weight = Tensor | QuantizedMatrix


class Dropout(nn.Dropout):
    """``x * keep / (1 - p)``, where `keep` is 0 with probability p and otherwise 1, in training."""

    @property
    def rate(self) -> float:
        """The probability of dropping a number: p in training, otherwise 0."""
        return self.p if self.training else 0.0

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Float[Tensor, "*shape"]
    ) -> Float[Tensor, "*shape"]:
        """Drop some of the numbers."""
        return kernels.dropout(x, self.p, self.training)


def any_dropout(module: nn.Module) -> bool:
    """Whether any part of a module drops something."""
    return module.training and any(part.rate > 0 for part in module.modules() if isinstance(part, Dropout))


class _Acting(threading.local):
    """The adapters that act in a thread, see `using_adapters`; None: all."""

    rows: Mapping[str, Tensor | None] | None = None


_acting = _Acting()


@contextmanager
def using_adapters(rows: Mapping[str, Int[Tensor, " rows"] | None]) -> Generator[None]:
    """Let these adapters alone act in this thread, each on some sequences of a batch without padding; None: on all."""
    before, _acting.rows = _acting.rows, rows
    try:
        yield
    finally:
        _acting.rows = before


def no_adapter_acts() -> bool:
    """Whether `using_adapters` leaves all adapters out in this thread."""
    return _acting.rows is not None and not _acting.rows


def acting_adapters(names: Sequence[str], batch: int) -> list[tuple[str, ...]]:
    """For each sequence of a batch, which of these adapters act on it in this thread."""
    if _acting.rows is None:
        return [tuple(names)] * batch
    acting: list[tuple[str, ...]] = [()] * batch
    for name in names:
        if name in _acting.rows:
            rows = _acting.rows[name]
            for row in range(batch) if rows is None else cast("list[int]", rows.tolist()):
                acting[row] += (name,)
    return acting


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
        dropped = (self.dropout(x) if self.dropout.rate > 0 else x).to(self.a.dtype)
        inner = F.linear(dropped, self.a)
        if self.magnitude is None and not self.training and out.dtype == inner.dtype:
            # The operations of a single token take longer than their work, so there is one.
            rows, added = (each.reshape(-1, each.shape[-1]) for each in (out, inner))
            return torch.addmm(rows, added, self.b.t(), alpha=self.scale).view(out.shape)
        delta = F.linear(self.scale * inner, self.b)
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


class GroupedAdapter(LowRankAdapter):
    """LoRA of each of several matrices W that lie one below another: ``W[group] + scale * B[group] @ A[group]``.

    Args:
        a: A parameter, [groups * rank, inputs].
        b: A parameter, [groups * outputs, rank].
    """

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Float[Tensor, "rows inputs"], out: Float[Tensor, "rows outputs"], ends: Int[Tensor, " groups"]
    ) -> Float[Tensor, "rows outputs"]:
        """The output with the adapter, from the input, sorted by group, and the output without."""
        if not self.enabled:
            return out
        inner = kernels.grouped_linear(x.to(self.a.dtype), self.a, ends)
        return out + kernels.grouped_linear(self.scale * inner, self.b, ends).to(out.dtype)

    @override
    def merged(self, weight: Float[Tensor, "outputs_of_all inputs"]) -> Float[Tensor, "outputs_of_all inputs"]:
        rank = self.b.shape[1]
        delta = self.b.unflatten(0, (len(self.a) // rank, -1)) @ self.a.unflatten(0, (-1, rank))
        return (weight.to(self.a.dtype) + self.scale * delta.flatten(0, 1)).to(weight.dtype)


def dense(weight: Weight, dtype: torch.dtype) -> Tensor:
    """The weight in floating point."""
    return weight.dequantize(dtype) if isinstance(weight, QuantizedMatrix) else weight.to(dtype)


def linear(
    x: Float[Tensor, "*batch inputs"],
    weight: Float[Tensor, "outputs inputs"] | QuantizedMatrix,
    bias: Float[Tensor, " outputs"] | None = None,
    *,
    matmul: kernels.Matmul = "float",
) -> Float[Tensor, "*batch outputs"]:
    """``x @ weight.T + bias``, of a weight in floating point or quantized (see `kernels.linear` for `matmul`)."""
    if isinstance(weight, QuantizedMatrix):
        return kernels.quantized_linear(x, weight.packed_weight, bias, transposed=weight.transposed)
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
        # `self.adapters` would search all parameters and buffers first, for each layer and token.
        return out if self._modules["adapters"] is None else self.adapted(x, out, self.weight, self.bias)

    def adapted(
        self,
        x: Float[Tensor, "*batch inputs"],
        out: Float[Tensor, "*batch outputs"],
        weight: Weight,
        bias: Tensor | None,
    ) -> Float[Tensor, "*batch outputs"]:
        """The output with the adapters, from the input, the output without them, the weight, and the bias in it."""
        for adapter, rows in _adapters(self):
            if rows is None:
                out = adapter(x, out, weight, bias)
            else:
                out = out.index_copy(0, rows, adapter(x[rows], out[rows], weight, bias))
        return out

    @override
    def reset_parameters(self) -> None:
        if not self.weight.is_meta:  # where drawing would do nothing but import torch's compiler
            super().reset_parameters()


class GroupedLinear(Linear):
    """Linear layers side by side, of which each row goes through one: ``x @ weight[group].T + bias[group]``.

    Attributes:
        groups: The number of layers.
        weight: Their matrices, one below another: [groups * out_features, in_features].
        bias: Theirs in a row, [groups * out_features]; None: they have none.
    """

    def __init__(self, groups: int, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__(in_features, groups * out_features, bias)
        self.groups = groups

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Float[Tensor, "rows inputs"], ends: Int[Tensor, " groups"]
    ) -> Float[Tensor, "rows outputs"]:
        """Transform rows that are sorted by group; `ends` says where each group ends."""
        if isinstance(self.weight, QuantizedMatrix):
            out = kernels.quantized_grouped_linear(x, self.weight.packed_weight, ends)
        else:
            out = kernels.grouped_linear(x, self.weight, ends, matmul=self.matmul if self.training else "float")
        for adapter, rows in _adapters(self):
            assert rows is None  # which loading sees to: here the tokens of all sequences are sorted
            out = cast("GroupedAdapter", adapter)(x, out, ends)
        return out if cast("Tensor | None", self.bias) is None else out + kernels.rows_by_group(self.bias, ends, len(x))


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
        for adapter, rows in _adapters(self):
            if rows is None:
                out = adapter.rows(ids, out)
            else:
                out = out.index_copy(0, rows, adapter.rows(ids[rows], out[rows]))
        return out

    @override
    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


def _adapters(module: Linear | Embedding) -> Iterator[tuple[LowRankAdapter, Tensor | None]]:
    """The adapters that act, and on which sequences; None: on all."""
    acting = _acting.rows
    for name, adapter in () if module.adapters is None else module.adapters.items():
        if acting is None or name in acting:
            yield cast("LowRankAdapter", adapter), None if acting is None else acting[name]


def replace_weight(module: nn.Module, weight: QuantizedMatrix) -> None:
    """Replace a module's parameter by a quantized weight."""
    del module.weight
    module.weight = weight
