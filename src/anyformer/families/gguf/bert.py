"""GGUF's `bert`: the body of an encoder and how its vectors become one. It has no masked-LM head and no pooler."""

from typing import Any

from anyformer.config import ModelConfig
from anyformer.families.gguf.base import Architecture, Contents
from anyformer.families.rows import linear, row

_BLOCK = "encoder.blocks.{i}"

ROWS = [
    row("token_embd.weight", "token_embedding.table.weight"),
    row("position_embd.weight", "encoder.position.table.weight"),
    row("token_types.weight", "encoder.embedding.segments.weight"),
    *linear("token_embd_norm", "encoder.embedding.norm"),
    *linear("blk.{i}.attn_q", f"{_BLOCK}.attention.query"),
    *linear("blk.{i}.attn_k", f"{_BLOCK}.attention.key"),
    *linear("blk.{i}.attn_v", f"{_BLOCK}.attention.value"),
    *linear("blk.{i}.attn_output", f"{_BLOCK}.attention.output"),
    *linear("blk.{i}.attn_output_norm", f"{_BLOCK}.attention_norm"),
    *linear("blk.{i}.ffn_up", f"{_BLOCK}.feed_forward.up"),
    *linear("blk.{i}.ffn_down", f"{_BLOCK}.feed_forward.down"),
    *linear("blk.{i}.layer_output_norm", f"{_BLOCK}.feed_forward_norm"),
]
POOLING = {"mean": 1, "first": 2, "last": 3}
"""llama.cpp's numbers; 0 is none, and 4 scores pairs of texts."""


def _more(config: ModelConfig) -> dict[str, Any]:
    pooling = POOLING.get(config.pooling.kind)
    said: dict[str, Any] = {"attention.causal": False, "feed_forward_length": config.feed_forward.width}
    return said if pooling is None else {**said, "pooling_type": pooling}


def _adjust(config: ModelConfig, contents: Contents) -> ModelConfig:
    kinds = {number: kind for kind, number in POOLING.items()}
    return config.replace(
        head={"pooler": None},
        pooling={"kind": kinds.get(contents.get("pooling_type"), "mean")},
        # Without segments it is a DistilBERT to Hugging Face.
        model_type="bert" if config.embedding.segments else "distilbert",
    )


ARCHITECTURE = Architecture(
    name="bert",
    model_types=("bert", "distilbert"),
    head="none",
    keys={
        "context_length": "max_position_embeddings",
        "embedding_length": "hidden_size",
        "block_count": "num_hidden_layers",
        "feed_forward_length": "intermediate_size",
        "attention.head_count": "num_attention_heads",
        "attention.layer_norm_epsilon": "layer_norm_eps",
    },
    rows=lambda config: ROWS,
    inferred=lambda contents: {"type_vocab_size": contents.shapes.get("token_types.weight", (0,))[0]},
    more=_more,
    adjust=_adjust,
    # Poolers and heads that a converter left in: what this architecture computes ends with the hidden states.
    ignored=(r"cls(\.output)?\.(weight|bias)",),
)
