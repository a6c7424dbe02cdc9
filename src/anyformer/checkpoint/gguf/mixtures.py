"""Architectures of GGUF with experts, their dense Granite, and DeepSeek's latent attention there."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from anyformer.blocks.latent_attention import EPS
from anyformer.checkpoint.gguf.architecture import Architecture
from anyformer.checkpoint.gguf.contents import Contents, read_rope_scaling
from anyformer.config import ModelConfig
from anyformer.errors import UserError
from anyformer.families import FAMILIES
from anyformer.families.base import Raw
from anyformer.families.rows import Operation, Row

_GATING = {"softmax": 1, "sigmoid": 2}
"""llama.cpp's numbers; a file without one means the first."""
_OLMOE = ("norm_topk_prob", "attention_bias", "tie_word_embeddings")
_MULTIPLIER = "rope.scaling.yarn_log_multiplier"


def _deepseek(contents: Contents) -> Raw:
    """Fields of a DeepSeek V3; widths of heads are those of latent attention, or in older files those of plain one."""
    scaling = contents.get("rope.scaling.type")
    multiplier = contents.get(_MULTIPLIER)
    if (
        contents.rope_factors is not None
        or scaling not in (None, "none", "yarn")
        or (scaling == "yarn") != bool(multiplier)
    ):
        raise UserError(f"A DeepSeek's rotary positions are scaled by YaRN with a {_MULTIPLIER}, or not at all.")
    if abs(contents.get("attention.layer_norm_rms_epsilon") - EPS) > 1e-3 * EPS:
        raise UserError(f"The norms of a DeepSeek's latents have an epsilon of {EPS:g}, and llama.cpp has one for all.")
    key, value = (
        contents.get(f"attention.{name}_length_mla") or contents.get(f"attention.{name}_length")
        for name in ("key", "value")
    )
    groups = contents.get("expert_group_count") or 1
    return {
        "qk_nope_head_dim": key - contents.get("rope.dimension_count"),
        "v_head_dim": value,
        "q_lora_rank": contents.get("attention.q_lora_rank") or None,
        "intermediate_size": contents.get("feed_forward_length"),
        "first_k_dense_replace": contents.get("leading_dense_block_count") or 0,
        "norm_topk_prob": bool(contents.get("expert_weights_norm")),
        "routed_scaling_factor": contents.get("expert_weights_scale") or 1.0,
        "n_group": groups,
        "topk_group": contents.get("expert_group_used_count") or groups,
        "attention_bias": False,
        **({"rope_scaling": _yarn(contents, round(10 * multiplier, 6))} if multiplier else {}),
    }


def _yarn(contents: Contents, mscale: float) -> Raw:
    return {**read_rope_scaling(contents)["rope_scaling"], "mscale": mscale, "mscale_all_dim": mscale}


def _deepseek_adjust(config: ModelConfig, contents: Contents) -> ModelConfig:
    if contents.get("expert_gating_func") == _GATING["sigmoid"]:
        return config
    best = 1 if config.feed_forward.experts is None or config.feed_forward.experts.groups == 1 else 2
    softmax = {"scores": "softmax", "correction": False, "group_best": best}
    return config.replace(model_type="deepseek_v2", feed_forward={"experts": softmax})


def _write_deepseek(config: ModelConfig) -> Raw:
    raw = FAMILIES["deepseek_v3"].write(config)
    attention, mixture = config.attention, config.feed_forward.experts
    assert attention.latent is not None
    assert mixture is not None
    latent, grouped = attention.latent, mixture.groups > mixture.used_groups
    share = (raw.get("rope_scaling") or raw.get("rope_parameters") or {}).get("mscale_all_dim")
    return {
        "feed_forward_length": raw["intermediate_size"],
        "leading_dense_block_count": raw["first_k_dense_replace"],
        # What is cached is one key and one value for all heads.
        "attention.head_count_kv": 1,
        "attention.key_length": latent.rank + latent.rotary_dim,
        "attention.value_length": latent.rank,
        "attention.key_length_mla": config.head_dim,
        "attention.value_length_mla": latent.value_dim,
        "expert_weights_norm": mixture.normalized,
        "expert_gating_func": _GATING[mixture.scores],
        "expert_group_count": mixture.groups if grouped else None,
        "expert_group_used_count": mixture.used_groups if grouped else None,
        _MULTIPLIER: None if share is None else share / 10,
    }


def _granite(contents: Contents) -> Raw:
    width = contents.get("embedding_length") // contents.get("attention.head_count")
    return {
        "logits_scaling": contents.get("logit_scale") or 1.0,
        "attention_multiplier": contents.get("attention.scale")
        or (contents.get("rope.dimension_count") or width) ** -0.5,
    }


def _write_granite(config: ModelConfig) -> Raw:
    raw = FAMILIES["granite"].write(config)
    return {"logit_scale": float(raw["logits_scaling"]), "attention.scale": float(raw["attention_multiplier"])}


ROPE_BUFFERS = (r"rope_freqs\.weight", r"blk\.\d+\.attn_rot_embd", r"blk\.\d+\.rope_freqs\.weight")
GRANITE = Architecture(
    "granite",
    ("granite",),
    neighboring=True,
    keys={"embedding_scale": "embedding.scale", "residual_scale": "residual_scale"},
    inferred=_granite,
    more=_write_granite,
    ignored=ROPE_BUFFERS,
)
MIXTRAL = Architecture("llama", ("mixtral",), neighboring=True, ignored=ROPE_BUFFERS)
"""LLaMAs with experts, which GGUF calls LLaMAs."""
MIXTURES = [
    replace(GRANITE, name="granitemoe", model_types=("granitemoe",)),
    Architecture(
        "qwen3moe",
        ("qwen3_moe",),
        keys={"expert_feed_forward_length": "feed_forward.width"},
        inferred=lambda contents: {"norm_topk_prob": True},
    ),
    Architecture("olmoe", ("olmoe",), inferred=lambda contents: dict.fromkeys(_OLMOE, False)),
    Architecture(
        "deepseek2",
        ("deepseek_v3", "deepseek_v2"),
        keys={
            "expert_feed_forward_length": "feed_forward.width",
            "expert_shared_count": "feed_forward.experts.shared",
            "expert_weights_scale": "feed_forward.experts.scale",
            "attention.q_lora_rank": "attention.latent.query_rank",
            "attention.kv_lora_rank": "attention.latent.rank",
            "rope.dimension_count": "attention.latent.rotary_dim",
        },
        names={
            "q_b_proj": "blk.{i}.attn_q_b",
            "attention.query_down": "blk.{i}.attn_q_a",
            "attention.query_norm": "blk.{i}.attn_q_a_norm",
            "attention.latent_down": "blk.{i}.attn_kv_a_mqa",
            "attention.latent_norm": "blk.{i}.attn_kv_a_norm",
            "attention.latent_up": "blk.{i}.attn_kv_b",
            "feed_forward.correction": "blk.{i}.exp_probs_b",
            **{f"feed_forward.shared.{name}": f"blk.{{i}}.ffn_{name}_shexp" for name in ("gate", "up", "down")},
        },
        inferred=_deepseek,
        more=_write_deepseek,
        adjust=_deepseek_adjust,
    ),
]
_BOTH, _KEY, _VALUE = (f".attn_{name}.weight" for name in ("kv_b", "k_b", "v_b"))
"""The matrix from latents to keys and values: in one tensor in older files, in two in newer ones."""


def joined_latents(names: Iterable[str]) -> list[str]:
    """Names of tensors, with one in the place of the two of keys and values."""
    alone = [*names]
    for name in [name.replace(_KEY, _BOTH) for name in alone if name.endswith(_KEY)]:
        if {*halves_of_latent(name)} <= {*alone}:
            alone = [name, *(other for other in alone if other not in halves_of_latent(name))]
    return alone


def halves_of_latent(name: str) -> tuple[str, str]:
    """The names of the two tensors that the tensor of this name is made of."""
    return name.replace(_BOTH, _KEY), name.replace(_BOTH, _VALUE)


def join_latent(key: Tensor, value: Tensor) -> Tensor:
    """The matrix, [heads * (key + value), rank], of that of keys, [heads, rank, key], and of values."""
    return torch.cat((key.transpose(1, 2).to(value), value), dim=1).flatten(0, 1)


def split_latents(rows: Mapping[str, Row], config: ModelConfig) -> Iterator[tuple[str, Row]]:
    """The rows to write, with two in the place of that of latents: a query is multiplied by that of keys at once."""
    attention = config.attention
    plain = config.head_dim - (0 if attention.latent is None else attention.latent.rotary_dim)

    def keys(tensors: Sequence[Tensor]) -> Tensor:
        return tensors[0].unflatten(0, (attention.heads, -1))[:, :plain].transpose(1, 2).contiguous()

    def values(tensors: Sequence[Tensor]) -> Tensor:
        return tensors[0].unflatten(0, (attention.heads, -1))[:, plain:].contiguous()

    for name, row in rows.items():
        if name.endswith(_BOTH):
            for half, write in zip(halves_of_latent(name), (keys, values), strict=True):
                yield half, replace(row, theirs=half, operation=Operation(row.operation.read, write))
        else:
            yield name, row
