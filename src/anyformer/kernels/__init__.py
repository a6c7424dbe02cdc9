"""Implementations of the operations that `blocks` is made of.

One function an operation, with the arguments of torch's own. Each takes the first backend whose conditions hold
(docs/kernels.md); `reference` has the operations as equations. ANYFORMER_NATIVE=0 leaves all work to torch.
"""

from anyformer.kernels.activation import activation, gelu_tanh, quick_gelu, relu_squared
from anyformer.kernels.attention import (
    AttentionMask,
    Mask,
    RelativeVectors,
    attention,
    masked_attention,
    masked_attention_weights,
    select_query,
    with_layouts,
    with_relative,
)
from anyformer.kernels.autocast import in_float32
from anyformer.kernels.cross_entropy import drop_ignored, in_parts, linear_cross_entropy, quantized_linear_cross_entropy
from anyformer.kernels.dropout import (
    counting_heads,
    counting_rows,
    counting_tokens,
    dropout,
    is_counted,
    keep_counting,
    shared_counters,
    vector_counters,
)
from anyformer.kernels.grouped_linear import (
    Groups,
    gather_groups,
    grouped_linear,
    quantized_grouped_linear,
    rows_by_group,
    scatter_groups,
    sort_by_group,
)
from anyformer.kernels.layout import DENSE, Layout, choose_layout
from anyformer.kernels.linear import Matmul, PrepackedWeight, linear, prepacked_linear, quantized_linear
from anyformer.kernels.norm import layer_norm, rms_norm, square_sum
from anyformer.kernels.rotary import rotate

__all__ = [
    "DENSE",
    "AttentionMask",
    "Groups",
    "Layout",
    "Mask",
    "Matmul",
    "PrepackedWeight",
    "RelativeVectors",
    "activation",
    "attention",
    "choose_layout",
    "counting_heads",
    "counting_rows",
    "counting_tokens",
    "drop_ignored",
    "dropout",
    "gather_groups",
    "gelu_tanh",
    "grouped_linear",
    "in_float32",
    "in_parts",
    "is_counted",
    "keep_counting",
    "layer_norm",
    "linear",
    "linear_cross_entropy",
    "masked_attention",
    "masked_attention_weights",
    "prepacked_linear",
    "quantized_grouped_linear",
    "quantized_linear",
    "quantized_linear_cross_entropy",
    "quick_gelu",
    "relu_squared",
    "rms_norm",
    "rotate",
    "rows_by_group",
    "scatter_groups",
    "select_query",
    "shared_counters",
    "sort_by_group",
    "square_sum",
    "vector_counters",
    "with_layouts",
    "with_relative",
]
