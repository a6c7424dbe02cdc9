"""Host memory: freed memory is kept for the next step, and running out of it is a sentence.

glibc hands large blocks back to the system as soon as they are freed, and gets them again, zeroed page by page, a
moment later. A training step allocates the same large tensors every time, so this is pure loss: on two cores a step of
GPT-2 took 3.03 s with it and 1.91 s without.

Only the first step of a run does not keep its memory. What stays of it, such as the optimizer's state, would lie
between its tensors, and split the room that those of all other steps need: a step of GPT-2 nano in float32 took 549 MB
instead of 410.

Small objects would split it as well. For a tensor aligned to 64 bytes glibc takes 96 bytes more than it needs, and cuts
off both ends, where the next small objects settle. One that outlives the tensor keeps its room from being joined with
its neighbors'. So there are free blocks of the same sizes elsewhere, which glibc takes before the ends because they
have been free for longer: a step of LLaMA nano with gradient checkpointing takes 195 MB instead of 298. Larger objects,
such as a dictionary, go into the smallest free block that has the room for them; some of 32 kB keep them out of those
of tensors: BERT mini with checkpointing took 288 MB in one run of five, and takes 261.
"""

import ctypes
import os
import platform
import re
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import torch

from anyformer.errors import UserError

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGE = 1 << 17
"""Bytes of a block that is handed back: glibc's own threshold, before it adapts."""
_FREE_BLOCKS = {**dict.fromkeys(range(24, 104, 16), 4000), 1 << 15: 64}
"""Number of blocks of each size in bytes. The first are those that an object in the end of a tensor may have: glibc's
blocks of 32 to 96 bytes, less its header; twice as many save 0 to 2% more of a step of 30 layers. All take 3 MB, and 2
more once the last are used."""
_separators: list[int] = []
"""Addresses of the blocks that stay in use between the free ones, or these would be joined."""


def keep_freed_memory() -> bool:
    """Tell glibc to keep memory that is freed from now on; returns whether it will. Does nothing elsewhere.

    What is free already goes back to the system: no step uses what loading and quantizing a model left behind.
    """
    libc = _glibc()
    if libc is None:
        return False
    libc.malloc_trim(0)
    _reserve_blocks(libc)
    # Older versions refuse all above 32 MB.
    kept = any(libc.mallopt(_M_MMAP_THRESHOLD, size) for size in (1 << 30, 1 << 25))
    return kept and bool(libc.mallopt(_M_TRIM_THRESHOLD, 1 << 30))


def _reserve_blocks(libc: ctypes.CDLL) -> None:
    """Free every second of many blocks."""
    libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    libc.free.argtypes, libc.free.restype = [ctypes.c_void_p], None
    while _separators:
        libc.free(_separators.pop())
    blocks = [libc.malloc(size) for size, number in _FREE_BLOCKS.items() for _ in range(2 * number)]
    _separators.extend(blocks[1::2])
    for address in blocks[::2]:
        libc.free(address)


def return_freed_memory() -> None:
    """Tell glibc to hand large blocks back to the system as soon as they are freed, and what is free at once.

    By default it keeps blocks as large as any that was freed before.
    """
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE)
        libc.mallopt(_M_TRIM_THRESHOLD, _LARGE)


def has_room(size: int) -> bool:
    """Whether so many bytes, and as many again, are free on this machine for each of its processes; True if unknown."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    free = proc_field("meminfo", "MemAvailable")
    return free is None or 2 * size * processes <= free


def proc_field(file: str, field: str) -> int | None:
    """Bytes that a file of Linux in /proc says of a field, such as VmRSS of self/status; None where there is none."""
    try:
        kilobytes = re.search(rf"^{field}:\s*(\d+) kB", Path("/proc", file).read_text(encoding="ascii"), re.MULTILINE)
    except (OSError, UnicodeDecodeError):
        return None
    return int(kilobytes[1]) * 1024 if kilobytes else None


def trim_heap() -> None:
    """Have glibc hand back to the system what is free now, once."""
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


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
