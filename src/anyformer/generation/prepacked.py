"""Linear layers with weights that are converted and reordered for oneDNN once, while many texts are embedded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class PrepackedLinear(TorchFunctionMode):
    """Computes linear layers in another dtype, with prepacked weights.

    Otherwise oneDNN reorders a weight for every product, which takes a part of the time when there are few rows.

    Args:
        dtype: The dtype of the products and their results.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype
        self._prepacked: dict[Tensor, tuple[Tensor, Tensor | None]] = {}
        self._latest: tuple[Tensor, Tensor] | None = None

    @staticmethod
    def supports(device: torch.device, dtype: torch.dtype) -> bool:
        """Whether oneDNN computes products of this dtype, and can prepack their weights."""
        return (
            device.type == "cpu"
            and dtype == torch.bfloat16
            and torch.backends.mkldnn.is_available()
            and hasattr(torch.ops.mkldnn, "_linear_pointwise")
            and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        )

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        # A weight that is no parameter was computed for this one product, for instance from integers.
        if func is not F.linear or kwargs or len(args) != 3 or not isinstance(args[1], nn.Parameter):
            return func(*args, **(kwargs or {}))
        x, weight, bias = args
        if weight not in self._prepacked:
            packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(self._dtype))
            self._prepacked[weight] = packed, None if bias is None else bias.detach().to(self._dtype)
        # Queries, keys and values are projections of the same tensor.
        if self._latest is None or self._latest[0] is not x:
            self._latest = x, x.to(self._dtype)
        packed, packed_bias = self._prepacked[weight]
        return torch.ops.mkldnn._linear_pointwise(self._latest[1], packed, packed_bias, "none", [], "")
