"""Kernels in C++, compiled on first use for the machine that they run on (see docs/kernels.md).

They are optional: without a compiler torch computes everything.
"""
