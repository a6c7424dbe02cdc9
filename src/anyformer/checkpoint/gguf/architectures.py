"""The architectures of GGUF that models are read from and written as: `llama`, `qwen2`, `qwen3`, `gpt2`, `bert`, `t5`.

A Mistral is a `llama` there, and its window is not said.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from anyformer.checkpoint.gguf.architecture import (
    Architecture,
    Contents,
    layers,
    read_rope_scaling,
    rope_factors,
    same_factors,
    write_rope_scaling,
)
from anyformer.config import ModelConfig, SpecialTokens, diff
from anyformer.errors import UserError, nearest, quote
from anyformer.families import FAMILIES, canonical, to_huggingface
from anyformer.families.rows import COPY, SPLIT, Operation, Row, alias, linear, linears, resolve, row
from anyformer.model import skeleton

if TYPE_CHECKING:
    from torch import Tensor

_TOKENS = row("token_embd.weight", "token_embedding.table.weight")
_HEAD = row("output.weight", "head.projection.weight")
_DECODER_HEAD = [
    *linear("output_norm", "decoder.final_norm"),
    _HEAD,
    alias("output.weight", "token_embedding.table.weight"),
]
_QKV = {"attn_q": "attention.query", "attn_k": "attention.key", "attn_v": "attention.value"}
_FEED_FORWARD = {"ffn_gate": "feed_forward.gate", "ffn_up": "feed_forward.up", "ffn_down": "feed_forward.down"}
_LLAMA_LAYER = {
    "attn_norm": "attention_norm",
    **_QKV,
    "attn_output": "attention.output",
    "attn_q_norm": "attention.query_norm",
    "attn_k_norm": "attention.key_norm",
    "ffn_norm": "feed_forward_norm",
    **_FEED_FORWARD,
}


def neighbors(heads: int) -> Operation:
    """From pairs of neighboring rows in each head to two halves, and back; `heads` heads of rows.

    llama.cpp rotates neighboring pairs of a LLaMA's queries and keys, Hugging Face a head's two halves.
    """

    def read(tensor: "Tensor", _: int) -> Sequence["Tensor"]:
        return [tensor.reshape(heads, -1, 2, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)]

    def write(tensors: Sequence["Tensor"]) -> "Tensor":
        tensor = tensors[0]
        return tensor.reshape(heads, 2, -1, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)

    return Operation(read, write)


def _llama_rows(config: ModelConfig, *, neighboring: bool) -> list[Row]:
    attention = config.attention
    heads = {"attn_q": attention.heads, "attn_k": attention.kv_heads or attention.heads} if neighboring else {}
    layer = [
        row(
            f"blk.{{i}}.{theirs}.{part}",
            f"decoder.blocks.{{i}}.{ours}.{part}",
            neighbors(heads[theirs]) if theirs in heads else COPY,
        )
        for theirs, ours in _LLAMA_LAYER.items()
        for part in ("weight", "bias")
    ]
    return [_TOKENS, *layer, *_DECODER_HEAD]


def _llama_inferred(contents: Contents) -> dict[str, Any]:
    if contents.get("expert_count"):
        raise UserError("The model is a mixture of experts, which is not supported.")
    names = ("attention.key_length", "attention.value_length", "rope.dimension_count")
    widths = {key: contents.get(key) for key in names if contents.get(key) is not None}
    if len(set(widths.values())) > 1:
        found = ", ".join(f"{key} {width}" for key, width in widths.items())
        raise UserError(f"Keys, values and rotary positions of different widths are not supported ({found}).")
    return {
        "tie_word_embeddings": contents.output in ("absent", "same"),
        "attention_bias": "blk.0.attn_q.bias" in contents.shapes,
        "mlp_bias": "blk.0.ffn_up.bias" in contents.shapes,
        **read_rope_scaling(contents),
    }


def _llama(name: str, model_types: Sequence[str], *, neighboring: bool = False) -> Architecture:
    return Architecture(
        name=name,
        model_types=model_types,
        head="language_model",
        keys={
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
        },
        rows=partial(_llama_rows, neighboring=neighboring),
        inferred=_llama_inferred,
        more=write_rope_scaling,
        ignored=(r"rope_freqs\.weight", r"blk\.\d+\.attn_rot_embd", r"blk\.\d+\.rope_freqs\.weight"),
    )


_GPT2_ROWS = [
    _TOKENS,
    row("position_embd.weight", "decoder.position.table.weight"),
    *linear("blk.{i}.attn_norm", "decoder.blocks.{i}.attention_norm"),
    *(
        row(f"blk.{{i}}.attn_qkv.{part}", [f"decoder.blocks.{{i}}.{name}.{part}" for name in _QKV.values()], SPLIT)
        for part in ("weight", "bias")
    ),
    *linear("blk.{i}.attn_output", "decoder.blocks.{i}.attention.output"),
    *linear("blk.{i}.ffn_norm", "decoder.blocks.{i}.feed_forward_norm"),
    *linears("blk.{i}.", "decoder.blocks.{i}.", _FEED_FORWARD),
    *_DECODER_HEAD,
]
"""Matrices are [out, in], unlike Hugging Face's; queries, keys and values share one."""

_GPT2 = Architecture(
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
    rows=lambda config: _GPT2_ROWS,
    inferred=lambda contents: {"tie_word_embeddings": contents.output in ("absent", "same")},
    more=lambda config: {"feed_forward_length": config.feed_forward.width},
    ignored=(r"blk\.\d+\.attn\.(bias|masked_bias)",),
)


_BERT_LAYER = {
    **_QKV,
    "attn_output": "attention.output",
    "attn_output_norm": "attention_norm",
    "ffn_up": "feed_forward.up",
    "ffn_down": "feed_forward.down",
    "layer_output_norm": "feed_forward_norm",
}
_BERT_ROWS = [
    _TOKENS,
    row("position_embd.weight", "encoder.position.table.weight"),
    row("token_types.weight", "encoder.embedding.segments.weight"),
    *linear("token_embd_norm", "encoder.embedding.norm"),
    *linears("blk.{i}.", "encoder.blocks.{i}.", _BERT_LAYER),
]
"""The body of an encoder, without a masked-LM head and a pooler."""
_POOLING = {"mean": 1, "first": 2, "last": 3}
"""llama.cpp's numbers; 0 is none, and 4 scores pairs of texts."""


def _bert_keys(config: ModelConfig) -> dict[str, Any]:
    pooling = _POOLING.get(config.pooling.kind)
    keys: dict[str, Any] = {"attention.causal": False, "feed_forward_length": config.feed_forward.width}
    return keys if pooling is None else {**keys, "pooling_type": pooling}


def _bert_adjust(config: ModelConfig, contents: Contents) -> ModelConfig:
    kinds = {number: kind for kind, number in _POOLING.items()}
    return config.replace(
        head={"pooler": None},
        pooling={"kind": kinds.get(contents.get("pooling_type"), "mean")},
        # Without segments it is a DistilBERT to Hugging Face.
        model_type="bert" if config.embedding.segments else "distilbert",
    )


_BERT = Architecture(
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
    rows=lambda config: _BERT_ROWS,
    inferred=lambda contents: {"type_vocab_size": contents.shapes.get("token_types.weight", (0,))[0]},
    more=_bert_keys,
    adjust=_bert_adjust,
    # Poolers and heads that a converter left in: what this architecture computes ends with the hidden states.
    ignored=(r"cls(\.output)?\.(weight|bias)",),
)


_T5_LAYER = {
    **_QKV,
    "attn_o": "attention.output",
    "attn_norm": "attention_norm",
    **_FEED_FORWARD,
    "ffn_norm": "feed_forward_norm",
}
_T5_CROSS = {name.replace("attn_", "cross_attn_"): f"cross_{ours}" for name, ours in list(_T5_LAYER.items())[:5]}


def _t5_rows(config: ModelConfig) -> list[Row]:
    """The table. llama.cpp multiplies by `output.weight` and nothing else, so where the head of a T5 1.0 is its token
    embedding over sqrt(d_model), the file needs that product."""
    scale = 1 / math.sqrt(config.d_model)
    scaled = Operation(lambda tensor, _: [tensor / scale], lambda tensors: tensors[0] * scale)
    stacks = [
        line
        for short, stack in (("enc", "encoder"), ("dec", "decoder"))
        for line in (
            row(f"{short}.blk.0.attn_rel_b.weight", f"{stack}.position.table.weight"),
            *linears(f"{short}.blk.{{i}}.", f"{stack}.blocks.{{i}}.", _T5_LAYER),
            *linear(f"{short}.output_norm", f"{stack}.final_norm"),
        )
    ]
    cross = linears("dec.blk.{i}.", "decoder.blocks.{i}.", _T5_CROSS)
    head = Row("output.weight", ("token_embedding.table.weight",), scaled if config.head.scaled else COPY, alias=True)
    return [_TOKENS, *stacks, *cross, _HEAD, head]


def _t5_inferred(contents: Contents) -> dict[str, Any]:
    return {
        "feed_forward_proj": "gated-gelu" if "enc.blk.0.ffn_gate.weight" in contents.shapes else "relu",
        "tie_word_embeddings": contents.output != "own",
        "scale_decoder_outputs": contents.output in ("absent", "scaled"),
    }


_T5 = Architecture(
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
    rows=_t5_rows,
    inferred=_t5_inferred,
    ignored=(r"dec\.blk\.\d+\.cross_attn_rel_b\.weight", r"(enc|dec)\.blk\.[1-9]\d*\.attn_rel_b\.weight"),
)

ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture
    for architecture in (
        _llama("llama", ("llama", "mistral"), neighboring=True),
        _llama("qwen2", ("qwen2",)),
        _llama("qwen3", ("qwen3",)),
        _GPT2,
        _BERT,
        _T5,
    )
}


def architecture(name: str) -> Architecture:
    """The architecture of this name. Raises UserError for one that is not supported."""
    if name not in ARCHITECTURES:
        raise UserError(f"The GGUF architecture {quote(name)} is not supported ({nearest(name, ARCHITECTURES)}).")
    return ARCHITECTURES[name]


def from_gguf(contents: Contents) -> ModelConfig:
    """The model that a GGUF file describes. Raises UserError for what is not supported, missing or misshapen."""
    kind = architecture(contents.architecture)
    raw = kind.read(contents)
    family = FAMILIES[kind.model_types[0]]
    config = kind.adjust(family.read(raw, kind.head), contents)
    # Before anything is built: a number of layers costs nothing to write.
    for count, prefix in ((config.encoder_layers, "enc."), (config.decoder_layers, "dec.")):
        prefix = prefix if config.is_encoder_decoder else ""
        if count and count != (found := layers(contents, prefix)):
            raise UserError(f"The metadata says {count} layers, and there are {prefix}blk tensors of {found}.")
    return config


def to_gguf(config: ModelConfig) -> tuple[Architecture, dict[str, Any]]:
    """The architecture that can hold this model, and the metadata that describes it, without the tokenizer's.

    Raises:
        UserError: GGUF, or llama.cpp that computes by it, can't express the model; it names what stands in the way.
    """
    model_type = to_huggingface(config)[0].model_type
    kind = next((kind for kind in ARCHITECTURES.values() if model_type in kind.model_types), None)
    if kind is None:
        raise UserError(f"GGUF has no architecture for a model of type {quote(model_type)}.")
    if config.head.kind != kind.head:
        raise UserError(f"GGUF's {kind.name} architecture has no place for a head of kind {quote(config.head.kind)}.")
    metadata = kind.write(config, FAMILIES[kind.model_types[0]].write(config))
    back = from_gguf(_contents(config, kind, metadata))
    # LLaMA 3's scaling is its factors, which different lengths and frequencies can have in common.
    factors = rope_factors(config)
    are_same = factors is not None and same_factors(rope_factors(back) or (), factors)
    for field, (computed, meant) in diff(_computed(back), _computed(config)).items():
        if not (are_same and field.startswith("position.scaling.")):
            raise UserError(
                f"GGUF's {kind.name} architecture can't express {field} = {quote(meant)} (llama.cpp would compute with "
                f"{quote(computed)})."
            )
    return kind, metadata


def _computed(config: ModelConfig) -> ModelConfig:
    """The config that llama.cpp computes by: without training's settings, token ids, and synonyms."""
    pooling = {"kind": config.pooling.kind} if config.is_encoder_only else {}
    rates = {part: {"dropout": 0.0} for part in ("attention", "feed_forward", "embedding", "head")}
    return canonical(config).replace(dropout=0.0, special_tokens=SpecialTokens(), pooling=pooling, **rates)


def _contents(config: ModelConfig, kind: Architecture, metadata: dict[str, Any]) -> Contents:
    """Contents of a file of this model."""
    state = skeleton(config).state_dict()
    shapes = {
        theirs: tuple(line.operation.write([state[name] for name in line.ours]).shape)
        for theirs, line in table(kind, config, state).items()
        if not line.alias
    }
    tied = config.head.kind != "language_model" or config.embedding.tied
    output = "own" if not tied else "scaled" if config.head.scaled else "same"
    return Contents(metadata, shapes, output, rope_factors(config))


def table(kind: Architecture, config: ModelConfig, ours: Any) -> dict[str, Row]:
    """The row for every tensor name of a model with these weights. Raises UserError for one that has no place."""
    try:
        return resolve(kind.rows(config), ours)
    except UserError as error:
        raise UserError(str(error).replace("This model type", f"GGUF's {kind.name} architecture")) from error
