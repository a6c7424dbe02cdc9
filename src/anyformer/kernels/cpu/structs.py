"""The structures of structs.h, which says what they mean, field by field."""

# ruff: noqa: D101

from ctypes import Structure, c_double, c_int64, c_void_p
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

FLOAT32, BFLOAT16, INT8, INT4, INT4_CENTERED = range(5)
NO_NORM, LAYER_NORM, RMS_NORM = range(3)
DTYPES = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16}


def _fields(kind: Any, names: str) -> list[tuple[str, Any]]:
    return [(name, kind) for name in names.split()]


_integers, _pointers = partial(_fields, c_int64), partial(_fields, c_void_p)


class Matrix(Structure):
    _fields_ = [*_pointers("weights scales minima bias"), *_integers("out_features in_features dtype")]


class Norm(Structure):
    _fields_ = [*_integers("kind"), *_pointers("weight bias"), ("eps", c_double)]


class Attention(Structure):
    _fields_ = [
        *_fields(Norm, "norm query_norm key_norm"),
        *_fields(Matrix, "query key value output"),
        *_integers("heads kv_heads head_dim window"),
        ("scale", c_double),
    ]


class FeedForward(Structure):
    _fields_ = [("norm", Norm), *_fields(Matrix, "up gate down"), *_integers("activation")]


class Layer(Structure):
    _fields_ = [*_fields(Attention, "attention cross_attention"), ("feed_forward", FeedForward)]


class Decoder(Structure):
    _fields_ = [
        *_pointers("layers"),
        *_integers("num_layers d_model pre_norm"),
        ("embedding", Matrix),
        *_integers("dtype"),
        ("final_norm", Norm),
        ("head_scale", c_double),
        ("head", Matrix),
    ]


def address(tensor: Tensor) -> int:
    """Where a tensor lies; of one without memory a number that is not 0, which stands for no tensor."""
    return 64 if isinstance(tensor, FakeTensor) else tensor.data_ptr()


class TensorView(Structure):
    _fields_ = [*_pointers("data"), *_integers("batch_stride head_stride time_stride")]

    @classmethod
    def of(cls, tensor: Tensor) -> Self:
        """A tensor [batch, heads, time, head_dim]."""
        return cls(address(tensor), *tensor.stride()[:3])


class LayerCache(Structure):
    _fields_ = _fields(TensorView, "keys values encoder_keys encoder_values")


class Batch(Structure):
    _fields_ = [
        *_integers("rows new_tokens"),
        *_pointers("tokens hidden_states positions cos sin bias"),
        *_integers("num_distances"),
        *_pointers("caches"),
        *_integers("cache_dtype source_length"),
        *_pointers("source_index source_mask logit_rows"),
        *_integers("num_logit_rows"),
        *_pointers("logits workspace"),
        *_integers("num_threads"),
    ]


class AttentionArgs(Structure):
    _fields_ = [
        *_fields(TensorView, "query key value out grad_out grad_query grad_key grad_value bias grad_bias"),
        *_pointers("logsumexp"),
        *_integers("batch heads kv_heads queries keys head_dim causal"),
        ("scale", c_double),
        *_integers("dtype"),
        *_pointers("seed"),
        *_integers("threshold"),
        ("kept_scale", c_double),
        *_integers("num_threads"),
    ]


class ActivationArgs(Structure):
    _fields_ = [
        *_integers("kind count"),
        *_pointers("x multiplier out grad_out grad_x grad_multiplier"),
        *_integers("num_threads"),
    ]


class DropoutArgs(Structure):
    _fields_ = [
        *_pointers("x out"),
        *_integers("dtype count threshold"),
        ("scale", c_double),
        *_pointers("seed"),
        *_integers("num_threads"),
    ]


class CrossEntropyArgs(Structure):
    _fields_ = [
        *_pointers("logits targets losses"),
        *_integers("rows vocab_size"),
        ("label_smoothing", c_double),
        ("grad_scale", c_double),
        *_integers("num_threads"),
    ]


class RmsNormArgs(Structure):
    _fields_ = [
        *_pointers("x weight out rstd grad_out grad_x grad_weight"),
        *_integers("rows width"),
        ("eps", c_double),
        *_integers("num_threads"),
    ]


class MatmulOperand(Structure):
    _fields_ = [*_pointers("data"), *_integers("dtype stride transposed")]

    @classmethod
    def of(cls, matrix: Tensor) -> Self:
        """A matrix with one contiguous dimension."""
        transposed = matrix.stride(1) != 1
        return cls(address(matrix), DTYPES[matrix.dtype], matrix.stride(int(transposed)), transposed)


class MatmulArgs(Structure):
    _fields_ = [
        *_fields(MatmulOperand, "left right"),
        *_integers("rows columns depth"),
        *_pointers("bias row_sums out"),
        *_integers("dtype accumulate stochastic_rounding num_threads"),
    ]
