"""nanochat (Karpathy 2025), as transformers has it: no weights in norms, squared ReLU, capped logits."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from anyformer.config import HeadKind, ModelConfig
from anyformer.errors import UserError, quote
from anyformer.families.base import Raw, Values, classes, rotary_rows, sizes, special_tokens
from anyformer.families.llama import BIAS, FIELDS, LLAMA, read_rope, write_rope
from anyformer.families.rows import Row, linears, row, tied

_LAYER = {
    "self_attn.v_proj": "attention.value",
    "self_attn.o_proj": "attention.output",
    "mlp.fc1": "feed_forward.up",
    "mlp.fc2": "feed_forward.down",
}


def _rows(config: ModelConfig) -> Sequence[Row]:
    # Its halves turn the other way round. That its norms come after the rotation changes nothing: they have no weights.
    return [
        row("model.embed_tokens.weight", "token_embedding.table.weight"),
        *linears("model.layers.{i}.", "decoder.blocks.{i}.", _LAYER),
        *rotary_rows(config, "swapped"),
        *tied("lm_head"),
    ]


def _derived(raw: Raw, values: Values, head: HeadKind) -> Values:
    rope = read_rope(raw, values, head)
    kind = rope.get("position.scaling", {}).get("kind")
    if kind in ("yarn", "longrope"):
        raise UserError(f"config.json: the rope scaling {quote(kind)} is not supported for nanochat: it moves lengths.")
    cap = {"head.softcap": raw.get("final_logit_softcapping", 15.0)} if head == "language_model" else {}
    return {**rope, **cap}


def _written(config: ModelConfig) -> dict[str, Any]:
    return {**write_rope(config), "final_logit_softcapping": config.head.softcap}


_sizes = sizes("hidden_size num_hidden_layers num_attention_heads intermediate_size")
FAMILY = replace(
    LLAMA,
    model_type="nanochat",
    architectures=classes("NanoChat", "ForCausalLM", ("Model",)),
    fields={
        **FIELDS,
        **BIAS,
        "vocab_size": ("vocab_size", 50304),
        "hidden_size": ("d_model", 768),
        "num_hidden_layers": ("decoder_layers", 12),
        "num_attention_heads": ("attention.heads", 6),
        "intermediate_size": ("feed_forward.width", 8192),
        "hidden_act": ("feed_forward.activation", "relu2"),
        **special_tokens(bos=0, eos=1, pad=1),
    },
    constants={
        "position.kind": "rotary",
        "norm.kind": "rms_plain",
        "embedding.norm": True,
        "attention.qk_norm": "head",
        "feed_forward.bias": False,
    },
    derived=_derived,
    written=_written,
    rows=_rows,
    published={
        "nanochat-d20": _sizes(1280, 20, 10, 5120, vocab_size=65536),
        "nanochat-d32": _sizes(2048, 32, 16, 8192, vocab_size=65536),
    },
)
