"""GGUF's `llama`, `qwen2` and `qwen3`. A Mistral is a `llama` there, and its window is not said.

llama.cpp turns neighboring pairs of a LLaMA's queries and keys, Hugging Face a head's two halves, so `llama` files
have the rows of each head in another order; `qwen2` and `qwen3` files do not.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from anyformer.config import ModelConfig
from anyformer.errors import UserError
from anyformer.families.gguf import scaling
from anyformer.families.gguf.base import Architecture, Contents
from anyformer.families.rows import COPY, Operation, Row, alias, linear, row

if TYPE_CHECKING:
    from torch import Tensor

_KEYS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.dimension_count": "head_dim",
    "rope.freq_base": "rope_theta",
}
_BLOCK = "decoder.blocks.{i}"
_ATTENTION = f"{_BLOCK}.attention"


def neighbors(heads: int) -> Operation:
    """From pairs of neighboring rows in each head to two halves, and back; `heads` heads of rows."""

    def read(tensor: "Tensor", _: int) -> Sequence["Tensor"]:
        return [tensor.reshape(heads, -1, 2, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)]

    def write(tensors: Sequence["Tensor"]) -> "Tensor":
        tensor = tensors[0]
        return tensor.reshape(heads, 2, -1, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)

    return Operation(read, write)


def _projection(theirs: str, ours: str, operation: Operation) -> list[Row]:
    """A weight and its bias, whose rows are both moved."""
    return [row(f"{theirs}.{part}", f"{ours}.{part}", operation) for part in ("weight", "bias")]


def _rows(queries: Operation, keys: Operation) -> list[Row]:
    return [
        row("token_embd.weight", "token_embedding.table.weight"),
        *linear("blk.{i}.attn_norm", f"{_BLOCK}.attention_norm"),
        *_projection("blk.{i}.attn_q", f"{_ATTENTION}.query", queries),
        *_projection("blk.{i}.attn_k", f"{_ATTENTION}.key", keys),
        *linear("blk.{i}.attn_v", f"{_ATTENTION}.value"),
        *linear("blk.{i}.attn_output", f"{_ATTENTION}.output"),
        *linear("blk.{i}.attn_q_norm", f"{_ATTENTION}.query_norm"),
        *linear("blk.{i}.attn_k_norm", f"{_ATTENTION}.key_norm"),
        *linear("blk.{i}.ffn_norm", f"{_BLOCK}.feed_forward_norm"),
        *linear("blk.{i}.ffn_gate", f"{_BLOCK}.feed_forward.gate"),
        *linear("blk.{i}.ffn_up", f"{_BLOCK}.feed_forward.up"),
        *linear("blk.{i}.ffn_down", f"{_BLOCK}.feed_forward.down"),
        *linear("output_norm", "decoder.final_norm"),
        row("output.weight", "head.projection.weight"),
        alias("output.weight", "token_embedding.table.weight"),
    ]


def _neighboring_rows(config: ModelConfig) -> list[Row]:
    attention = config.attention
    return _rows(neighbors(attention.heads), neighbors(attention.kv_heads or attention.heads))


def _plain_rows(config: ModelConfig) -> list[Row]:
    return _rows(COPY, COPY)


def _inferred(contents: Contents) -> dict[str, Any]:
    if contents.get("expert_count"):
        raise UserError("The model is a mixture of experts, which is not supported.")
    widths = {
        key: contents.get(key) for key in ("attention.key_length", "attention.value_length", "rope.dimension_count")
    }
    if len({width for width in widths.values() if width is not None}) > 1:
        said = ", ".join(f"{key} {width}" for key, width in widths.items() if width is not None)
        raise UserError(f"Keys, values and rotary positions of different widths are not supported ({said}).")
    return {
        "tie_word_embeddings": contents.output in ("absent", "same"),
        "attention_bias": "blk.0.attn_q.bias" in contents.shapes,
        "mlp_bias": "blk.0.ffn_up.bias" in contents.shapes,
        **scaling.read(contents),
    }


def _architecture(name: str, model_types: Sequence[str], *, neighboring: bool = False) -> Architecture:
    return Architecture(
        name=name,
        model_types=model_types,
        head="language_model",
        keys=_KEYS,
        rows=_neighboring_rows if neighboring else _plain_rows,
        inferred=_inferred,
        more=scaling.write,
        ignored=(r"rope_freqs\.weight", r"blk\.\d+\.attn_rot_embd", r"blk\.\d+\.rope_freqs\.weight"),
    )


ARCHITECTURES = [
    _architecture("llama", ("llama", "mistral"), neighboring=True),
    _architecture("qwen2", ("qwen2",)),
    _architecture("qwen3", ("qwen3",)),
]
