"""The structures of table.h, field by field."""

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


class Matrix(Structure):
    """``y = W x + bias``."""

    _fields_ = [*_pointers("weights scales minima bias"), *_integers("outputs inputs format")]


class Norm(Structure):
    """A norm of one vector."""

    _fields_ = [*_integers("kind"), *_pointers("weight bias"), ("eps", c_double)]


class Attention(Structure):
    """Attention, to itself or to a source."""

    _fields_ = [
        *((name, Norm) for name in ("norm", "query_norm", "key_norm")),
        *((name, Matrix) for name in ("query", "key", "value", "output")),
        *_integers("heads kv_heads head_dim window"),
        ("scale", c_double),
    ]


class FeedForward(Structure):
    """The feed-forward block."""

    _fields_ = [("norm", Norm), *((name, Matrix) for name in ("up", "gate", "down")), *_integers("activation")]


class Layer(Structure):
    """One block of the decoder."""

    _fields_ = [("attention", Attention), ("cross", Attention), ("feed_forward", FeedForward)]


class Decoder(Structure):
    """All blocks, and what follows them."""

    _fields_ = [
        *_pointers("layers"),
        *_integers("depth d_model pre_norm"),
        ("final_norm", Norm),
        ("head_scale", c_double),
        ("head", Matrix),
    ]


class Memory(Structure):
    """Keys or values, and the distances between their elements."""

    _fields_ = [*_pointers("data"), *_integers("row head time")]


class LayerMemory(Structure):
    """What a layer remembers."""

    _fields_ = [(name, Memory) for name in ("keys", "values", "source_keys", "source_values")]


class Batch(Structure):
    """The texts that are to grow."""

    _fields_ = [
        *_integers("rows fresh"),
        *_pointers("vectors places cos sin bias"),
        *_integers("distances"),
        *_pointers("layers"),
        *_integers("memory_format source"),
        *_pointers("sources source_mask scored"),
        *_integers("scored_rows"),
        *_pointers("scores workspace"),
        *_integers("threads"),
    ]


class TrainedAttention(Structure):
    """Attention of a batch in training."""

    _fields_ = [
        *((name, Memory) for name in ("query", "key", "value", "out")),
        *((name, Memory) for name in ("grad_out", "grad_query", "grad_key", "grad_value")),
        *((name, Memory) for name in ("bias", "grad_bias")),
        *_pointers("levels"),
        *_integers("texts heads kv_heads queries keys head_dim causal"),
        ("scale", c_double),
        *_integers("threads"),
    ]


class Outer(Structure):
    """The sum of the outer products of the rows of two matrices."""

    _fields_ = [
        *_pointers("left right"),
        *_integers("left_step right_step"),
        *_pointers("to"),
        *_integers("rows outputs inputs"),
        *_pointers("sums"),
        *_integers("add threads"),
    ]


class Activate(Structure):
    """An activation of many numbers."""

    _fields_ = [
        *_integers("kind count"),
        *_pointers("x factor out grad_out grad_x grad_factor"),
        *_integers("threads"),
    ]


class CrossEntropy(Structure):
    """Logits that become gradients."""

    _fields_ = [
        *_pointers("logits targets losses"),
        *_integers("rows vocab"),
        ("smoothing", c_double),
        ("factor", c_double),
        *_integers("threads"),
    ]


class RmsNorm(Structure):
    """An RMS norm of many rows."""

    _fields_ = [
        *_pointers("x weight out factors grad_out grad_x grad_weight"),
        *_integers("rows width"),
        ("eps", c_double),
        *_integers("threads"),
    ]


class Rounded(Structure):
    """A matrix whose rows are to be rounded."""

    _fields_ = [*_pointers("data"), *_integers("format step standing")]


class RoundedProduct(Structure):
    """A product of two of them."""

    _fields_ = [
        ("left", Rounded),
        ("right", Rounded),
        *_integers("rows outputs depth"),
        *_pointers("bias sums to"),
        *_integers("format add dither threads"),
    ]
