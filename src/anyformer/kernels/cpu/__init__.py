"""Decoding in C++: one call for a whole token, compiled on the machine that it runs on; see docs/decoding.md.

Nothing needs it: where there is no compiler, torch does the work.
"""
