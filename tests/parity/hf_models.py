"""The oracle: tiny Hugging Face models of every family, drawn by hypothesis.

One function a family: what its published checkpoints vary, and a little more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from tests.parity.model_spec import CONTEXT, KINDS, ModelSpec

ACTIVATIONS = ("gelu", "gelu_new", "relu", "silu")


def _divisors(number: int) -> st.SearchStrategy[int]:
    return st.sampled_from([n for n in range(1, number + 1) if number % n == 0])


def _width(draw: st.DrawFn, multiple: int, fewest: int = 1) -> int:
    """A width of 8 to 36 or so: over fewer numbers a norm magnifies rounding without bounds."""
    return multiple * draw(st.integers(max(fewest, -(-8 // multiple)), max(fewest, -(-36 // multiple))))


_SEEDS = st.integers(0, 2**20)
_WIDTHS = st.integers(4, 40)
_RATES = st.sampled_from((0.0, 0.1))
_STDS = st.sampled_from((0.02, 0.05))


def _labels(draw: st.DrawFn, architecture: str) -> dict[str, Any]:
    if "Classification" not in architecture:
        return {}
    count = draw(st.integers(1 if "Sequence" in architecture else 2, 5))
    labels: dict[str, Any] = {"num_labels": count}
    if draw(st.booleans()):
        names = [f"{draw(st.sampled_from(('B-', 'I-', '')))}{index}" for index in range(count)]
        labels["id2label"] = dict(enumerate(names))
        labels["label2id"] = {name: index for index, name in enumerate(names)}
    if "Sequence" in architecture:
        problems = [None, "regression", "multi_label_classification", "single_label_classification"]
        labels["problem_type"] = draw(st.sampled_from(problems if count > 1 else problems[:3]))
    return labels


@st.composite
def gpt2(draw: st.DrawFn, architecture: str) -> ModelSpec:
    """GPT-2, with the Mistral project's switches."""
    heads, layers = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    options = {
        "vocab_size": draw(st.integers(20, 90)),
        "n_positions": CONTEXT,
        "n_embd": _width(draw, heads),
        "n_layer": layers,
        "n_head": heads,
        "n_inner": draw(st.none() | _WIDTHS),
        "activation_function": draw(st.sampled_from(ACTIVATIONS)),
        "layer_norm_epsilon": draw(st.sampled_from((1e-5, 1e-3))),
        "initializer_range": draw(_STDS),
        "scale_attn_weights": draw(st.booleans()),
        "scale_attn_by_inverse_layer_idx": draw(st.booleans()),
        "reorder_and_upcast_attn": draw(st.booleans()),
        "tie_word_embeddings": draw(st.booleans()),
        "resid_pdrop": draw(_RATES),
        "bos_token_id": 1,
        "eos_token_id": 2,
        **_labels(draw, architecture),
    }
    if "SequenceClassification" in architecture:
        options["pad_token_id"] = 3
    return ModelSpec("gpt2", architecture, options, draw(_SEEDS))


@st.composite
def opt(draw: st.DrawFn, architecture: str) -> ModelSpec:
    """OPT."""
    heads = draw(st.integers(1, 4))
    options = {
        "vocab_size": draw(st.integers(20, 90)),
        "hidden_size": _width(draw, heads),
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": heads,
        "ffn_dim": draw(_WIDTHS),
        "max_position_embeddings": CONTEXT,
        "activation_function": draw(st.sampled_from(ACTIVATIONS)),
        "init_std": draw(_STDS),
        "dropout": draw(_RATES),
        "tie_word_embeddings": draw(st.booleans()),
        "pad_token_id": 1,
        **_labels(draw, architecture),
    }
    return ModelSpec("opt", architecture, options, draw(_SEEDS))


ROPE_KINDS = ("default", "linear", "dynamic", "llama3", "yarn")


@st.composite
def rope(draw: st.DrawFn, kinds: tuple[str, ...] = ROPE_KINDS) -> tuple[int, dict[str, Any]]:
    """Rotary parameters in all their variants, and the number of positions to go with them."""
    kind = draw(st.sampled_from(kinds))
    parameters: dict[str, Any] = {"rope_type": kind, "rope_theta": draw(st.sampled_from((100.0, 10_000.0, 500_000.0)))}
    original = draw(st.sampled_from((8, 16)))
    if kind == "default":
        return CONTEXT, parameters
    # A factor that stretches the original length to more than any text that the proofs use.
    parameters["factor"] = draw(st.sampled_from((8.0, 10.5)))
    if kind in ("linear", "dynamic"):
        return original, parameters
    parameters["original_max_position_embeddings"] = original
    if kind == "llama3":
        parameters |= {"low_freq_factor": draw(st.sampled_from((1.0, 0.5))), "high_freq_factor": 4.0}
    else:
        parameters |= draw(
            st.fixed_dictionaries(
                {},
                optional={
                    "attention_factor": st.sampled_from((1.0, 1.3)),
                    "beta_fast": st.sampled_from((32.0, 4.0)),
                    "beta_slow": st.sampled_from((1.0, 0.5)),
                    "truncate": st.booleans(),
                },
            )
        )
    return int(original * parameters["factor"]), parameters


@st.composite
def rotary(
    draw: st.DrawFn, family: str, architecture: str, kinds: tuple[str, ...] = ROPE_KINDS, **more: Any
) -> ModelSpec:
    """What LLaMA and its descendants share."""
    heads = draw(st.sampled_from((1, 2, 4, 6)))
    length, parameters = draw(rope(kinds))
    options = {
        "vocab_size": draw(st.integers(20, 90)),
        "hidden_size": _width(draw, 2 * heads, fewest=2),
        "intermediate_size": draw(_WIDTHS),
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": heads,
        "num_key_value_heads": draw(_divisors(heads)),
        "hidden_act": draw(st.sampled_from(("silu", "gelu", "gelu_pytorch_tanh", "relu"))),
        "max_position_embeddings": length,
        "rope_parameters": parameters,
        "rms_norm_eps": draw(st.sampled_from((1e-6, 1e-5, 1e-3))),
        "tie_word_embeddings": draw(st.booleans()),
        "initializer_range": draw(_STDS),
        # Classifiers of texts find the last token by it.
        "pad_token_id": draw(st.sampled_from((0, 3) if "SequenceClassification" in architecture else (None, 0, 3))),
        "bos_token_id": 1,
        "eos_token_id": draw(st.sampled_from((2, [2, 4]))),
        **_labels(draw, architecture),
        **{name: draw(value) for name, value in more.items()},
    }
    if options.get("head_dim", 0) is None:
        del options["head_dim"]
    return ModelSpec(family, architecture, options, draw(_SEEDS))


_HEAD_DIMS = st.sampled_from((None, 4, 6, 10))
_WINDOWS = {
    "use_sliding_window": st.booleans(),
    "sliding_window": st.integers(1, 12),
    "max_window_layers": st.integers(0, 3),
}


def llama(architecture: str) -> st.SearchStrategy[ModelSpec]:
    """LLaMA 1 to 3, SmolLM."""
    more = {"attention_bias": st.booleans(), "mlp_bias": st.booleans(), "head_dim": _HEAD_DIMS}
    return rotary("llama", architecture, **more)


def mistral(architecture: str) -> st.SearchStrategy[ModelSpec]:
    """Mistral, whose window is smaller than most texts here."""
    more = {"sliding_window": st.none() | st.integers(1, 12), "head_dim": _HEAD_DIMS}
    return rotary("mistral", architecture, **more)


def qwen2(architecture: str) -> st.SearchStrategy[ModelSpec]:
    """Qwen2 and 2.5, with a window from some layer on."""
    return rotary("qwen2", architecture, **_WINDOWS)


def qwen3(architecture: str) -> st.SearchStrategy[ModelSpec]:
    """Qwen3: norms on queries and keys, and a head width of its own."""
    more = {**_WINDOWS, "head_dim": st.sampled_from((4, 6, 10)), "attention_bias": st.booleans()}
    return rotary("qwen3", architecture, **more)


def gemma(architecture: str) -> st.SearchStrategy[ModelSpec]:
    """Gemma."""
    return rotary("gemma", architecture, head_dim=st.sampled_from((4, 6, 10)), attention_bias=st.booleans())


_LAYER_TYPES = ("full_attention", "sliding_attention")


def _layer_types(draw: st.DrawFn, layers: int) -> list[str] | None:
    """The type of each layer, in any order, or the family's own."""
    return draw(st.none() | st.lists(st.sampled_from(_LAYER_TYPES), min_size=layers, max_size=layers))


def _layered_rope(draw: st.DrawFn, parameters: dict[str, Any]) -> dict[str, Any]:
    """Rotary parameters of layers with and without a window."""
    others: dict[str, Any] = {"rope_type": "default", "rope_theta": draw(st.sampled_from((50.0, 10_000.0)))}
    if draw(st.booleans()):
        others |= {"rope_type": "linear", "factor": 2.0}
    return dict(zip(_LAYER_TYPES, (parameters, others), strict=True))


@st.composite
def gemma2(draw: st.DrawFn, architecture: str, family: str = "gemma2") -> ModelSpec:
    """Gemma 2: windows in some layers, norms around the branches, bounded scores and logits."""
    drawn = draw(rotary(family, architecture, head_dim=st.sampled_from((4, 6, 10)), attention_bias=st.booleans()))
    options = {
        **drawn.options,
        "hidden_activation": drawn.options["hidden_act"],
        "query_pre_attn_scalar": draw(st.sampled_from((4, 6, 7, 144))),
        "sliding_window": draw(st.integers(1, 12)),
        "layer_types": _layer_types(draw, drawn.options["num_hidden_layers"]),
        "attn_logit_softcapping": draw(st.sampled_from((None, 0.5, 50.0))),
        "final_logit_softcapping": draw(st.sampled_from((None, 0.5, 30.0))),
    }
    return replace(drawn, options=options)


@st.composite
def gemma3(draw: st.DrawFn, architecture: str) -> ModelSpec:
    """Gemma 3: norms on queries and keys, positions of their own in the layers with a window."""
    drawn = draw(gemma2(architecture, "gemma3_text"))
    options = {name: value for name, value in drawn.options.items() if name != "attn_logit_softcapping"}
    options["rope_parameters"] = _layered_rope(draw, options["rope_parameters"])
    return replace(drawn, options=options)


def olmo2(architecture: str) -> st.SearchStrategy[ModelSpec]:
    """OLMo 2: norms on the branches, and on all queries and keys together."""
    return rotary("olmo2", architecture, attention_bias=st.booleans())


@st.composite
def olmo3(draw: st.DrawFn, architecture: str) -> ModelSpec:
    """OLMo 3: OLMo 2 with windows, and scaled positions in the layers without."""
    drawn = draw(rotary("olmo3", architecture, attention_bias=st.booleans(), sliding_window=st.integers(1, 12)))
    options = {**drawn.options, "layer_types": _layer_types(draw, drawn.options["num_hidden_layers"])}
    options["rope_parameters"] = _layered_rope(draw, options["rope_parameters"])
    return replace(drawn, options=options)


@st.composite
def smollm3(draw: st.DrawFn, architecture: str) -> ModelSpec:
    """SmolLM3: layers without positions, and now and then with a window."""
    more = {
        "attention_bias": st.booleans(),
        "mlp_bias": st.booleans(),
        "use_sliding_window": st.booleans(),
        "sliding_window": st.integers(1, 12),
        "no_rope_layer_interval": st.integers(1, 3),
    }
    drawn = draw(rotary("smollm3", architecture, **more))
    layers = drawn.options["num_hidden_layers"]
    flags = draw(st.none() | st.lists(st.integers(0, 1), min_size=layers, max_size=layers))
    return replace(drawn, options={**drawn.options, "no_rope_layers": flags})


_EXPERTS = {
    "num_local_experts": st.integers(2, 5),
    "num_experts_per_tok": st.integers(1, 2),
    "router_aux_loss_coef": st.sampled_from((0.001, 0.02)),
}


def mixtral(architecture: str) -> st.SearchStrategy[ModelSpec]:
    """Mixtral: Mistral with experts."""
    # Without a width of heads of its own, transformers has only rotary positions that aren't scaled.
    more = {"sliding_window": st.none() | st.integers(1, 12), "head_dim": st.sampled_from((4, 6, 10))}
    return rotary("mixtral", architecture, **more, **_EXPERTS)


def olmoe(architecture: str) -> st.SearchStrategy[ModelSpec]:
    """OLMoE: norms over the whole width of queries and of keys."""
    return rotary("olmoe", architecture, attention_bias=st.booleans(), norm_topk_prob=st.booleans(), **_EXPERTS)


def qwen3_moe(architecture: str) -> st.SearchStrategy[ModelSpec]:
    """Qwen3-MoE: a window in all layers or none, experts whose weights sum to 1 or not."""
    more = {
        "use_sliding_window": st.booleans(),
        "sliding_window": st.integers(1, 12),
        "head_dim": st.sampled_from((4, 6, 10)),
        "attention_bias": st.booleans(),
        "moe_intermediate_size": _WIDTHS,
        "norm_topk_prob": st.booleans(),
    }
    return rotary("qwen3_moe", architecture, **more, **_EXPERTS)


@st.composite
def gpt_oss(draw: st.DrawFn, architecture: str) -> ModelSpec:
    """gpt-oss: sinks, experts with biases, a gate whose bound is often reached, windows in some layers."""
    more = {
        "sliding_window": st.integers(1, 12),
        "head_dim": st.sampled_from((4, 6, 10)),
        "attention_bias": st.booleans(),
        "swiglu_limit": st.sampled_from((0.3, 1.0, 7.0)),
    }
    drawn = draw(rotary("gpt_oss", architecture, **more, **_EXPERTS))
    options = {**drawn.options, "layer_types": _layer_types(draw, drawn.options["num_hidden_layers"])}
    return replace(drawn, options=options)


@st.composite
def deepseek(draw: st.DrawFn, family: str, architecture: str) -> ModelSpec:
    """DeepSeek V2 and V3: queries with a latent or without, groups of experts, dense layers, YaRN's second factor."""
    layers, groups, size = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(2, 3))
    heads, used_groups = draw(st.integers(1, 3)), draw(st.integers(1, groups))
    length, parameters = draw(rope(("default", "linear", "llama3", "yarn")))
    if parameters["rope_type"] == "yarn":
        parameters |= {
            "mscale": draw(st.sampled_from((1.0, 0.707))),
            "mscale_all_dim": draw(st.sampled_from((1.0, 0.7))),
        }
    options = {
        "vocab_size": draw(st.integers(20, 90)),
        "hidden_size": _width(draw, heads, fewest=2),
        "intermediate_size": draw(_WIDTHS),
        "moe_intermediate_size": draw(_WIDTHS),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "q_lora_rank": draw(st.none() | st.integers(3, 9)),
        # transformers reads pairs of a V2 as complex numbers, for which what is before them has to be even.
        "kv_lora_rank": draw(st.sampled_from((4, 6, 8))),
        "qk_rope_head_dim": draw(st.sampled_from((2, 4, 6))),
        "qk_nope_head_dim": draw(st.sampled_from((2, 4, 6))),
        "v_head_dim": draw(st.integers(1, 6)),
        "attention_bias": draw(st.booleans()),
        "n_routed_experts": groups * size,
        "num_experts_per_tok": draw(st.integers(1, used_groups * size)),
        "n_shared_experts": draw(st.integers(1, 2)),
        "routed_scaling_factor": draw(st.sampled_from((1.0, 2.5))),
        "first_k_dense_replace": draw(st.integers(0, layers)),
        "n_group": groups,
        "topk_group": used_groups,
        "max_position_embeddings": length,
        "rope_parameters": parameters,
        "rms_norm_eps": draw(st.sampled_from((1e-6, 1e-3))),
        "tie_word_embeddings": draw(st.booleans()),
        "initializer_range": draw(_STDS),
        "pad_token_id": draw(st.sampled_from((0, 3) if "SequenceClassification" in architecture else (None, 0, 3))),
        "bos_token_id": 1,
        "eos_token_id": 2,
        **_labels(draw, architecture),
    }
    if family == "deepseek_v2":
        options["topk_method"] = draw(st.sampled_from(("greedy", "group_limited_greedy")))
    else:
        options["norm_topk_prob"] = draw(st.booleans())
    return ModelSpec(family, architecture, options, draw(_SEEDS))


def deepseek_v2(architecture: str) -> st.SearchStrategy[ModelSpec]:
    """DeepSeek V2, whose Lite has no latent of queries."""
    return deepseek("deepseek_v2", architecture)


def deepseek_v3(architecture: str) -> st.SearchStrategy[ModelSpec]:
    """DeepSeek V3."""
    return deepseek("deepseek_v3", architecture)


@st.composite
def _partial_rope(draw: st.DrawFn, head_dim: int, kinds: tuple[str, ...] = ROPE_KINDS) -> tuple[int, dict[str, Any]]:
    """Rotary parameters for some of the pairs of a head, and the number of positions to go with them."""
    length, parameters = draw(rope(kinds))
    fewest = 2 if parameters["rope_type"] == "dynamic" else 1  # of one pair alone Hugging Face divides by 0
    rotated = st.integers(fewest, head_dim // 2).map(lambda pairs: 2 * pairs / head_dim)
    fractions = rotated.filter(lambda part: int(head_dim * part) % 2 == 0)
    return length, {**parameters, "partial_rotary_factor": draw(fractions)}


@st.composite
def gpt_neox(draw: st.DrawFn, architecture: str) -> ModelSpec:
    """GPT-NeoX and Pythia: attention and feed-forward in parallel, or one after the other."""
    heads = draw(st.integers(1, 4))
    width = _width(draw, 2 * heads, fewest=2)
    length, parameters = draw(_partial_rope(width // heads))
    options = {
        "vocab_size": draw(st.integers(20, 90)),
        "hidden_size": width,
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": heads,
        "intermediate_size": draw(_WIDTHS),
        "hidden_act": draw(st.sampled_from(ACTIVATIONS)),
        "hidden_dropout": draw(_RATES),
        "classifier_dropout": draw(_RATES),
        "max_position_embeddings": length,
        "rope_parameters": parameters,
        "layer_norm_eps": draw(st.sampled_from((1e-5, 1e-3))),
        "use_parallel_residual": draw(st.booleans()),
        "attention_bias": draw(st.booleans()),
        "tie_word_embeddings": draw(st.booleans()),
        "initializer_range": draw(_STDS),
        "pad_token_id": 3,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **_labels(draw, architecture),
    }
    return ModelSpec("gpt_neox", architecture, options, draw(_SEEDS))


@st.composite
def phi(draw: st.DrawFn, architecture: str) -> ModelSpec:
    """Phi-1, 1.5 and 2."""
    heads = draw(st.sampled_from((1, 2, 4)))
    width = _width(draw, 2 * heads, fewest=2)
    length, parameters = draw(_partial_rope(width // heads))
    options = {
        "vocab_size": draw(st.integers(20, 90)),
        "hidden_size": width,
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": heads,
        "num_key_value_heads": draw(_divisors(heads)),
        "intermediate_size": draw(_WIDTHS),
        "hidden_act": draw(st.sampled_from(ACTIVATIONS)),
        "resid_pdrop": draw(_RATES),
        "embd_pdrop": draw(_RATES),
        "max_position_embeddings": length,
        "rope_parameters": parameters,
        "layer_norm_eps": draw(st.sampled_from((1e-5, 1e-3))),
        "tie_word_embeddings": draw(st.booleans()),
        "initializer_range": draw(_STDS),
        "pad_token_id": 3,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **_labels(draw, architecture),
    }
    return ModelSpec("phi", architecture, options, draw(_SEEDS))


@st.composite
def phi3(draw: st.DrawFn, architecture: str) -> ModelSpec:
    """Phi-3 and 4: fused matrices, part of a head rotated, a window, LongRoPE."""
    drawn = draw(rotary("phi3", architecture))
    options = drawn.options
    head_dim = options["hidden_size"] // options["num_attention_heads"]
    length, parameters = draw(_partial_rope(head_dim, ("default",)))
    if draw(st.booleans()):
        original = draw(st.sampled_from((8, 16)))
        count = int(head_dim * parameters["partial_rotary_factor"]) // 2
        factors = st.lists(st.floats(1.0, 20.0, width=32), min_size=count, max_size=count)
        length, options["original_max_position_embeddings"] = CONTEXT, original
        parameters |= {
            "rope_type": "longrope",
            "short_factor": draw(factors),
            "long_factor": draw(factors),
            **draw(
                st.fixed_dictionaries(
                    {},
                    optional={"factor": st.sampled_from((1.0, 4.0)), "attention_factor": st.sampled_from((1.0, 1.3))},
                )
            ),
        }
    options |= {
        "max_position_embeddings": length,
        "rope_parameters": parameters,
        "sliding_window": draw(st.none() | st.integers(1, 12)),
        "resid_pdrop": draw(_RATES),
        "pad_token_id": 3,
    }
    return drawn


def granite(architecture: str, family: str = "granite", **fields: Any) -> st.SearchStrategy[ModelSpec]:
    """Granite: LLaMA with four multipliers."""
    more = {
        **fields,
        "attention_bias": st.booleans(),
        **({"mlp_bias": st.booleans()} if family == "granite" else {}),
        "attention_multiplier": st.sampled_from((1.0, 0.5, 0.015625)),
        "embedding_multiplier": st.sampled_from((1.0, 12.0)),
        "residual_multiplier": st.sampled_from((1.0, 0.22)),
        "logits_scaling": st.sampled_from((1.0, 8.0, 13.0)),
    }
    return rotary(family, architecture, **more)


def granitemoe(architecture: str) -> st.SearchStrategy[ModelSpec]:
    """Granite's mixture of experts: one tensor for the matrices of all."""
    return granite(architecture, "granitemoe", **_EXPERTS)


def cohere(architecture: str) -> st.SearchStrategy[ModelSpec]:
    """Command R."""
    more = {
        "attention_bias": st.booleans(),
        "layer_norm_eps": st.sampled_from((1e-5, 1e-3)),
        "logit_scale": st.sampled_from((1.0, 0.0625, 0.8)),
    }
    return rotary("cohere", architecture, **more)


@st.composite
def falcon(draw: st.DrawFn, architecture: str) -> ModelSpec:
    """Falcon 7B, with a key and a value for each head as well; 40B and 11B, with groups."""
    heads = draw(st.sampled_from((1, 2, 4)))
    length, parameters = draw(rope())
    grouped = draw(st.booleans())
    options = {
        "vocab_size": draw(st.integers(20, 90)),
        "hidden_size": _width(draw, 2 * heads, fewest=2),
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": heads,
        "ffn_hidden_size": draw(st.none() | _WIDTHS),
        "activation": draw(st.sampled_from(ACTIVATIONS)),
        "hidden_dropout": draw(_RATES),
        "max_position_embeddings": length,
        "rope_parameters": parameters,
        "layer_norm_epsilon": draw(st.sampled_from((1e-5, 1e-3))),
        "new_decoder_architecture": grouped,
        "parallel_attn": grouped or draw(st.booleans()),
        "multi_query": draw(st.booleans()),
        "bias": draw(st.booleans()),
        "tie_word_embeddings": draw(st.booleans()),
        "initializer_range": draw(_STDS),
        "pad_token_id": 3,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **_labels(draw, architecture),
    }
    if grouped:
        options |= {
            "num_kv_heads": draw(_divisors(heads)),
            "num_ln_in_parallel_attn": draw(st.sampled_from((None, 1, 2))),
        }
    return ModelSpec("falcon", architecture, options, draw(_SEEDS))


def nanochat(architecture: str) -> st.SearchStrategy[ModelSpec]:
    """Nanochat."""
    more = {
        "attention_bias": st.booleans(),
        "hidden_act": st.sampled_from(("relu2", "silu")),
        "final_logit_softcapping": st.sampled_from((None, 15.0, 0.5)),
    }
    return rotary("nanochat", architecture, ROPE_KINDS[:4], **more)


@st.composite
def bert(draw: st.DrawFn, architecture: str, family: str = "bert", pad: int = 0) -> ModelSpec:
    """BERT (or RoBERTa) with each of its heads."""
    heads = draw(st.integers(1, 4))
    options = {
        "vocab_size": draw(st.integers(20, 90)),
        "hidden_size": _width(draw, heads),
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": heads,
        "intermediate_size": draw(_WIDTHS),
        "hidden_act": draw(st.sampled_from(ACTIVATIONS)),
        "max_position_embeddings": CONTEXT,
        "type_vocab_size": draw(st.integers(1, 3)),
        "layer_norm_eps": draw(st.sampled_from((1e-12, 1e-5, 1e-2))),
        "initializer_range": draw(_STDS),
        "pad_token_id": pad,
        "hidden_dropout_prob": draw(_RATES),
        "classifier_dropout": draw(st.sampled_from((None, 0.2))),
    }
    return ModelSpec(family, architecture, options | _labels(draw, architecture), draw(_SEEDS))


@st.composite
def roberta(draw: st.DrawFn, architecture: str) -> ModelSpec:
    """RoBERTa: positions that skip padding."""
    return draw(bert(architecture, "roberta", pad=draw(st.sampled_from((1, 0, 3)))))


@st.composite
def xlm_roberta(draw: st.DrawFn, architecture: str) -> ModelSpec:
    """XLM-R: RoBERTa."""
    return draw(bert(architecture, "xlm-roberta", pad=draw(st.sampled_from((1, 0, 3)))))


@st.composite
def electra(draw: st.DrawFn, architecture: str) -> ModelSpec:
    """ELECTRA: BERT whose embeddings may be narrow, and the head that tells replaced tokens."""
    drawn = draw(bert(architecture, "electra", pad=draw(st.sampled_from((0, 3)))))
    drawn.options["embedding_size"] = draw(st.sampled_from((9, 12, drawn.options["hidden_size"])))
    return drawn


@st.composite
def albert(draw: st.DrawFn, architecture: str) -> ModelSpec:
    """ALBERT: layers that share their weights, all or some in a row."""
    drawn = draw(bert(architecture, "albert", pad=draw(st.sampled_from((0, 3)))))
    groups = draw(st.sampled_from((1, 1, 2)))
    options = {
        "embedding_size": draw(st.sampled_from((9, 12, drawn.options["hidden_size"]))),
        "num_hidden_groups": groups,
        "num_hidden_layers": groups * draw(st.integers(1, 3)),
        "classifier_dropout_prob": draw(_RATES),
    }
    drawn.options.update(options)
    return drawn


@st.composite
def mpnet(draw: st.DrawFn, architecture: str) -> ModelSpec:
    """MPNet: RoBERTa without segments, and a bias of distances."""
    drawn = draw(bert(architecture, "mpnet", pad=1))
    del drawn.options["type_vocab_size"]
    return drawn


@st.composite
def deberta(draw: st.DrawFn, architecture: str) -> ModelSpec:
    """DeBERTa in the form of its third version; the distances of a text may leave the buckets."""
    drawn = draw(bert(architecture, "deberta-v2", pad=draw(st.sampled_from((0, 3)))))
    buckets = draw(st.sampled_from((2, 3, 4, 9, 16)))
    options = {
        "type_vocab_size": draw(st.sampled_from((0, 0, 2))),
        "relative_attention": True,
        "position_biased_input": False,
        "share_att_key": True,
        "pos_att_type": draw(st.sampled_from((["p2c", "c2p"], "c2p|p2c"))),
        "norm_rel_ebd": "layer_norm",
        "position_buckets": buckets,
        "max_relative_positions": draw(st.sampled_from((-1, buckets + 1, 20))),
        "pooler_hidden_act": draw(st.sampled_from(ACTIVATIONS)),
        "cls_dropout": drawn.options.pop("classifier_dropout"),
    }
    drawn.options.update(options)
    return drawn


@st.composite
def modernbert(draw: st.DrawFn, architecture: str) -> ModelSpec:
    """ModernBERT: no norm before the first attention, windows on both sides."""
    heads, layers, (length, parameters) = draw(st.sampled_from((1, 2, 4))), draw(st.integers(1, 4)), draw(rope())
    options = {
        "vocab_size": draw(st.integers(20, 90)),
        "hidden_size": _width(draw, 2 * heads, fewest=2),
        "intermediate_size": draw(_WIDTHS),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_activation": draw(st.sampled_from(ACTIVATIONS)),
        "max_position_embeddings": length,
        "norm_eps": draw(st.sampled_from((1e-5, 1e-3))),
        "norm_bias": draw(st.booleans()),
        "attention_bias": draw(st.booleans()),
        "mlp_bias": draw(st.booleans()),
        "decoder_bias": draw(st.booleans()),
        "classifier_bias": draw(st.booleans()),
        "classifier_activation": draw(st.sampled_from(ACTIVATIONS)),
        "classifier_pooling": draw(st.sampled_from(("cls", "mean"))),
        "classifier_dropout": draw(_RATES),
        "embedding_dropout": draw(_RATES),
        "mlp_dropout": draw(_RATES),
        "local_attention": draw(st.integers(0, 24)),
        "layer_types": _layer_types(draw, layers),
        "rope_parameters": _layered_rope(draw, parameters),
        "tie_word_embeddings": draw(st.booleans()),
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **_labels(draw, architecture),
    }
    return ModelSpec("modernbert", architecture, options, draw(_SEEDS))


@st.composite
def distilbert(draw: st.DrawFn, architecture: str) -> ModelSpec:
    """DistilBERT: BERT without segments and pooler."""
    heads = draw(st.integers(1, 4))
    options = {
        "vocab_size": draw(st.integers(20, 90)),
        "dim": _width(draw, 2 * heads),
        "n_layers": draw(st.integers(1, 3)),
        "n_heads": heads,
        "hidden_dim": draw(_WIDTHS),
        "activation": draw(st.sampled_from(("gelu", "relu"))),
        "max_position_embeddings": CONTEXT,
        "initializer_range": draw(_STDS),
        "sinusoidal_pos_embds": draw(st.booleans()),
        "seq_classif_dropout": draw(_RATES),
    }
    return ModelSpec("distilbert", architecture, options | _labels(draw, architecture), draw(_SEEDS))


@st.composite
def t5(draw: st.DrawFn, architecture: str, family: str = "t5") -> ModelSpec:
    """T5 v1.0 and v1.1: gated or not, tied and scaled or not."""
    buckets = 2 * draw(st.integers(2, 8))
    options = {
        "vocab_size": draw(st.integers(20, 90)),
        "d_model": _width(draw, 1),
        "d_kv": draw(st.integers(2, 9)),
        "d_ff": draw(_WIDTHS),
        "num_layers": draw(st.integers(1, 3)),
        "num_decoder_layers": draw(st.none() | st.integers(1, 3)),
        "num_heads": draw(st.integers(1, 4)),
        "relative_attention_num_buckets": buckets,
        "relative_attention_max_distance": buckets + draw(st.integers(0, 30)),
        "layer_norm_epsilon": draw(st.sampled_from((1e-6, 1e-3))),
        "feed_forward_proj": draw(st.sampled_from(("relu", "gated-gelu", "gated-silu", "gelu"))),
        "dropout_rate": draw(_RATES),
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "classifier_dropout": draw(_RATES),
        **_labels(draw, architecture),
    }
    untied = draw(st.booleans())
    if untied:
        options["tie_word_embeddings"] = False
    return ModelSpec(
        family, architecture, options, draw(_SEEDS), untied and architecture.endswith("ForConditionalGeneration")
    )


def mt5(architecture: str) -> st.SearchStrategy[ModelSpec]:
    """mT5: T5 v1.1 under another name."""
    return t5(architecture, "mt5")


def _columns(draw: st.DrawFn) -> dict[str, Any]:
    """What Marian, BART and Pegasus share: two stacks with sizes of their own."""
    heads = [draw(st.sampled_from((1, 2, 4))) for _ in range(2)]
    return {
        "max_position_embeddings": CONTEXT,
        "d_model": _width(draw, 4),
        "encoder_layers": draw(st.integers(1, 3)),
        "encoder_ffn_dim": draw(_WIDTHS),
        "encoder_attention_heads": heads[0],
        "decoder_layers": draw(st.integers(1, 3)),
        "decoder_ffn_dim": draw(_WIDTHS),
        "decoder_attention_heads": draw(st.sampled_from((heads[0], heads[1]))),
        "activation_function": draw(st.sampled_from(ACTIVATIONS)),
        "scale_embedding": draw(st.booleans()),
        "init_std": draw(_STDS),
        "dropout": draw(_RATES),
    }


@st.composite
def marian(draw: st.DrawFn, architecture: str) -> ModelSpec:
    """Marian: one vocabulary for both sides, or one each; the head tied or not."""
    vocab = draw(st.integers(20, 90))
    shared = draw(st.booleans())
    options = {
        "vocab_size": vocab,
        **_columns(draw),
        "share_encoder_decoder_embeddings": shared,
        "pad_token_id": 19,
        "decoder_start_token_id": 19,
        "eos_token_id": 0,
        "forced_eos_token_id": 0,
    }
    if not shared:
        options |= {
            "decoder_vocab_size": draw(st.integers(20, 90)),
            "tie_word_embeddings": draw(st.booleans()),
        }
    return ModelSpec("marian", architecture, options, draw(_SEEDS))


@st.composite
def bart(draw: st.DrawFn, architecture: str, family: str = "bart") -> ModelSpec:
    """BART and mBART."""
    options = {
        "vocab_size": draw(st.integers(20, 90)),
        **_columns(draw),
        "pad_token_id": 1,
        "eos_token_id": 2,
        "classifier_dropout": draw(_RATES),
        **_labels(draw, architecture),
    }
    return ModelSpec(family, architecture, options, draw(_SEEDS))


@st.composite
def mbart(draw: st.DrawFn, architecture: str) -> ModelSpec:
    """mBART: BART with the norms first."""
    return draw(bart(architecture, "mbart"))


@st.composite
def pegasus(draw: st.DrawFn, architecture: str) -> ModelSpec:
    """Pegasus."""
    options = {"vocab_size": draw(st.integers(20, 90)), **_columns(draw)}
    return ModelSpec("pegasus", architecture, options, draw(_SEEDS))


@st.composite
def m2m_100(draw: st.DrawFn, architecture: str) -> ModelSpec:
    """M2M-100 and NLLB, whose positions skip padding."""
    options = {
        "vocab_size": draw(st.integers(20, 90)),
        **_columns(draw),
        "pad_token_id": draw(st.sampled_from((1, 0, 3))),
        "eos_token_id": 2,
    }
    return ModelSpec("m2m_100", architecture, options, draw(_SEEDS))


FAMILIES: dict[str, Callable[[str], st.SearchStrategy[ModelSpec]]] = {
    "gpt2": gpt2,
    "opt": opt,
    "llama": llama,
    "mistral": mistral,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "gemma": gemma,
    "gemma2": gemma2,
    "gemma3_text": gemma3,
    "olmo2": olmo2,
    "olmo3": olmo3,
    "smollm3": smollm3,
    "mixtral": mixtral,
    "deepseek_v2": deepseek_v2,
    "deepseek_v3": deepseek_v3,
    "qwen3_moe": qwen3_moe,
    "olmoe": olmoe,
    "granitemoe": granitemoe,
    "gpt_oss": gpt_oss,
    "gpt_neox": gpt_neox,
    "phi": phi,
    "phi3": phi3,
    "granite": granite,
    "cohere": cohere,
    "falcon": falcon,
    "nanochat": nanochat,
    "bert": bert,
    "roberta": roberta,
    "xlm-roberta": xlm_roberta,
    "electra": electra,
    "albert": albert,
    "mpnet": mpnet,
    "deberta-v2": deberta,
    "modernbert": modernbert,
    "distilbert": distilbert,
    "t5": t5,
    "mt5": mt5,
    "marian": marian,
    "bart": bart,
    "mbart": mbart,
    "pegasus": pegasus,
    "m2m_100": m2m_100,
}
"""Draws a model of one of the family's architectures."""

_ENCODER_HEADS = ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification")

_CLASSIFIERS = ("ForSequenceClassification", "ForTokenClassification")
_BARE_AND_CLASSIFIERS = ("Model", *_CLASSIFIERS)

ARCHITECTURES = {
    "GPT2LMHeadModel": "gpt2",
    "GPT2Model": "gpt2",
    "OPTForCausalLM": "opt",
    "OPTModel": "opt",
    "OPTForSequenceClassification": "opt",
    "LlamaForCausalLM": "llama",
    "LlamaModel": "llama",
    "MistralForCausalLM": "mistral",
    "MistralModel": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen2Model": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3Model": "qwen3",
    "GemmaForCausalLM": "gemma",
    "GemmaModel": "gemma",
    "Gemma3ForCausalLM": "gemma3_text",
    "Gemma3TextModel": "gemma3_text",
    "Gemma3TextForSequenceClassification": "gemma3_text",
    **{f"DeepseekV2{head}": "deepseek_v2" for head in ("ForCausalLM", "Model", "ForSequenceClassification")},
    **{f"DeepseekV3{head}": "deepseek_v3" for head in ("ForCausalLM", *_BARE_AND_CLASSIFIERS)},
    **{f"Mixtral{head}": "mixtral" for head in ("ForCausalLM", *_BARE_AND_CLASSIFIERS)},
    **{f"GptOss{head}": "gpt_oss" for head in ("ForCausalLM", *_BARE_AND_CLASSIFIERS)},
    **{f"Olmoe{head}": "olmoe" for head in ("ForCausalLM", "Model")},
    **{f"GraniteMoe{head}": "granitemoe" for head in ("ForCausalLM", "Model")},
    **{f"Qwen3Moe{head}": "qwen3_moe" for head in ("ForCausalLM", *_BARE_AND_CLASSIFIERS)},
    "GPTNeoXForCausalLM": "gpt_neox",
    "GPTNeoXModel": "gpt_neox",
    **{f"GPTNeoX{head}": "gpt_neox" for head in _CLASSIFIERS},
    "PhiForCausalLM": "phi",
    "PhiModel": "phi",
    "Phi3ForCausalLM": "phi3",
    "Phi3Model": "phi3",
    "GraniteForCausalLM": "granite",
    "GraniteModel": "granite",
    "CohereForCausalLM": "cohere",
    "CohereModel": "cohere",
    "FalconForCausalLM": "falcon",
    "FalconModel": "falcon",
    "NanoChatForCausalLM": "nanochat",
    "NanoChatModel": "nanochat",
    **{
        f"{name}{head}": name.lower()
        for name in ("Gemma2", "SmolLM3", "Olmo2", "Olmo3")
        for head in ("ForCausalLM", "Model", "ForSequenceClassification")
    },
    **{
        f"{name}{head}": name.lower()
        for name in (
            *("GPT2", "Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "Gemma2", "SmolLM3"),
            *("Phi", "Phi3", "Falcon", "T5", "MT5"),
        )
        for head in _CLASSIFIERS
    },
    "BartForSequenceClassification": "bart",
    **{f"Bert{head}": "bert" for head in _ENCODER_HEADS},
    **{f"Roberta{head}": "roberta" for head in _ENCODER_HEADS},
    **{f"XLMRoberta{head}": "xlm-roberta" for head in _ENCODER_HEADS},
    **{f"Electra{head}": "electra" for head in (*_ENCODER_HEADS, "ForPreTraining")},
    **{f"Albert{head}": "albert" for head in _ENCODER_HEADS},
    **{f"MPNet{head}": "mpnet" for head in _ENCODER_HEADS},
    **{f"DebertaV2{head}": "deberta-v2" for head in _ENCODER_HEADS},
    **{f"ModernBert{head}": "modernbert" for head in _ENCODER_HEADS},
    **{f"DistilBert{head}": "distilbert" for head in _ENCODER_HEADS},
    "T5ForConditionalGeneration": "t5",
    "T5Model": "t5",
    "MT5ForConditionalGeneration": "mt5",
    "MT5Model": "mt5",
    "MarianMTModel": "marian",
    "MarianModel": "marian",
    "BartForConditionalGeneration": "bart",
    "BartModel": "bart",
    "MBartForConditionalGeneration": "mbart",
    "MBartModel": "mbart",
    "PegasusForConditionalGeneration": "pegasus",
    "PegasusModel": "pegasus",
    "M2M100ForConditionalGeneration": "m2m_100",
    "M2M100Model": "m2m_100",
}
"""Every class that can be loaded, and its family."""

_OTHERS = {name: KINDS[family] for name, family in ARCHITECTURES.items() if not name.endswith(_CLASSIFIERS)}
DECODERS = [name for name, kind in _OTHERS.items() if kind == "decoder"]
SEQ2SEQ = [name for name, kind in _OTHERS.items() if kind == "seq2seq"]
"""Bare models and those that write text, which read token by token."""
_LANGUAGE_HEADS = ("LMHeadModel", "ForCausalLM", "MTModel", "ForConditionalGeneration")
GENERATORS = [name for name in DECODERS + SEQ2SEQ if name.endswith(_LANGUAGE_HEADS)]
"""Classes that write text."""
_OLDER = (
    *("llama", "mistral", "qwen2", "qwen3", "gemma2", "olmo2", "smollm3", "mixtral", "qwen3_moe"),
    *("gpt_neox", "phi", "phi3", "granite", "cohere", "falcon"),
    *("gemma2", "olmo2", "smollm3"),
)
ROTARY = [name for name in GENERATORS if ARCHITECTURES[name] in _OLDER]
"""Those with rotary positions, of which older files have the parameters elsewhere."""


@st.composite
def growing(draw: st.DrawFn, architecture: str) -> ModelSpec:
    """A model of this class whose rotary angles depend on the length of the text."""
    if ARCHITECTURES[architecture] in ("gpt_neox", "phi", "phi3"):
        return draw(models(architecture).filter(lambda drawn: drawn.is_dynamic))
    drawn = draw(models(architecture))
    drawn.options["max_position_embeddings"], drawn.options["rope_parameters"] = draw(rope(("dynamic",)))
    return drawn


def models(architecture: str) -> st.SearchStrategy[ModelSpec]:
    """Models of this class."""
    return FAMILIES[ARCHITECTURES[architecture]](architecture)
