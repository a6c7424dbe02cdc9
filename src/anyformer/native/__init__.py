"""Libraries of compiled code: the levels of processors that they are made for, and the compiler that makes them.

Nothing here imports torch, as a build of the package imports it as well (`hatch_build.py`).
"""
