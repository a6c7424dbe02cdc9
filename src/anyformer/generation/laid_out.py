"""Weights laid out once as a processor's products want them, for as long as many texts are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class LaidOut(TorchFunctionMode):
    """Computes linear layers in one format, with weights that are converted and laid out once, not for each product.

    Without it oneDNN lays a matrix out anew whenever it is used, which for some hundred rows is a part of the time.

    Args:
        dtype: the format of the products, and of what comes out of them.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype
        self._known: dict[Tensor, tuple[Tensor, Tensor | None]] = {}
        self._latest: tuple[Tensor, Tensor] | None = None

    @staticmethod
    def pays(device: torch.device, dtype: torch.dtype) -> bool:
        """Whether there is anything to lay out."""
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
        # A matrix that is no parameter was made for this one product, from integers for instance.
        if func is not F.linear or kwargs or len(args) != 3 or not isinstance(args[1], nn.Parameter):
            return func(*args, **(kwargs or {}))
        x, weight, bias = args
        if weight not in self._known:
            rows = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(self._dtype))
            self._known[weight] = rows, None if bias is None else bias.detach().to(self._dtype)
        # Queries, keys and values are made of the same vectors.
        if self._latest is None or self._latest[0] is not x:
            self._latest = x, x.to(self._dtype)
        rows, added = self._known[weight]
        return torch.ops.mkldnn._linear_pointwise(self._latest[1], rows, added, "none", [], "")
