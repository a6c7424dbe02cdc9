"""Host memory: how much is taken, freed memory is kept for the next step, and running out of it is told in a sentence.

glibc hands large blocks back to the system as soon as they are freed, and gets them again, zeroed page by page, a
moment later. A training step allocates the same large tensors every time, so this is pure loss: on two cores a step of
GPT-2 took 3.03 s with it and 1.91 s without.

Only the first step of a run does not keep its memory. What stays of it, such as the optimizer's state and what
libraries allocate once, would lie between its tensors, and split the room that those of all other steps need: a step of
GPT-2 nano in float32 took 549 MB instead of 410.
"""

import ctypes
import platform
from collections.abc import Generator
from contextlib import contextmanager

import torch

from anyformer.errors import UserError

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGE = 1 << 17
"""Bytes of a block that is handed back: glibc's own threshold, before it adapts."""


def keep_freed_memory() -> bool:
    """Tell glibc to keep memory that is freed from now on; returns whether it will. Does nothing elsewhere.

    What is free already goes back to the system: no step uses what loading and quantizing a model left behind.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    trim_heap()
    libc = ctypes.CDLL(None)
    # Older versions refuse all above 32 MB.
    kept = any(libc.mallopt(_M_MMAP_THRESHOLD, size) for size in (1 << 30, 1 << 25))
    return kept and bool(libc.mallopt(_M_TRIM_THRESHOLD, 1 << 30))


def return_freed_memory() -> None:
    """Tell glibc to hand large blocks back to the system as soon as they are freed, and what is free at once.

    If it is told nothing, it keeps blocks as large as any that was freed before.
    """
    if platform.libc_ver()[0] == "glibc":
        trim_heap()
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE)
        libc.mallopt(_M_TRIM_THRESHOLD, _LARGE)


def trim_heap() -> None:
    """Have glibc hand back to the system what is free now, once."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def explain_out_of_memory() -> Generator[None]:
    """Raise UserError, with what to do about it, where memory runs out."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # On the CPU torch raises a plain RuntimeError.
        out_of_memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not out_of_memory and "can't allocate memory" not in str(error):
            raise
        raise UserError(
            "There is not enough memory: take a smaller --batch-size (--grad-accumulation keeps a step as large), a "
            "smaller --context or model, or give --gradient-checkpointing."
        ) from error
