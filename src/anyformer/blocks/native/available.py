"""Whether there is compiled code for what training computes here.

Who asks waits for the compiler, for the results are not quite torch's.
"""

import torch
from torch import Tensor

from anyformer.blocks.native.build import has_pairs, has_tiles, library, wanted
from anyformer.blocks.products import product_format


def can_pair(x: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Attention, activations, norms and the softmax of the loss: for bfloat16, where processors multiply pairs of it.

    Args:
        x: What they are applied to.
        dtype: In this format; None: in that of its products.
    """
    if x.device.type != "cpu" or (dtype or product_format(x)) != torch.bfloat16 or torch.compiler.is_compiling():
        return False
    return wanted() and has_pairs() and _has("pairs")


def can_tile(x: Tensor, dtype: torch.dtype | None = None) -> bool:
    """The gradient of a matrix: the same where processors multiply whole matrices (see wide.h)."""
    return has_tiles() and can_pair(x, dtype) and _has("wide_rows")


# Its answer never changes, and torch.compile would not find it out by itself.
@torch.compiler.assume_constant_result
def can_round() -> bool:
    """Products of 8-bit integers, where processors sum four at a time, and don't multiply whole matrices of them."""
    return wanted() and not has_tiles() and _has("rounds")


def _has(fact: str) -> bool:
    compiled = library().get(wait=True)
    return compiled is not None and getattr(compiled, fact)() > 0
