"""A model as a page's script has it: every choice of its config, resolved, and its weights."""

import base64
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int8
from torch import Tensor, nn

from anyformer.blocks.embedding import NgramEmbedding, TokenEmbedding
from anyformer.blocks.latent_attention import EPS as LATENT_EPS
from anyformer.blocks.linear import Linear
from anyformer.blocks.norm import OffsetRMSNorm, PlainRMSNorm
from anyformer.blocks.position import DisentangledPosition, RelativePosition, frequencies
from anyformer.blocks.stack import Stack
from anyformer.config import ModelConfig, PositionConfig
from anyformer.errors import UserError
from anyformer.generation.inference import DAMAGED
from anyformer.model import Transformer
from anyformer.quantization import quantized_weights

MOST_TOKENS = 1024
"""Tokens of a text on a page: more would take a browser minutes."""


def describe(model: Transformer) -> dict[str, Any]:
    """The model as data: sizes, the stacks, the head. Weights apart, it decides what the script computes."""
    config = model.config
    stacks = {"encoder": model.encoder, "decoder": model.decoder}
    return {
        "d_model": config.d_model,
        "embedding_width": config.embedding.width or config.d_model,
        "vocab_size": config.vocab_size,
        "source_vocab_size": config.source_vocab_size,
        "context": config.context_length,
        "trained_length": config.max_length,
        "settled_length": config.settled_length,
        "embedding_scale": model.token_embedding.scale,
        "ngrams": config.embedding.ngrams,
        "norm": {"kind": config.norm.kind.partition("_")[0], "eps": config.norm.eps},
        "stacks": {name: _stack(config, stack) for name, stack in stacks.items() if stack is not None},
        "head": _head(config),
    }


def _stack(config: ModelConfig, stack: Stack) -> dict[str, Any]:
    blocks = stack.layers
    own = config.decoder_feed_forward if stack.causal and config.is_encoder_decoder else None
    others = [other and other.feed_forward for other in config.others(len(blocks))]
    attention, latent = blocks[0].attention, config.attention.latent
    turned = attention.head_dim if latent is None else latent.rotary_dim
    return {
        "layers": len(blocks),
        "distinct": len(stack.blocks),
        "causal": stack.causal,
        "cross": blocks[0].cross_attention is not None,
        "placement": config.norm.placement,
        "residual_scale": config.residual_scale,
        "heads": attention.heads,
        "kv_heads": attention.kv_heads if latent is None else attention.heads,
        "head_dim": attention.head_dim,
        "value_dim": attention.value_dim,
        "latent": latent and {**dataclasses.asdict(latent), "eps": LATENT_EPS},
        "softcap": None if latent else attention.softcap,
        "sinks": any(name.endswith("attention.sinks") for name, _ in stack.named_parameters()),
        "scales": [block.attention.scale for block in blocks],
        "windows": stack.windows,
        "feed_forwards": [dataclasses.asdict(other or own or config.feed_forward) for other in others],
        "skipped": stack.skipped,
        "projects": stack.embedding.projection is not None,
        "position": _position(config.position, config.max_length, stack.position, turned),
        "other_position": None
        if stack.other_position is None
        else _position(stack.other_position.config, config.max_length, stack.other_position, turned),
        "other_positions": stack.has_other_position,
    }


def _position(position: PositionConfig, max_length: int, module: nn.Module, head_dim: int) -> dict[str, Any]:
    """The positions; what depends on the config alone is computed here, once, by the model's own code."""
    described: dict[str, Any] = {"kind": position.kind}
    if position.kind == "sinusoidal":
        offset = position.offset if position.layout == "fairseq" else 0
        described |= {"layout": position.layout, "offset": offset, "skips": position.skip_padding}
    elif position.kind == "learned":
        described["offset"] = position.offset
    elif position.kind == "rotary":
        scaling = position.scaling
        rotated = int(head_dim * position.rotary_fraction)
        described |= {"rotated": rotated, "width": head_dim}
        if scaling is not None and scaling.kind == "dynamic":
            # Theta rises with the text, where that outgrows the trained length.
            return described | {"theta": position.theta, "dynamic_factor": scaling.factor}

        def angles(length: int) -> tuple[list[float], float]:
            radians, sharpness = frequencies(position, rotated, max_length, torch.full((1, 1), length))
            return [*radians.flatten().tolist(), *(0.0 for _ in range((head_dim - rotated) // 2))], sharpness

        described["frequencies"], described["sharpness"] = angles(0)
        if scaling is not None and scaling.kind == "longrope" and scaling.original_length is not None:
            long, _ = angles(scaling.original_length + 1)
            described |= {"original_length": scaling.original_length, "long_frequencies": long}
    for relative in module.modules():
        if not isinstance(relative, RelativePosition | DisentangledPosition):
            continue
        # Farther distances are in the bucket of the farthest, and none of a page's texts has farther ones than that.
        far = min(position.max_distance, MOST_TOKENS)
        described |= {"max_distance": far, "buckets": relative.bucket(torch.arange(-far, far + 1)[None])[0].tolist()}
    return described


def _head(config: ModelConfig) -> dict[str, Any]:
    head = config.head
    problem = head.problem or "single_label_classification"
    labels = {"labels": [*head.names], "problem": problem} if "classification" in head.kind else {}
    return {
        "kind": head.kind,
        "transform": head.transform,
        "scale": head.scale * (config.d_model**-0.5 if head.scaled else 1.0),
        "softcap": head.softcap if head.kind == "language_model" else None,
        "pooling": head.pooling,
        "pooler": head.pooler,
        **labels,
    }


_LARGEST = 127


@dataclass(frozen=True)
class QuantizedRows:
    """A matrix in integers: ``weight[i, j] = scales[i] * integers[i, j]``."""

    integers: Int8[Tensor, "rows columns"]
    scales: Float[Tensor, " rows"]
    """In float32."""


def quantize_rows(weight: Float[Tensor, "rows columns"]) -> QuantizedRows:
    """The nearest integers from -127 to 127, where the largest number of a row is 127."""
    weight = weight.float()
    scales = weight.abs().amax(dim=1) / _LARGEST
    integers = (weight / scales.where(scales > 0, 1.0)[:, None]).round()
    return QuantizedRows(integers.to(torch.int8), scales)


def page_weights(model: Transformer) -> dict[str, Tensor | QuantizedRows]:
    """All weights by their names in `state_dict`, as a page has them.

    The matrices of linear layers and the tables of tokens and n-grams become `QuantizedRows`. Norms, biases and the
    tables of positions and segments stay in float32, for they are small, and positions are added to every score. Norms
    of Gemma have 1 added to their weights, and norms without weights have ones.

    Raises:
        UserError: a weight is not finite.
    """
    integers = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Linear)}
    offset = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, OffsetRMSNorm)}
    for name, module in model.named_modules():
        if isinstance(module, TokenEmbedding | NgramEmbedding):
            integers.add(f"{name}.table.weight" if isinstance(module, TokenEmbedding) else f"{name}.table")
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, matrix in quantized_weights(model):
        tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith(f"{name}.")}
        tensors[name] = matrix.dequantize(torch.float32)
    for name, module in model.named_modules():
        if isinstance(module, PlainRMSNorm):
            tensors[f"{name}.weight"] = torch.ones(module.width)
    weights: dict[str, Tensor | QuantizedRows] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().float().cpu()
        if not bool(tensor.isfinite().all()):
            raise UserError(DAMAGED)
        weights[name] = quantize_rows(tensor) if name in integers else tensor + 1 if name in offset else tensor
    return weights


def pack(weights: Mapping[str, Tensor | QuantizedRows]) -> tuple[list[dict[str, Any]], str]:
    """The weights as a page's script reads them.

    Returns:
        Name and shape of each, in the order of their bytes; and those bytes in base64. Tensors in float32 come first,
        little-endian; then the scales of all matrices, then their integers.
    """
    floats = {name: weight for name, weight in weights.items() if isinstance(weight, Tensor)}
    matrices = {name: weight for name, weight in weights.items() if isinstance(weight, QuantizedRows)}
    listed = [{"name": name, "shape": list(weight.shape), "int8": False} for name, weight in floats.items()]
    listed += [{"name": name, "shape": list(each.integers.shape), "int8": True} for name, each in matrices.items()]
    parts = [
        *(tensor.numpy().astype("<f4") for tensor in (*floats.values(), *(each.scales for each in matrices.values()))),
        *(each.integers.numpy() for each in matrices.values()),
    ]
    return listed, base64.b64encode(b"".join(part.tobytes() for part in parts)).decode("ascii")
