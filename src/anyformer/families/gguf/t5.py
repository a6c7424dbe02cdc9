"""GGUF's `t5`. llama.cpp multiplies by `output.weight` and nothing else, so where the head of a T5 1.0 is its token
table over sqrt(d_model), the file needs that product spelt out."""

import math
from typing import Any

from anyformer.config import ModelConfig
from anyformer.families.gguf.base import Architecture, Contents
from anyformer.families.rows import COPY, Operation, Row, linear, row

_PARTS = {"q": "query", "k": "key", "v": "value", "o": "output"}


def _stack(short: str, stack: str) -> list[Row]:
    theirs, ours = f"{short}.blk.{{i}}", f"{stack}.blocks.{{i}}"
    return [
        row(f"{short}.blk.0.attn_rel_b.weight", f"{stack}.position.table.weight"),
        *[line for p, name in _PARTS.items() for line in linear(f"{theirs}.attn_{p}", f"{ours}.attention.{name}")],
        *linear(f"{theirs}.attn_norm", f"{ours}.attention_norm"),
        *linear(f"{theirs}.ffn_gate", f"{ours}.feed_forward.gate"),
        *linear(f"{theirs}.ffn_up", f"{ours}.feed_forward.up"),
        *linear(f"{theirs}.ffn_down", f"{ours}.feed_forward.down"),
        *linear(f"{theirs}.ffn_norm", f"{ours}.feed_forward_norm"),
        *linear(f"{short}.output_norm", f"{stack}.final_norm"),
    ]


_CROSS = "decoder.blocks.{i}.cross_attention"
_ROWS = [
    row("token_embd.weight", "token_embedding.table.weight"),
    *_stack("enc", "encoder"),
    *_stack("dec", "decoder"),
    *[line for p, name in _PARTS.items() for line in linear(f"dec.blk.{{i}}.cross_attn_{p}", f"{_CROSS}.{name}")],
    *linear("dec.blk.{i}.cross_attn_norm", f"{_CROSS}_norm"),
    row("output.weight", "head.projection.weight"),
]


def _rows(config: ModelConfig) -> list[Row]:
    scale = 1 / math.sqrt(config.d_model)
    scaled = Operation(lambda tensor, _: [tensor / scale], lambda tensors: tensors[0] * scale)
    head = Row("output.weight", ("token_embedding.table.weight",), scaled if config.head.scaled else COPY, alias=True)
    return [*_ROWS, head]


def _inferred(contents: Contents) -> dict[str, Any]:
    scaled = contents.output in ("absent", "scaled")
    return {
        "feed_forward_proj": "gated-gelu" if "enc.blk.0.ffn_gate.weight" in contents.shapes else "relu",
        "tie_word_embeddings": contents.output != "own",
        "scale_decoder_outputs": scaled,
    }


ARCHITECTURE = Architecture(
    name="t5",
    model_types=("t5", "mt5"),
    head="language_model",
    keys={
        "context_length": "n_positions",
        "embedding_length": "d_model",
        "block_count": "num_layers",
        "decoder_block_count": "num_decoder_layers",
        "feed_forward_length": "d_ff",
        "attention.head_count": "num_heads",
        "attention.key_length": "d_kv",
        "attention.value_length": "d_kv",
        "attention.layer_norm_epsilon": "layer_norm_epsilon",
        "attention.layer_norm_rms_epsilon": "layer_norm_epsilon",
        "attention.relative_buckets_count": "relative_attention_num_buckets",
        "decoder_start_token_id": "decoder_start_token_id",
    },
    rows=_rows,
    inferred=_inferred,
    ignored=(r"dec\.blk\.\d+\.cross_attn_rel_b\.weight", r"(enc|dec)\.blk\.[1-9]\d*\.attn_rel_b\.weight"),
)
