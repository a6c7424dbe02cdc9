"""The structures of structs.h, field by field."""

from __future__ import annotations

from ctypes import Structure, c_double, c_int64, c_void_p
from typing import Any

FLOAT32, BFLOAT16, INT8, INT4 = range(4)
NO_NORM, LAYER_NORM, RMS_NORM = range(3)
ACTIVATIONS = ("relu", "relu_squared", "gelu", "gelu_tanh", "silu", "tanh")


def _integers(names: str) -> list[tuple[str, Any]]:
    return [(name, c_int64) for name in names.split()]


def _pointers(names: str) -> list[tuple[str, Any]]:
    return [(name, c_void_p) for name in names.split()]


def _structs(kind: type[Structure], names: str) -> list[tuple[str, Any]]:
    return [(name, kind) for name in names.split()]


class Matrix(Structure):
    """``y = x W^T + bias``."""

    _fields_ = [*_pointers("weights scales minima bias"), *_integers("out_features in_features dtype")]


class Norm(Structure):
    """Layer norm, RMS norm, or none."""

    _fields_ = [*_integers("kind"), *_pointers("weight bias"), ("eps", c_double)]


class Attention(Structure):
    """Self- or cross-attention."""

    _fields_ = [
        *_structs(Norm, "norm query_norm key_norm"),
        *_structs(Matrix, "query key value output"),
        *_integers("heads kv_heads head_dim window"),
        ("scale", c_double),
    ]


class FeedForward(Structure):
    """The feed-forward block."""

    _fields_ = [("norm", Norm), *_structs(Matrix, "up gate down"), *_integers("activation")]


class Layer(Structure):
    """One block of the decoder."""

    _fields_ = [*_structs(Attention, "attention cross_attention"), ("feed_forward", FeedForward)]


class Decoder(Structure):
    """All blocks, the final norm and the head."""

    _fields_ = [
        *_pointers("layers"),
        *_integers("num_layers d_model pre_norm"),
        ("final_norm", Norm),
        ("head_scale", c_double),
        ("head", Matrix),
    ]


class TensorView(Structure):
    """A tensor [batch, heads, time, head_dim] and its strides."""

    _fields_ = [*_pointers("data"), *_integers("batch_stride head_stride time_stride")]


class LayerCache(Structure):
    """The KV cache of a layer."""

    _fields_ = _structs(TensorView, "keys values encoder_keys encoder_values")


class Batch(Structure):
    """The new tokens of a batch of sequences."""

    _fields_ = [
        *_integers("rows new_tokens"),
        *_pointers("hidden_states positions cos sin bias"),
        *_integers("num_distances"),
        *_pointers("caches"),
        *_integers("cache_dtype source_length"),
        *_pointers("source_index source_mask logit_rows"),
        *_integers("num_logit_rows"),
        *_pointers("logits workspace"),
        *_integers("num_threads"),
    ]


class AttentionArgs(Structure):
    """Attention in training."""

    _fields_ = [
        *_structs(TensorView, "query key value out grad_out grad_query grad_key grad_value bias grad_bias"),
        *_pointers("logsumexp"),
        *_integers("batch heads kv_heads queries keys head_dim causal"),
        ("scale", c_double),
        *_integers("num_threads"),
    ]


class WeightGradArgs(Structure):
    """The gradient of a linear layer's weight."""

    _fields_ = [
        *_pointers("grad_out input"),
        *_integers("grad_out_stride input_stride"),
        *_pointers("grad_weight"),
        *_integers("rows out_features in_features"),
        *_pointers("grad_bias"),
        *_integers("accumulate num_threads"),
    ]


class ActivationArgs(Structure):
    """``act(x)`` or ``act(x) * multiplier``."""

    _fields_ = [
        *_integers("kind count"),
        *_pointers("x multiplier out grad_out grad_x grad_multiplier"),
        *_integers("num_threads"),
    ]


class CrossEntropyArgs(Structure):
    """Cross-entropy and its gradient."""

    _fields_ = [
        *_pointers("logits targets losses"),
        *_integers("rows vocab_size"),
        ("label_smoothing", c_double),
        ("grad_scale", c_double),
        *_integers("num_threads"),
    ]


class RmsNormArgs(Structure):
    """RMS norm of the rows of a matrix."""

    _fields_ = [
        *_pointers("x weight out rstd grad_out grad_x grad_weight"),
        *_integers("rows width"),
        ("eps", c_double),
        *_integers("num_threads"),
    ]


class Int8Operand(Structure):
    """A floating-point matrix that is quantized row by row."""

    _fields_ = [*_pointers("data"), *_integers("dtype stride transposed")]


class Int8MatmulArgs(Structure):
    """``left @ right.T + bias`` in 8-bit integers."""

    _fields_ = [
        *_structs(Int8Operand, "left right"),
        *_integers("rows columns depth"),
        *_pointers("bias row_sums out"),
        *_integers("dtype accumulate stochastic_rounding num_threads"),
    ]
