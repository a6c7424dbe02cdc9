"""Gemma (Gemma Team 2024, 2403.08295): LLaMA with GELU, wide heads, scaled embeddings and norms of 1 + weight."""

from dataclasses import replace

from anyformer.config import HeadKind
from anyformer.families.base import Raw, Values, classes, sizes, special_tokens
from anyformer.families.llama import BIAS, FIELDS, LLAMA, read_rope


def _derived(raw: Raw, values: Values, head: HeadKind) -> Values:
    # The first release said "gelu", and meant the approximation.
    legacy = {"feed_forward.activation": "gelu_tanh"} if raw.get("hidden_act") == "gelu" else {}
    return {**read_rope(raw, values, head), **legacy}


_sizes = sizes("hidden_size num_hidden_layers num_attention_heads num_key_value_heads intermediate_size")
_GEMMA = replace(
    LLAMA,
    model_type="gemma",
    architectures=classes("Gemma", "ForCausalLM"),
    fields={
        **FIELDS,
        **BIAS,
        "vocab_size": ("vocab_size", 256_000),
        "hidden_size": ("d_model", 3072),
        "num_hidden_layers": ("decoder_layers", 28),
        "max_position_embeddings": ("max_length", 8192),
        "num_attention_heads": ("attention.heads", 16),
        "num_key_value_heads": ("attention.kv_heads", 16),
        "head_dim": ("attention.head_dim", 256),
        "intermediate_size": ("feed_forward.width", 24576),
        "hidden_act": ("feed_forward.activation", "gelu_pytorch_tanh"),
        "tie_word_embeddings": ("embedding.tied", True),
        **special_tokens(bos=2, eos=1, pad=0),
    },
    constants={**LLAMA.constants, "norm.kind": "rms_offset", "embedding.scaled": True, "feed_forward.bias": False},
    refused={"use_bidirectional_attention": True},
    derived=_derived,
    published={"gemma-2b": _sizes(2048, 18, 8, 1, 16384), "gemma-7b": {}},
)
FAMILIES = [_GEMMA]
