"""Root mean square layer normalization."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from anyformer.kernels.cpu import rms_norm as cpu


def rms_norm(
    input: Float[Tensor, "*batch width"], weight: Float[Tensor, " width"], eps: float
) -> Float[Tensor, "*batch width"]:
    """``input / sqrt(mean(input^2) + eps) * weight`` over the last dimension, in the dtype of the input."""
    if input.requires_grad and weight.shape == input.shape[-1:] and cpu.supports(input):
        out, _ = cpu.forward(input.float().contiguous(), weight.float(), eps)
        return out.to(input.dtype)
    # Heads of queries and keys can have a lower precision than the weight; torch is slow at such a mixture, and warns.
    dtype = torch.promote_types(input.dtype, weight.dtype)
    return F.rms_norm(input.to(dtype), weight.shape, weight.to(dtype), eps).to(input.dtype)
