"""The compiled code of a training run, made while its data is prepared."""

import torch

from anyformer.kernels.cpu import activation, attention, cross_entropy, int8_matmul, rms_norm, weight_grad
from anyformer.kernels.cpu.build import has_pairs, has_tiles, wanted
from anyformer.training.precision import Precision


def make_ready(precision: Precision) -> None:
    """Start the compiler on what a run of this precision will want, so that it is done before the first step."""
    if precision.device.type != "cpu" or not wanted():
        return
    units = [int8_matmul] if precision.int8 and not has_tiles() else []
    if precision.dtype == torch.bfloat16 and has_pairs():
        units += [attention, activation, cross_entropy, rms_norm]
        units += [weight_grad] if has_tiles() else []
    for unit in units:
        unit.KERNEL.start()
