"""Kernels in C++, compiled for levels of processors when the package is installed (see docs/kernels.md).

They are optional: without a compiler torch computes everything.
"""
