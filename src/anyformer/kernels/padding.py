"""Whether what need not be computed of a batch is left out."""

import torch


def skips_tokens(device: torch.device) -> bool:
    """Whether padding, and what rows have in common, is left out of what is computed of each token by itself.

    On a CPU it is. An accelerator would have to wait until the host knows how many tokens are left.
    """
    return device.type == "cpu" and not torch.compiler.is_compiling()
