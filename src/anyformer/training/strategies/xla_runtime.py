"""The start of PyTorch/XLA."""

import logging
import os
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from anyformer.errors import UserError, cut
from anyformer.training.precision import hardware

VERSION = "2.9"
"""The version of PyTorch/XLA, its last, and of the torch that it needs."""


@cache
def start() -> Any:
    """Start PyTorch/XLA with all devices as one; returns its module.

    Raises:
        UserError: it is not installed, or not of the version that it needs to be, or finds no device.
    """
    for name in ("torch", "torch_xla"):
        try:
            found = version(name)
        except PackageNotFoundError:
            found = "missing"
        if not found.startswith(f"{VERSION}."):
            raise UserError(
                f"--engine xla needs torch {VERSION} and torch_xla {VERSION}, and here {name} is {cut(found)}: "
                f"pip install 'torch=={VERSION}.*' 'torch_xla[tpu]=={VERSION}.*', in an environment of its own."
            )
    chosen = "PJRT_DEVICE" in os.environ
    # Its library tells of its own future in a line for each program.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        library = import_module("torch_xla")
        # It warns of being called at all.
        logging.getLogger("torch_xla.backends").setLevel(logging.ERROR)
        # Before the first tensor of its own, and before the first backward pass of any device.
        import_module("torch_xla.runtime").use_spmd()
        number = torch.zeros(1, device=library.device())
        number.item()
    except (ImportError, RuntimeError) as error:
        raise _no_device(str(error).splitlines()[0].rstrip(".")) from error
    if not chosen and hardware(number.device) == "cpu":
        raise _no_device("there is no TPU")
    return library


def _no_device(reason: str) -> UserError:
    return UserError(f"--engine xla can't be used: {cut(reason)}. To try it on a CPU, set PJRT_DEVICE=CPU.")
