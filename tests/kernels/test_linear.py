"""Compiled code reads no operand beyond its end."""

import subprocess
import sys

_REFUSED = """
import torch
import torch.nn.functional as F
from anyformer import kernels
from anyformer.kernels.packed_weight import pack
from anyformer.kernels.quantization import QuantizedWeight

def trained(*shape, dtype=torch.float32):
    return torch.randn(shape, dtype=dtype, requires_grad=True)

def half(*shape):
    return trained(*shape, dtype=torch.bfloat16)

def targets(count):
    return torch.ones(count, dtype=torch.long)

whole = pack(QuantizedWeight(torch.zeros(32, 64, dtype=torch.int8), torch.ones(32, 2, dtype=torch.float16), None))
cases = {
    "columns": lambda: kernels.linear(trained(512, 513), trained(512, 512), matmul="int8"),
    "bias": lambda: kernels.linear(trained(512, 512), trained(512, 512), trained(300), matmul="int8"),
    "quantized columns": lambda: kernels.quantized_linear(torch.randn(4, 32), whole),
    "quantized bias": lambda: kernels.quantized_linear(torch.randn(4, 64), whole, torch.randn(20)),
    "norm": lambda: kernels.rms_norm(half(4, 64), trained(32), 1e-6),
    "gate": lambda: kernels.activation(half(4, 64), F.silu, half(3, 64)),
    "targets": lambda: kernels.linear_cross_entropy(trained(64, 32), trained(100, 32), targets(80)),
    "width": lambda: kernels.linear_cross_entropy(trained(64, 32), trained(100, 48), targets(64)),
}
for name, compute in cases.items():
    try:
        compute()
    except (RuntimeError, ValueError):
        continue
    raise SystemExit(name)
"""

_LEFT_TO_TORCH = """
import torch
import torch.nn.functional as F
from anyformer import kernels

def attend(function, query, key, mask, causal):
    torch.manual_seed(0)
    query, key, value = (torch.randn(shape, requires_grad=True) for shape in (query, key, key))
    mask = None if mask is None else torch.randn(mask)
    try:
        return function(query, key, value, attn_mask=mask, is_causal=causal)
    except RuntimeError:
        return None

for case in (
    ((3, 2, 5, 8), (1, 2, 5, 8), None, False),
    ((1, 2, 5, 8), (3, 2, 5, 8), None, False),
    ((3, 2, 5, 8), (3, 2, 5, 4), None, False),
    ((3, 2, 5, 8), (3, 2, 7, 8), None, True),
    ((3, 2, 5, 8), (3, 2, 5, 8), (3, 1, 5, 4), False),
    ((3, 2, 5, 8), (3, 2, 5, 8), (2, 1, 5, 5), False),
):
    expected, found = (attend(function, *case) for function in (F.scaled_dot_product_attention, kernels.attention))
    assert (found is None) == (expected is None), case
    if found is not None:
        torch.testing.assert_close(found, expected)
"""


def test_operands_whose_shapes_do_not_agree_are_refused_or_left_to_torch() -> None:
    """In a process of its own, where nothing else checks shapes."""
    command = [sys.executable, "-W", "ignore", "-c", _REFUSED + _LEFT_TO_TORCH]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
