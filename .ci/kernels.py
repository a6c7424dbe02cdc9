"""Compiled kernels against the equations, on an emulated processor, where pytest takes hours: docs/releasing.md.

PYTHONPATH=src:. qemu-aarch64 -L ROOT ROOT/usr/bin/python3.13 .ci/kernels.py
"""

import time
from copy import deepcopy
from unittest.mock import patch

import torch
from tests.generation.models import COMPILED, VOCAB, WRITERS, batch, build

from anyformer.families import preset
from anyformer.generation import compiled_decoder
from anyformer.generation.cached_decoder import DecoderStep
from anyformer.generation.compiled_decoder import CompiledDecoder
from anyformer.kernels import quantization, quantized_linear, reference
from anyformer.kernels.cpu.library import LIBRARIES
from anyformer.kernels.packed_weight import pack
from anyformer.kernels.quantization import QUANTIZERS, dequantize
from anyformer.native import levels
from anyformer.quantization import quantize

ROWS = (1, 2, 5, 8, 17, 64)
TEXTS = [[5, 6, 7], [3, 4, 5, 6, 7, 8]]
STARTED = time.monotonic()
LIMITS = {"float32": 1e-5, "bfloat16": 0.15}
"""Of logits by the dtype of weights; in bfloat16 keys and values are rounded as well, of a model with large ones."""


def report(what: str, error: float, limit: float) -> None:
    """Print an error relative to the largest value, and raise AssertionError beyond a limit."""
    print(f"{time.monotonic() - STARTED:6.0f} s  {what}: {error:.1e}", flush=True)
    assert error <= limit, what


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def products() -> None:
    """Quantized weights of widths that fill no vector, for so many rows."""
    for kind in QUANTIZERS:
        for rows in ROWS:
            weight = QUANTIZERS[kind](torch.randn(37, 160))
            inputs, bias = torch.randn(rows, 160), torch.randn(37)
            ours = quantized_linear(inputs, pack(weight), bias)
            theirs = reference.linear(inputs, dequantize(weight, torch.float32), bias)
            report(f"{kind}, {rows} rows", distance(ours, theirs), 0.02)


def searches() -> None:
    """The scales of 4 bits that compiled code finds, against those that torch finds."""
    for size in (1e-7, 1e-3, 1e3):
        matrix = size * torch.randn(37, 160)
        ours = dequantize(QUANTIZERS["int4"](matrix), torch.float32)
        with patch.object(quantization.KERNEL, "supported", return_value=False):
            theirs = dequantize(QUANTIZERS["int4"](matrix), torch.float32)
        report(f"int4 of numbers near {size:g}", distance(ours, theirs), 1e-3)


def steps() -> None:
    """Every block of decoders that compiled code knows: prompts of different lengths, then a token, nine, and 70."""
    wide = preset("llama-nano", vocab_size=VOCAB, decoder_layers=2)  # the others are too narrow to be quantized
    for name, config in {"llama-nano": wide, **{name: WRITERS[name] for name in COMPILED}}.items():
        for kind in ("float32", "bfloat16", *QUANTIZERS) if config is wide else ("float32",):
            model = build(config)
            if kind in QUANTIZERS:
                quantize(model, kind)
            elif kind == "bfloat16":
                model.bfloat16()
            exact = deepcopy(model).float() if kind == "bfloat16" else model
            CompiledDecoder(model)  # it knows the model
            compiled, start, (ids, mask) = DecoderStep(model), torch.full((2, 1), 2), batch(TEXTS, "left")
            with torch.inference_mode():
                caches = [each.make_cache(2, 96) for each in (model, exact)]
                for each, cache in zip((model, exact), caches, strict=True):
                    if model.config.is_encoder_decoder:
                        each(start, ids, source_mask=mask, cache=cache)
                    else:
                        each(ids, mask=mask, cache=cache)
                for count in (1, 9, 70) if config is wide else (1, 9):
                    tokens = torch.randint(3, 9, (2, count))
                    ours, theirs = compiled(tokens, caches[0]), exact(tokens, cache=caches[1]).logits.float()
                    limit = LIMITS.get(kind, 0.1)
                    report(f"step of {name}, {kind}, {count} tokens", distance(ours, theirs), limit)


if __name__ == "__main__":
    torch.manual_seed(0)
    print(levels.level(), [each.name for each in LIBRARIES if each.absence() is None], torch.__version__, flush=True)
    assert compiled_decoder.LIBRARY.get() is not None
    products()
    searches()
    steps()
