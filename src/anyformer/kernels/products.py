"""The format in which products are computed."""

import torch
from torch import Tensor


def product_format(x: Tensor) -> torch.dtype:
    """Autocast's, where it is on, and otherwise that of the tensor."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
