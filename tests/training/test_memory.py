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
from anyformer.compare.plan.measure import resident
from anyformer.training.memory import keep_freed_memory, return_freed_memory

for function in (return_freed_memory, keep_freed_memory):
    function()
    before = resident()
    freed = [torch.zeros(1 << 20) for _ in range(16)]
    del freed
    print(0 if before is None else resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the heap is glibc's")
def test_freed_memory_is_kept_or_returned() -> None:
    returned, kept = map(int, subprocess.check_output([sys.executable, "-c", FREEING], text=True).split())
    if not kept:
        pytest.skip("this system does not tell")
    assert kept > 60e6
    assert returned < 20e6
