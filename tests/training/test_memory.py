"""Memory is kept where glibc hands it out."""

from __future__ import annotations

import platform

from anyformer.training.memory import keep_freed_memory


def test_allocator_is_tuned_where_it_is_glibc():
    assert keep_freed_memory() is (platform.libc_ver()[0] == "glibc")
