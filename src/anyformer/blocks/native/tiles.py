"""Whether there is compiled code for products of bfloat16 matrices here (see wide.h)."""

import torch
from torch import Tensor

from anyformer.blocks.native.build import has_tiles, library, wanted
from anyformer.blocks.products import product_format


def can_tile(x: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether compiled code may multiply this; it waits for the compiler, for the results are not quite torch's.

    Args:
        x: What is multiplied.
        dtype: In this format; None: in that of its products.
    """
    if x.device.type != "cpu" or (dtype or product_format(x)) != torch.bfloat16 or torch.compiler.is_compiling():
        return False
    if not (wanted() and has_tiles()):
        return False
    compiled = library().get(wait=True)
    return compiled is not None and compiled.wide_rows() > 0
