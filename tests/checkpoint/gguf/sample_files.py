"""Small GGUF files for the tests, written with gguf-py."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np

TOKENS = ["<unk>", "<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)], "▁", "a", "b", "▁a", "ab", "▁ab"]
TYPES = [2, 3, 3, *[6] * 256, *[1] * 6]
SCORES = [0.0] * (3 + 256) + [-5.0, -4.0, -3.0, -2.0, -1.0, -0.5]


def add(writer: gguf.GGUFWriter, metadata: dict[str, Any]) -> None:
    """Add metadata by the types of its values."""
    for key, value in metadata.items():
        if key == "general.architecture":
            continue  # the writer adds it by itself
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)


def write(
    path: Path,
    metadata: dict[str, Any],
    tensors: dict[str, np.ndarray],
    types: dict[str, gguf.GGMLQuantizationType] | None = None,
) -> Path:
    """Write a file; `types` names those tensors that are already the bytes of blocks."""
    writer = gguf.GGUFWriter(path, metadata["general.architecture"])
    add(writer, metadata)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor, raw_dtype=(types or {}).get(name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tiny_llama(path: Path, **rows: int) -> Path:
    """A whole model of one layer with a tokenizer, small enough to be spoilt thousands of times.

    `rows` gives matrices of the block another number of rows: `attn_q=16`.
    """
    width, inner, vocab = 32, 32, len(TOKENS)
    generator = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape).astype(np.float32)

    kind = gguf.GGMLQuantizationType
    quantized = {
        "blk.0.attn_q.weight": kind.Q8_0,
        "blk.0.attn_k.weight": kind.Q4_0,
        "blk.0.ffn_up.weight": kind.Q4_1,
        "blk.0.ffn_down.weight": kind.Q5_1,
    }
    tensors = {
        "token_embd.weight": draw(vocab, width).astype(np.float16),
        "blk.0.attn_norm.weight": draw(width),
        **{f"blk.0.attn_{part}.weight": draw(width, width) for part in ("q", "k", "v", "output")},
        "blk.0.ffn_norm.weight": draw(width),
        "blk.0.ffn_gate.weight": draw(inner, width),
        "blk.0.ffn_up.weight": draw(inner, width),
        "blk.0.ffn_down.weight": draw(width, inner),
        "output_norm.weight": draw(width),
    }
    for part, count in rows.items():
        tensors[f"blk.0.{part}.weight"] = draw(count, width)
    for name, quantization in quantized.items():
        tensors[name] = gguf.quants.quantize(tensors[name], quantization)
    metadata = {
        "general.architecture": "llama",
        "general.name": "a tiny llama",
        "llama.context_length": 64,
        "llama.embedding_length": width,
        "llama.block_count": 1,
        "llama.feed_forward_length": inner,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 4,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": 8,
        "llama.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.scores": SCORES,
        "tokenizer.ggml.token_type": TYPES,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.chat_template": "{% for message in messages %}{{ message.content }}{% endfor %}",
    }
    return write(path, metadata, tensors, quantized)
