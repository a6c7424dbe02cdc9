"""The compiled code of a training run, made while its data is prepared."""

import torch

from anyformer.kernels.cpu import activation, attention, cross_entropy, int8_matmul, rms_norm, weight_grad
from anyformer.kernels.cpu_features import enabled, has_amx_bf16, has_avx512_bf16
from anyformer.training.precision import Precision


def make_ready(precision: Precision) -> None:
    """Start the compiler on what a run of this precision will want, so that it is done before the first step."""
    if precision.device.type != "cpu" or not enabled():
        return
    modules = [int8_matmul] if precision.int8 and not has_amx_bf16() else []
    if precision.dtype == torch.bfloat16 and has_avx512_bf16():
        modules += [attention, activation, cross_entropy, rms_norm]
        modules += [weight_grad] if has_amx_bf16() else []
    for module in modules:
        module.KERNEL.start()
