"""Description of a model for a page's script: every choice of its config, resolved, as plain numbers and names."""

from collections.abc import Mapping
from typing import Any, cast

import torch

from anyformer.blocks import rope
from anyformer.blocks.attention import MultiHeadAttention
from anyformer.blocks.block import TransformerBlock
from anyformer.blocks.position import RelativePosition
from anyformer.blocks.stack import Stack
from anyformer.config import ModelConfig
from anyformer.model import Transformer

MOST_TOKENS = 1024
"""Tokens of a text on a page: more would take a browser minutes."""


def describe(model: Transformer) -> dict[str, Any]:
    """The model as data: sizes, the stacks, the head. Weights apart, it decides what the script computes."""
    config = model.config
    stacks = {"encoder": model.encoder, "decoder": model.decoder}
    return {
        "d_model": config.d_model,
        "vocab_size": config.vocab_size,
        "source_vocab_size": config.source_vocab_size,
        "context": config.context_length,
        "trained_length": config.max_length,
        "embedding_scale": model.token_embedding.scale,
        "ngrams": config.embedding.ngrams,
        "norm": {"kind": config.norm.kind, "eps": config.norm.eps},
        "stacks": {name: _stack(config, stack) for name, stack in stacks.items() if stack is not None},
        "head": _head(config),
    }


def _stack(config: ModelConfig, stack: Stack) -> dict[str, Any]:
    blocks = cast("list[TransformerBlock]", list(stack.blocks))
    own = config.decoder_feed_forward if stack.causal and config.is_encoder_decoder else None
    feed_forward = own or config.feed_forward
    attention = blocks[0].attention
    return {
        "layers": len(blocks),
        "causal": stack.causal,
        "cross": blocks[0].cross_attention is not None,
        "pre_norm": config.norm.placement == "pre",
        "heads": attention.heads,
        "kv_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        "scales": [block.attention.scale for block in blocks],
        "windows": stack.windows,
        "activation": feed_forward.activation,
        "gated": feed_forward.gated,
        "width": feed_forward.width,
        "skipped": stack.skipped,
        "position": _position(config, stack, attention),
    }


def _position(config: ModelConfig, stack: Stack, attention: MultiHeadAttention) -> dict[str, Any]:
    """The positions; what depends on the config alone is computed here, once, by the model's own code."""
    position = config.position
    found: dict[str, Any] = {"kind": position.kind}
    if position.kind == "sinusoidal":
        found["layout"] = position.layout
    elif position.kind == "learned":
        found["offset"] = position.offset
    elif position.kind == "relative":
        # Farther distances are in the bucket of the farthest, and none of a page's texts has farther ones than that.
        far = min(position.max_distance, MOST_TOKENS)
        bucket = cast("RelativePosition", stack.position).bucket(torch.arange(-far, far + 1)[None])
        found |= {"max_distance": far, "buckets": bucket[0].tolist()}
    elif position.kind == "rotary":
        scaling = position.scaling
        if scaling is not None and scaling.kind == "dynamic":
            # Theta rises with the text, where that outgrows the trained length.
            return found | {"theta": position.theta, "dynamic_factor": scaling.factor}
        length = torch.zeros(1, 1, dtype=torch.long)
        frequencies, sharpness = rope.frequencies(position, attention.head_dim, config.max_length, length)
        found |= {"frequencies": frequencies.tolist(), "sharpness": sharpness}
    return found


def _head(config: ModelConfig) -> dict[str, Any]:
    head = config.head
    problem = head.problem_type or ("regression" if head.labels == 1 else "single_label_classification")
    names = head.label_names or tuple(f"LABEL_{index}" for index in range(head.labels))
    labels: Mapping[str, Any] = {"labels": list(names), "problem": problem} if "classification" in head.kind else {}
    return {
        "kind": head.kind,
        "transform": head.transform,
        "scale": config.d_model**-0.5 if head.scaled else 1.0,
        "pooling": head.pooling,
        "pooler": head.pooler,
        **labels,
    }
