"""Whether padding is left out of what is computed."""

import torch
from jaxtyping import Bool
from torch import Tensor


def skips_padding(mask: Bool[Tensor, "batch time"]) -> bool:
    """Whether the tokens of a padded batch are best computed without the padding between them.

    On a CPU they are, where there is some. An accelerator would have to wait until the host knows how many they are.
    """
    if mask.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return 0 < int(mask.sum()) < mask.numel()
