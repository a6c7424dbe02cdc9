"""Where memory does not suffice."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch

from anyformer.errors import UserError


@contextmanager
def memory_suffices() -> Generator[None]:
    """Say in a sentence that it does not. Raises UserError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # On the CPU torch has no exception of its own for it.
        told = isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
        if not told:
            raise
        raise UserError(
            "There is not enough memory: take a smaller --batch-size (--accumulate keeps a step as large), a smaller "
            "--context or model, or give --checkpoint-gradients."
        ) from error
