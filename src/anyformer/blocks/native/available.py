"""Whether there is compiled code for what training computes here.

Who asks waits for the compiler, for the results are not quite torch's.
"""

import torch
from torch import Tensor

from anyformer.blocks.native.build import has_pairs, has_tiles, library, wanted
from anyformer.blocks.products import product_format


def can_pair(x: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether compiled code computes attention, activations, norms and the softmax of the loss.

    It does in bfloat16, on processors that multiply pairs of such numbers.

    Args:
        x: What they are applied to.
        dtype: In this format; None: in that of its products.
    """
    if x.device.type != "cpu" or (dtype or product_format(x)) != torch.bfloat16 or torch.compiler.is_compiling():
        return False
    return wanted() and has_pairs() and _has("pairs")


def can_tile(x: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether it computes the gradient of a matrix as well: on processors that multiply whole matrices (see wide.h)."""
    return has_tiles() and can_pair(x, dtype) and _has("wide_rows")


# Its answer never changes, and torch.compile would not find it out by itself.
@torch.compiler.assume_constant_result
def can_round() -> bool:
    """Whether it computes products of 8-bit integers: on processors that sum four at a time, but have no AMX.

    With AMX, which multiplies whole matrices of them, torch's products are faster.
    """
    return wanted() and not has_tiles() and _has("rounds")


def _has(fact: str) -> bool:
    compiled = library().get(wait=True)
    return compiled is not None and getattr(compiled, fact)() > 0
