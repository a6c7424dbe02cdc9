"""Memory is kept where glibc hands it out."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from anyformer.training.memory import keep_freed_memory


def test_allocator_is_tuned_where_it_is_glibc():
    assert keep_freed_memory() is (platform.libc_ver()[0] == "glibc")


FREEING = """
import torch
from anyformer.training.memory import proc_field
from anyformer.training.memory import keep_freed_memory, return_freed_memory

for function in (return_freed_memory, keep_freed_memory):
    function()
    before = proc_field("self/status", "VmRSS")
    freed = [torch.zeros(1 << 20) for _ in range(16)]
    del freed
    print(0 if before is None else proc_field("self/status", "VmRSS") - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the heap is glibc's")
def test_freed_memory_is_kept_or_returned() -> None:
    returned, kept = map(int, subprocess.check_output([sys.executable, "-c", FREEING], text=True).split())
    if not kept:
        pytest.skip("this system does not tell")
    assert kept > 60e6
    assert returned < 20e6


SMALL_OBJECTS = """
import ctypes
import torch
from anyformer.training.memory import proc_field
from anyformer.training.memory import keep_freed_memory

keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
for _ in range(2):
    tensors, objects = [], []
    for _ in range(64):
        tensors.append(torch.ones(1 << 18))
        objects.extend(libc.malloc(size) for size in (24, 40, 56, 72, 88))
    before = proc_field("self/status", "VmRSS")
    del tensors
    whole = torch.ones(1 << 24)
    if before is not None:
        print(proc_field("self/status", "VmRSS") - before)
    del whole
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the heap is glibc's")
def test_small_objects_do_not_split_the_room_of_tensors() -> None:
    """A tensor as large as all before it fits in their room, though objects made between them are still in use."""
    grown = [int(each) for each in subprocess.check_output([sys.executable, "-c", SMALL_OBJECTS], text=True).split()]
    if not grown:
        pytest.skip("this system does not tell")
    assert max(grown) < 8e6


LARGER_OBJECTS = """
import ctypes
import torch
from anyformer.training.memory import proc_field
from anyformer.training.memory import keep_freed_memory

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
sizes = range(512, 1536, 16)
used = [libc.malloc(size) for size in sizes for _ in range(400)]  # what imports left free
keep_freed_memory()
tensor, neighbor = torch.ones(1 << 22), torch.ones(1 << 20)
before = proc_field("self/status", "VmRSS")
del tensor
objects = [libc.malloc(size) for size in sizes for _ in range(16)]
tensor = torch.ones((1 << 22) - 100)
if before is not None:
    print(proc_field("self/status", "VmRSS") - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the heap is glibc's")
def test_larger_objects_do_not_split_the_room_of_tensors() -> None:
    """A tensor fits in the room of one before it, though objects made between them are still in use."""
    grown = subprocess.check_output([sys.executable, "-c", LARGER_OBJECTS], text=True)
    if not grown:
        pytest.skip("this system does not tell")
    assert int(grown) < 8e6
