"""nanochat (Karpathy 2025), as transformers has it: no weights in norms, squared ReLU, capped logits."""

from dataclasses import replace
from typing import Any

from anyformer.config import HeadKind, ModelConfig
from anyformer.errors import UserError, quote
from anyformer.families.base import SIZES, Raw, Values, classes, fields_of, special_tokens
from anyformer.families.llama import BIAS, FIELDS, LLAMA, decoder_rows
from anyformer.families.rotary import (
    read_rope,
    rotary_rows,
    write_rope,
)
from anyformer.families.rows import Row

_LAYER = {
    "self_attn.v_proj": "attention.value",
    "self_attn.o_proj": "attention.output",
    "mlp.fc1": "feed_forward.up",
    "mlp.fc2": "feed_forward.down",
}


def _derived(raw: Raw, values: Values, head: HeadKind) -> Values:
    rope = read_rope(raw, values, head)
    kind = rope.get("position.scaling", {}).get("kind")
    if kind in ("yarn", "longrope"):
        raise UserError(f"config.json: the rope scaling {quote(kind)} is not supported for nanochat: it moves lengths.")
    cap = {"head.softcap": raw.get("final_logit_softcapping", 15.0)} if head == "language_model" else {}
    return {**rope, **cap}


def _written(config: ModelConfig) -> dict[str, Any]:
    return {**write_rope(config), "final_logit_softcapping": config.head.softcap}


def _rows(config: ModelConfig) -> list[Row]:
    # Its halves turn the other way round. That its norms come after the rotation changes nothing: they have no weights.
    return decoder_rows(_LAYER, rotary_rows(config, "swapped"))


FAMILY = replace(
    LLAMA,
    model_type="nanochat",
    architectures=classes("NanoChat", "ForCausalLM", ("Model",)),
    fields=fields_of(
        FIELDS,
        BIAS,
        special_tokens(bos=0, eos=1, pad=1),
        **SIZES(768, 12, 6, 8192, vocab_size=50304, hidden_act="relu2"),
    ),
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
        "nanochat-d20": SIZES(1280, 20, 10, 5120, vocab_size=65536),
        "nanochat-d32": SIZES(2048, 32, 16, 8192, vocab_size=65536),
    },
)
