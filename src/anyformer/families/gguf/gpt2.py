"""GGUF's `gpt2`: matrices are [out, in], unlike Hugging Face's; queries, keys and values share one."""

from anyformer.families.gguf.base import Architecture
from anyformer.families.rows import SPLIT, alias, linear, row

_BLOCK = "decoder.blocks.{i}"
_QKV = [f"{_BLOCK}.attention.{part}" for part in ("query", "key", "value")]

ROWS = [
    row("token_embd.weight", "token_embedding.table.weight"),
    row("position_embd.weight", "decoder.position.table.weight"),
    *linear("blk.{i}.attn_norm", f"{_BLOCK}.attention_norm"),
    row("blk.{i}.attn_qkv.weight", [f"{name}.weight" for name in _QKV], SPLIT),
    row("blk.{i}.attn_qkv.bias", [f"{name}.bias" for name in _QKV], SPLIT),
    *linear("blk.{i}.attn_output", f"{_BLOCK}.attention.output"),
    *linear("blk.{i}.ffn_norm", f"{_BLOCK}.feed_forward_norm"),
    *linear("blk.{i}.ffn_up", f"{_BLOCK}.feed_forward.up"),
    *linear("blk.{i}.ffn_down", f"{_BLOCK}.feed_forward.down"),
    *linear("output_norm", "decoder.final_norm"),
    row("output.weight", "head.projection.weight"),
    alias("output.weight", "token_embedding.table.weight"),
]


ARCHITECTURE = Architecture(
    name="gpt2",
    model_types=("gpt2",),
    head="language_model",
    keys={
        "context_length": "n_positions",
        "embedding_length": "n_embd",
        "block_count": "n_layer",
        "feed_forward_length": "n_inner",
        "attention.head_count": "n_head",
        "attention.layer_norm_epsilon": "layer_norm_epsilon",
    },
    rows=lambda config: ROWS,
    inferred=lambda contents: {"tie_word_embeddings": contents.output in ("absent", "same")},
    more=lambda config: {"feed_forward_length": config.feed_forward.width},
    ignored=(r"blk\.\d+\.attn\.(bias|masked_bias)",),
)
