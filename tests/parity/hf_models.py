"""The oracle: tiny Hugging Face models of every family, drawn by hypothesis.

One function a family, or one for several: what their published checkpoints vary, and a little more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from hypothesis import strategies as st

from tests.parity.model_spec import CONTEXT, KINDS, ModelSpec

_ACTIVATIONS = st.sampled_from(("gelu", "gelu_new", "relu", "silu"))
_EPSILONS = st.sampled_from((1e-5, 1e-3))
_HEADS = st.integers(1, 4)
_HEAD_DIMS = st.sampled_from((4, 6, 10))
_LAYERS = st.integers(1, 3)
_RATES = st.sampled_from((0.0, 0.1))
_SEEDS = st.integers(0, 2**20)
_STDS = st.sampled_from((0.02, 0.05))
_WIDTHS = st.integers(4, 40)
_WINDOWS = st.integers(1, 12)

_OPTIONS: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "decoder_vocab_size"), st.integers(20, 90)),
    **dict.fromkeys(("n_layer", "n_layers", "num_layers", "num_hidden_layers"), _LAYERS),
    **dict.fromkeys(("encoder_layers", "decoder_layers"), _LAYERS),
    **dict.fromkeys(("intermediate_size", "moe_intermediate_size", "ffn_dim", "hidden_dim", "d_ff"), _WIDTHS),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), _WIDTHS),
    **dict.fromkeys(("n_inner", "ffn_hidden_size"), st.none() | _WIDTHS),
    **dict.fromkeys(("activation_function", "hidden_act", "hidden_activation", "activation"), _ACTIVATIONS),
    "classifier_activation": _ACTIVATIONS,
    **dict.fromkeys(("layer_norm_epsilon", "layer_norm_eps", "norm_eps"), _EPSILONS),
    "rms_norm_eps": st.sampled_from((1e-6, 1e-5, 1e-3)),
    **dict.fromkeys(("resid_pdrop", "embd_pdrop", "dropout", "hidden_dropout", "hidden_dropout_prob"), _RATES),
    **dict.fromkeys(("dropout_rate", "classifier_dropout", "classifier_dropout_prob"), _RATES),
    **dict.fromkeys(("seq_classif_dropout", "embedding_dropout", "mlp_dropout"), _RATES),
    **dict.fromkeys(("initializer_range", "init_std"), _STDS),
    **dict.fromkeys(("n_positions", "max_position_embeddings"), CONTEXT),
    "head_dim": _HEAD_DIMS,
    "sliding_window": _WINDOWS,
    "max_window_layers": st.integers(0, 3),
    "num_local_experts": st.integers(2, 5),
    "num_experts_per_tok": st.integers(1, 2),
    "router_aux_loss_coef": st.sampled_from((0.001, 0.02)),
    "pad_token_id": 3,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""Fields of config.json that several families have: their value, or what is drawn; the others are switches."""


def _options(draw: st.DrawFn, names: str, **others: Any) -> dict[str, Any]:
    """Draw the options of these names, in this order; `others` have values or strategies of their own."""
    values = {name: others.get(name, _OPTIONS.get(name, st.booleans())) for name in (*names.split(), *others)}
    return {name: draw(value) if isinstance(value, st.SearchStrategy) else value for name, value in values.items()}


def _drawn(draw: st.DrawFn, family: str, architecture: str, names: str, **others: Any) -> ModelSpec:
    """A model with these options and the labels of its head."""
    options = _options(draw, names, **others) | _labels(draw, architecture)
    return ModelSpec(family, architecture, options, draw(_SEEDS))


def _divisors(number: int) -> st.SearchStrategy[int]:
    return st.sampled_from([n for n in range(1, number + 1) if number % n == 0])


def _width(multiple: int, fewest: int = 1) -> st.SearchStrategy[int]:
    """A width of 8 to 36 or so: over fewer numbers a norm magnifies rounding without bounds."""
    factors = st.integers(max(fewest, -(-8 // multiple)), max(fewest, -(-36 // multiple)))
    return factors.map(lambda factor: multiple * factor)


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
    heads = draw(_HEADS)
    names = """
        n_layer vocab_size n_positions n_embd n_inner activation_function layer_norm_epsilon initializer_range
        scale_attn_weights scale_attn_by_inverse_layer_idx reorder_and_upcast_attn tie_word_embeddings resid_pdrop
        bos_token_id eos_token_id
    """
    pad = {"pad_token_id": 3} if "SequenceClassification" in architecture else {}
    return _drawn(draw, "gpt2", architecture, names, n_embd=_width(heads), n_head=heads, **pad)


@st.composite
def opt(draw: st.DrawFn, architecture: str) -> ModelSpec:
    """OPT."""
    heads = draw(_HEADS)
    names = """
        vocab_size hidden_size num_hidden_layers ffn_dim max_position_embeddings activation_function init_std dropout
        tie_word_embeddings
    """
    sizes = {"hidden_size": _width(heads), "num_attention_heads": heads}
    return _drawn(draw, "opt", architecture, names, **sizes, pad_token_id=1)


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


_ROTARY = """
    vocab_size hidden_size intermediate_size num_hidden_layers num_key_value_heads hidden_act rms_norm_eps
    tie_word_embeddings initializer_range pad_token_id eos_token_id bos_token_id
"""


@st.composite
def rotary(
    draw: st.DrawFn, family: str, architecture: str, names: str = "", kinds: tuple[str, ...] = ROPE_KINDS, **others: Any
) -> ModelSpec:
    """What LLaMA and its descendants share, and the options of these names, see `_options`."""
    heads = draw(st.sampled_from((1, 2, 4, 6)))
    length, parameters = draw(rope(kinds))
    shared: dict[str, Any] = {
        "hidden_size": _width(2 * heads, fewest=2),
        "num_attention_heads": heads,
        "num_key_value_heads": _divisors(heads),
        "hidden_act": st.sampled_from(("silu", "gelu", "gelu_pytorch_tanh", "relu")),
        "max_position_embeddings": length,
        "rope_parameters": parameters,
        # Classifiers of texts find the last token by it.
        "pad_token_id": st.sampled_from((0, 3) if "SequenceClassification" in architecture else (None, 0, 3)),
        "eos_token_id": st.sampled_from((2, [2, 4])),
    }
    options = _options(draw, _ROTARY, **shared) | _labels(draw, architecture) | _options(draw, names, **others)
    if options.get("head_dim", 0) is None:
        del options["head_dim"]
    return ModelSpec(family, architecture, options, draw(_SEEDS))


_MAYBE_HEAD_DIMS = st.sampled_from((None, 4, 6, 10))
_MAYBE_WINDOWS = st.none() | _WINDOWS


def llama(architecture: str) -> st.SearchStrategy[ModelSpec]:
    """LLaMA 1 to 3, SmolLM."""
    return rotary("llama", architecture, "attention_bias mlp_bias head_dim", head_dim=_MAYBE_HEAD_DIMS)


def mistral(architecture: str) -> st.SearchStrategy[ModelSpec]:
    """Mistral, whose window is smaller than most texts here."""
    return rotary("mistral", architecture, sliding_window=_MAYBE_WINDOWS, head_dim=_MAYBE_HEAD_DIMS)


def qwen2(architecture: str) -> st.SearchStrategy[ModelSpec]:
    """Qwen2 and 2.5, with a window from some layer on."""
    return rotary("qwen2", architecture, "use_sliding_window sliding_window max_window_layers")


def qwen3(architecture: str) -> st.SearchStrategy[ModelSpec]:
    """Qwen3: norms on queries and keys, and a head width of its own."""
    names = "use_sliding_window sliding_window max_window_layers head_dim attention_bias"
    return rotary("qwen3", architecture, names)


def gemma(architecture: str) -> st.SearchStrategy[ModelSpec]:
    """Gemma."""
    return rotary("gemma", architecture, "head_dim attention_bias")


_LAYER_TYPES: tuple[str, ...] = ("full_attention", "sliding_attention")


def _layer_types(layers: int) -> st.SearchStrategy[list[str] | None]:
    """The type of each layer, in any order, or the family's own."""
    return st.none() | st.lists(st.sampled_from(_LAYER_TYPES), min_size=layers, max_size=layers)


@st.composite
def _layered_rope(draw: st.DrawFn, parameters: dict[str, Any]) -> dict[str, Any]:
    """Rotary parameters of layers with and without a window."""
    others: dict[str, Any] = {"rope_type": "default", "rope_theta": draw(st.sampled_from((50.0, 10_000.0)))}
    if draw(st.booleans()):
        others |= {"rope_type": "linear", "factor": 2.0}
    return dict(zip(_LAYER_TYPES, (parameters, others), strict=True))


@st.composite
def gemma2(draw: st.DrawFn, architecture: str, family: str = "gemma2") -> ModelSpec:
    """Gemma 2: windows in some layers, norms around the branches, bounded scores and logits."""
    drawn = draw(rotary(family, architecture, "head_dim attention_bias"))
    more = _options(
        draw,
        "",
        query_pre_attn_scalar=st.sampled_from((4, 6, 7, 144)),
        sliding_window=_WINDOWS,
        layer_types=_layer_types(drawn.options["num_hidden_layers"]),
        attn_logit_softcapping=st.sampled_from((None, 0.5, 50.0)),
        final_logit_softcapping=st.sampled_from((None, 2.0, 30.0)),
    )
    return replace(drawn, options={**drawn.options, "hidden_activation": drawn.options["hidden_act"], **more})


@st.composite
def gemma3(draw: st.DrawFn, architecture: str) -> ModelSpec:
    """Gemma 3: norms on queries and keys, positions of their own in the layers with a window."""
    drawn = draw(gemma2(architecture, "gemma3_text"))
    options = {name: value for name, value in drawn.options.items() if name != "attn_logit_softcapping"}
    options["rope_parameters"] = draw(_layered_rope(options["rope_parameters"]))
    return replace(drawn, options=options)


def olmo2(architecture: str) -> st.SearchStrategy[ModelSpec]:
    """OLMo 2: norms on the branches, and on all queries and keys together."""
    return rotary("olmo2", architecture, "attention_bias")


@st.composite
def olmo3(draw: st.DrawFn, architecture: str) -> ModelSpec:
    """OLMo 3: OLMo 2 with windows, and scaled positions in the layers without."""
    drawn = draw(rotary("olmo3", architecture, "attention_bias sliding_window"))
    options: dict[str, Any] = {**drawn.options, "layer_types": draw(_layer_types(drawn.options["num_hidden_layers"]))}
    options["rope_parameters"] = draw(_layered_rope(options["rope_parameters"]))
    return replace(drawn, options=options)


@st.composite
def smollm3(draw: st.DrawFn, architecture: str) -> ModelSpec:
    """SmolLM3: layers without positions, and now and then with a window."""
    names = "attention_bias mlp_bias use_sliding_window sliding_window"
    drawn = draw(rotary("smollm3", architecture, names, no_rope_layer_interval=_LAYERS))
    layers = drawn.options["num_hidden_layers"]
    flags = draw(st.none() | st.lists(st.integers(0, 1), min_size=layers, max_size=layers))
    return replace(drawn, options={**drawn.options, "no_rope_layers": flags})


_EXPERTS = "num_local_experts num_experts_per_tok router_aux_loss_coef"


def mixtral(architecture: str) -> st.SearchStrategy[ModelSpec]:
    """Mixtral: Mistral with experts."""
    # Without a width of heads of its own, transformers has only rotary positions that aren't scaled.
    names = f"sliding_window head_dim {_EXPERTS}"
    return rotary("mixtral", architecture, names, sliding_window=_MAYBE_WINDOWS)


def olmoe(architecture: str) -> st.SearchStrategy[ModelSpec]:
    """OLMoE: norms over the whole width of queries and of keys."""
    return rotary("olmoe", architecture, f"attention_bias norm_topk_prob {_EXPERTS}")


def qwen3_moe(architecture: str) -> st.SearchStrategy[ModelSpec]:
    """Qwen3-MoE: a window in all layers or none, experts whose weights sum to 1 or not."""
    names = "use_sliding_window sliding_window head_dim attention_bias moe_intermediate_size norm_topk_prob"
    return rotary("qwen3_moe", architecture, f"{names} {_EXPERTS}")


@st.composite
def gpt_oss(draw: st.DrawFn, architecture: str) -> ModelSpec:
    """gpt-oss: sinks, experts with biases, a gate whose bound is often reached, windows in some layers."""
    names = f"sliding_window head_dim attention_bias swiglu_limit {_EXPERTS}"
    drawn = draw(rotary("gpt_oss", architecture, names, swiglu_limit=st.sampled_from((0.3, 1.0, 7.0))))
    types = draw(_layer_types(drawn.options["num_hidden_layers"]))
    return replace(drawn, options={**drawn.options, "layer_types": types})


@st.composite
def deepseek(draw: st.DrawFn, architecture: str, family: str, choice: str, **others: Any) -> ModelSpec:
    """DeepSeek V2 and V3: queries with a latent or without, groups of experts, dense layers, YaRN's second factor."""
    layers, groups, size = draw(_LAYERS), draw(st.integers(1, 3)), draw(st.integers(2, 3))
    heads, used_groups = draw(st.integers(1, 3)), draw(st.integers(1, groups))
    length, parameters = draw(rope(("default", "linear", "llama3", "yarn")))
    if parameters["rope_type"] == "yarn":
        parameters |= _options(
            draw, "", mscale=st.sampled_from((1.0, 0.707)), mscale_all_dim=st.sampled_from((1.0, 0.7))
        )
    names = """
        vocab_size hidden_size intermediate_size moe_intermediate_size q_lora_rank kv_lora_rank qk_rope_head_dim
        qk_nope_head_dim v_head_dim attention_bias num_experts_per_tok n_shared_experts routed_scaling_factor
        first_k_dense_replace rms_norm_eps tie_word_embeddings initializer_range pad_token_id bos_token_id eos_token_id
    """
    sizes: dict[str, Any] = {
        "hidden_size": _width(heads, fewest=2),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "q_lora_rank": st.none() | st.integers(3, 9),
        # transformers reads pairs of a V2 as complex numbers, for which what is before them has to be even.
        "kv_lora_rank": st.sampled_from((4, 6, 8)),
        **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim"), st.sampled_from((2, 4, 6))),
        "v_head_dim": st.integers(1, 6),
        "n_routed_experts": groups * size,
        "num_experts_per_tok": st.integers(1, used_groups * size),
        "n_shared_experts": st.integers(1, 2),
        "routed_scaling_factor": st.sampled_from((1.0, 2.5)),
        "first_k_dense_replace": st.integers(0, layers),
        "n_group": groups,
        "topk_group": used_groups,
        "max_position_embeddings": length,
        "rope_parameters": parameters,
        "rms_norm_eps": st.sampled_from((1e-6, 1e-3)),
        "pad_token_id": st.sampled_from((0, 3) if "SequenceClassification" in architecture else (None, 0, 3)),
    }
    options = _options(draw, names, **sizes) | _labels(draw, architecture) | _options(draw, choice, **others)
    return ModelSpec(family, architecture, options, draw(_SEEDS))


@st.composite
def _partial_rope(draw: st.DrawFn, head_dim: int, kinds: tuple[str, ...] = ROPE_KINDS) -> tuple[int, dict[str, Any]]:
    """Rotary parameters for some of the pairs of a head, and the number of positions to go with them."""
    length, parameters = draw(rope(kinds))
    fewest = 2 if parameters["rope_type"] == "dynamic" else 1  # of one pair alone Hugging Face divides by 0
    rotated = st.integers(fewest, head_dim // 2).map(lambda pairs: 2 * pairs / head_dim)
    fractions = rotated.filter(lambda part: int(head_dim * part) % 2 == 0)
    return length, {**parameters, "partial_rotary_factor": draw(fractions)}


@st.composite
def partly_rotary(
    draw: st.DrawFn, architecture: str, family: str, heads: st.SearchStrategy[int], names: str
) -> ModelSpec:
    """GPT-NeoX and Pythia, Phi-1, 1.5 and 2: the first pairs of each head turn."""
    count = draw(heads)
    width = draw(_width(2 * count, fewest=2))
    length, parameters = draw(_partial_rope(width // count))
    sizes = {"hidden_size": width, "num_attention_heads": count, "num_key_value_heads": _divisors(count)}
    if family == "gpt_neox":
        del sizes["num_key_value_heads"]
    positions = {"max_position_embeddings": length, "rope_parameters": parameters}
    return _drawn(draw, family, architecture, f"vocab_size num_hidden_layers {names}", **sizes, **positions)


_NEOX = """
    intermediate_size hidden_act hidden_dropout classifier_dropout layer_norm_eps use_parallel_residual attention_bias
    tie_word_embeddings initializer_range pad_token_id bos_token_id eos_token_id
"""
_PHI = """
    num_key_value_heads intermediate_size hidden_act resid_pdrop embd_pdrop layer_norm_eps tie_word_embeddings
    initializer_range pad_token_id bos_token_id eos_token_id
"""


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
    options |= {"max_position_embeddings": length, "rope_parameters": parameters}
    options |= _options(draw, "sliding_window resid_pdrop pad_token_id", sliding_window=_MAYBE_WINDOWS)
    return drawn


def granite(architecture: str, family: str = "granite", names: str = "attention_bias mlp_bias") -> Any:
    """Granite: LLaMA with four multipliers."""
    return rotary(
        family,
        architecture,
        names,
        attention_multiplier=st.sampled_from((1.0, 0.5, 0.015625)),
        embedding_multiplier=st.sampled_from((1.0, 12.0)),
        residual_multiplier=st.sampled_from((1.0, 0.22)),
        logits_scaling=st.sampled_from((1.0, 8.0, 13.0)),
    )


def cohere(architecture: str) -> st.SearchStrategy[ModelSpec]:
    """Command R."""
    names = "attention_bias layer_norm_eps"
    return rotary("cohere", architecture, names, logit_scale=st.sampled_from((1.0, 0.0625, 0.8)))


@st.composite
def falcon(draw: st.DrawFn, architecture: str) -> ModelSpec:
    """Falcon 7B, with a key and a value for each head as well; 40B and 11B, with groups."""
    heads = draw(st.sampled_from((1, 2, 4)))
    length, parameters = draw(rope())
    grouped = draw(st.booleans())
    names = """
        vocab_size hidden_size num_hidden_layers ffn_hidden_size activation hidden_dropout layer_norm_epsilon
        parallel_attn multi_query bias tie_word_embeddings initializer_range pad_token_id bos_token_id eos_token_id
    """
    sizes: dict[str, Any] = {
        "hidden_size": _width(2 * heads, fewest=2),
        "num_attention_heads": heads,
        "max_position_embeddings": length,
        "rope_parameters": parameters,
        "new_decoder_architecture": grouped,
        "parallel_attn": True if grouped else st.booleans(),
    }
    groups = {"num_kv_heads": _divisors(heads), "num_ln_in_parallel_attn": st.sampled_from((None, 1, 2))}
    options = _options(draw, names, **sizes) | _labels(draw, architecture)
    options |= _options(draw, "", **groups) if grouped else {}
    return ModelSpec("falcon", architecture, options, draw(_SEEDS))


def nanochat(architecture: str) -> st.SearchStrategy[ModelSpec]:
    """Nanochat."""
    more = {
        "hidden_act": st.sampled_from(("relu2", "silu")),
        "final_logit_softcapping": st.sampled_from((None, 15.0, 2.0)),
    }
    return rotary("nanochat", architecture, "attention_bias", ROPE_KINDS[:4], **more)


@st.composite
def bert(draw: st.DrawFn, architecture: str, family: str = "bert", pads: tuple[int, ...] = (0,)) -> ModelSpec:
    """BERT and RoBERTa, whose positions skip padding, with each of their heads."""
    pad, heads = draw(st.sampled_from(pads)), draw(_HEADS)
    names = """
        vocab_size hidden_size num_hidden_layers intermediate_size hidden_act max_position_embeddings type_vocab_size
        layer_norm_eps initializer_range hidden_dropout_prob classifier_dropout
    """
    more = {
        "hidden_size": _width(heads),
        "num_attention_heads": heads,
        "type_vocab_size": st.integers(1, 3),
        "layer_norm_eps": st.sampled_from((1e-12, 1e-5, 1e-2)),
        "pad_token_id": pad,
        "classifier_dropout": st.sampled_from((None, 0.2)),
    }
    return _drawn(draw, family, architecture, names, **more)


@st.composite
def electra(draw: st.DrawFn, architecture: str) -> ModelSpec:
    """ELECTRA: BERT whose embeddings may be narrow, and the head that tells replaced tokens."""
    drawn = draw(bert(architecture, "electra", pads=(0, 3)))
    drawn.options["embedding_size"] = draw(st.sampled_from((9, 12, drawn.options["hidden_size"])))
    return drawn


@st.composite
def albert(draw: st.DrawFn, architecture: str) -> ModelSpec:
    """ALBERT: layers that share their weights, all or some in a row."""
    drawn = draw(bert(architecture, "albert", pads=(0, 3)))
    groups = draw(st.sampled_from((1, 1, 2)))
    more = _options(
        draw,
        "embedding_size num_hidden_layers classifier_dropout_prob",
        embedding_size=st.sampled_from((9, 12, drawn.options["hidden_size"])),
        num_hidden_groups=groups,
        num_hidden_layers=_LAYERS.map(lambda layers: groups * layers),
    )
    drawn.options.update(more)
    return drawn


@st.composite
def mpnet(draw: st.DrawFn, architecture: str) -> ModelSpec:
    """MPNet: RoBERTa without segments, and a bias of distances."""
    drawn = draw(bert(architecture, "mpnet", pads=(1,)))
    del drawn.options["type_vocab_size"]
    return drawn


@st.composite
def deberta(draw: st.DrawFn, architecture: str) -> ModelSpec:
    """DeBERTa in the form of its third version; the distances of a text may leave the buckets."""
    drawn = draw(bert(architecture, "deberta-v2", pads=(0, 3)))
    buckets = draw(st.sampled_from((2, 3, 4, 9, 16)))
    more = _options(
        draw,
        "type_vocab_size pos_att_type max_relative_positions pooler_hidden_act",
        type_vocab_size=st.sampled_from((0, 0, 2)),
        relative_attention=True,
        position_biased_input=False,
        share_att_key=True,
        pos_att_type=st.sampled_from((["p2c", "c2p"], "c2p|p2c")),
        norm_rel_ebd="layer_norm",
        position_buckets=buckets,
        max_relative_positions=st.sampled_from((-1, buckets + 1, 20)),
        pooler_hidden_act=_ACTIVATIONS,
        cls_dropout=drawn.options.pop("classifier_dropout"),
    )
    drawn.options.update(more)
    return drawn


@st.composite
def modernbert(draw: st.DrawFn, architecture: str) -> ModelSpec:
    """ModernBERT: no norm before the first attention, windows on both sides."""
    heads, layers, (length, parameters) = draw(st.sampled_from((1, 2, 4))), draw(st.integers(1, 4)), draw(rope())
    names = """
        vocab_size hidden_size intermediate_size hidden_activation norm_eps norm_bias attention_bias mlp_bias
        decoder_bias classifier_bias classifier_activation classifier_pooling classifier_dropout embedding_dropout
        mlp_dropout local_attention layer_types rope_parameters tie_word_embeddings bos_token_id eos_token_id
    """
    more = {
        "hidden_size": _width(2 * heads, fewest=2),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": length,
        "classifier_pooling": st.sampled_from(("cls", "mean")),
        "local_attention": st.integers(0, 24),
        "layer_types": _layer_types(layers),
        "rope_parameters": _layered_rope(parameters),
        "pad_token_id": 0,
    }
    return _drawn(draw, "modernbert", architecture, names, **more)


@st.composite
def distilbert(draw: st.DrawFn, architecture: str) -> ModelSpec:
    """DistilBERT: BERT without segments and pooler."""
    heads = draw(_HEADS)
    names = """
        vocab_size dim n_layers hidden_dim activation max_position_embeddings initializer_range sinusoidal_pos_embds
        seq_classif_dropout
    """
    more = {"dim": _width(2 * heads), "n_heads": heads, "activation": st.sampled_from(("gelu", "relu"))}
    return _drawn(draw, "distilbert", architecture, names, **more)


@st.composite
def t5(draw: st.DrawFn, architecture: str, family: str = "t5") -> ModelSpec:
    """T5 v1.0 and v1.1, which is mT5: gated or not, tied and scaled or not."""
    buckets = 2 * draw(st.integers(2, 8))
    names = """
        vocab_size d_model d_kv d_ff num_layers num_decoder_layers num_heads relative_attention_max_distance
        layer_norm_epsilon feed_forward_proj dropout_rate classifier_dropout
    """
    more = {
        "d_model": _width(1),
        "d_kv": st.integers(2, 9),
        "num_decoder_layers": st.none() | _LAYERS,
        "num_heads": _HEADS,
        "relative_attention_num_buckets": buckets,
        "relative_attention_max_distance": st.integers(0, 30).map(lambda more: buckets + more),
        "layer_norm_epsilon": st.sampled_from((1e-6, 1e-3)),
        "feed_forward_proj": st.sampled_from(("relu", "gated-gelu", "gated-silu", "gelu")),
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }
    options = _options(draw, names, **more) | _labels(draw, architecture)
    untied = draw(st.booleans())
    if untied:
        options["tie_word_embeddings"] = False
    own_head = untied and architecture.endswith("ForConditionalGeneration")
    return ModelSpec(family, architecture, options, draw(_SEEDS), own_head)


def _columns(draw: st.DrawFn, names: str = "vocab_size") -> dict[str, Any]:
    """What Marian, BART, Pegasus and M2M-100 share: two stacks with sizes of their own."""
    options = _options(draw, names)
    heads = [draw(st.sampled_from((1, 2, 4))) for _ in range(2)]
    names = """
        max_position_embeddings d_model encoder_layers encoder_ffn_dim decoder_layers decoder_ffn_dim
        decoder_attention_heads activation_function scale_embedding init_std dropout
    """
    sizes = {"encoder_attention_heads": heads[0], "decoder_attention_heads": st.sampled_from(heads)}
    return options | _options(draw, names, d_model=_width(4), **sizes)


@st.composite
def marian(draw: st.DrawFn, architecture: str) -> ModelSpec:
    """Marian: one vocabulary for both sides, or one each; the head tied or not."""
    options = _columns(draw, "vocab_size share_encoder_decoder_embeddings")
    options |= dict.fromkeys(("pad_token_id", "decoder_start_token_id"), 19)
    options |= dict.fromkeys(("eos_token_id", "forced_eos_token_id"), 0)
    if not options["share_encoder_decoder_embeddings"]:
        options |= _options(draw, "decoder_vocab_size tie_word_embeddings")
    return ModelSpec("marian", architecture, options, draw(_SEEDS))


@st.composite
def bart(draw: st.DrawFn, architecture: str, family: str = "bart") -> ModelSpec:
    """BART, and mBART, which has the norms first."""
    options = _columns(draw) | _options(draw, "classifier_dropout eos_token_id", pad_token_id=1)
    return ModelSpec(family, architecture, options | _labels(draw, architecture), draw(_SEEDS))


@st.composite
def pegasus(draw: st.DrawFn, architecture: str) -> ModelSpec:
    """Pegasus."""
    return ModelSpec("pegasus", architecture, _columns(draw), draw(_SEEDS))


@st.composite
def m2m_100(draw: st.DrawFn, architecture: str) -> ModelSpec:
    """M2M-100 and NLLB, whose positions skip padding."""
    options = _columns(draw) | _options(draw, "eos_token_id", pad_token_id=st.sampled_from((1, 0, 3)))
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
    # V2-Lite has no latent of queries.
    "deepseek_v2": partial(
        deepseek,
        family="deepseek_v2",
        choice="topk_method",
        topk_method=st.sampled_from(("greedy", "group_limited_greedy")),
    ),
    "deepseek_v3": partial(deepseek, family="deepseek_v3", choice="norm_topk_prob"),
    "qwen3_moe": qwen3_moe,
    "olmoe": olmoe,
    # Its experts are in one tensor for the matrices of all.
    "granitemoe": partial(granite, family="granitemoe", names=f"{_EXPERTS} attention_bias"),
    "gpt_oss": gpt_oss,
    "gpt_neox": partial(partly_rotary, family="gpt_neox", heads=_HEADS, names=_NEOX),
    "phi": partial(partly_rotary, family="phi", heads=st.sampled_from((1, 2, 4)), names=_PHI),
    "phi3": phi3,
    "granite": granite,
    "cohere": cohere,
    "falcon": falcon,
    "nanochat": nanochat,
    "bert": bert,
    "roberta": partial(bert, family="roberta", pads=(1, 0, 3)),
    "xlm-roberta": partial(bert, family="xlm-roberta", pads=(1, 0, 3)),
    "electra": electra,
    "albert": albert,
    "mpnet": mpnet,
    "deberta-v2": deberta,
    "modernbert": modernbert,
    "distilbert": distilbert,
    "t5": t5,
    "mt5": partial(t5, family="mt5"),
    "marian": marian,
    "bart": bart,
    "mbart": partial(bart, family="mbart"),
    "pegasus": pegasus,
    "m2m_100": m2m_100,
}
"""Draws a model of one of the family's architectures."""

_CLASSIFIERS = ("ForSequenceClassification", "ForTokenClassification")
_CAUSAL = ("ForCausalLM", "Model")
_MASKED = ("Model", "ForMaskedLM", *_CLASSIFIERS)
_REWRITING = ("ForConditionalGeneration", "Model")

ARCHITECTURES = {
    f"{name}{head}": family
    for family, name, heads in (
        ("gpt2", "GPT2", ("LMHeadModel", "Model", *_CLASSIFIERS)),
        ("opt", "OPT", (*_CAUSAL, "ForSequenceClassification")),
        ("llama", "Llama", (*_CAUSAL, *_CLASSIFIERS)),
        ("mistral", "Mistral", (*_CAUSAL, *_CLASSIFIERS)),
        ("qwen2", "Qwen2", (*_CAUSAL, *_CLASSIFIERS)),
        ("qwen3", "Qwen3", (*_CAUSAL, *_CLASSIFIERS)),
        ("gemma", "Gemma", (*_CAUSAL, *_CLASSIFIERS)),
        ("gemma2", "Gemma2", (*_CAUSAL, *_CLASSIFIERS)),
        ("gemma3_text", "Gemma3", ("ForCausalLM", "TextModel", "TextForSequenceClassification")),
        ("olmo2", "Olmo2", (*_CAUSAL, "ForSequenceClassification")),
        ("olmo3", "Olmo3", (*_CAUSAL, "ForSequenceClassification")),
        ("smollm3", "SmolLM3", (*_CAUSAL, *_CLASSIFIERS)),
        ("mixtral", "Mixtral", (*_CAUSAL, *_CLASSIFIERS)),
        ("deepseek_v2", "DeepseekV2", (*_CAUSAL, "ForSequenceClassification")),
        ("deepseek_v3", "DeepseekV3", (*_CAUSAL, *_CLASSIFIERS)),
        ("qwen3_moe", "Qwen3Moe", (*_CAUSAL, *_CLASSIFIERS)),
        ("olmoe", "Olmoe", _CAUSAL),
        ("granitemoe", "GraniteMoe", _CAUSAL),
        ("gpt_oss", "GptOss", (*_CAUSAL, *_CLASSIFIERS)),
        ("gpt_neox", "GPTNeoX", (*_CAUSAL, *_CLASSIFIERS)),
        ("phi", "Phi", (*_CAUSAL, *_CLASSIFIERS)),
        ("phi3", "Phi3", (*_CAUSAL, *_CLASSIFIERS)),
        ("granite", "Granite", _CAUSAL),
        ("cohere", "Cohere", _CAUSAL),
        ("falcon", "Falcon", (*_CAUSAL, *_CLASSIFIERS)),
        ("nanochat", "NanoChat", _CAUSAL),
        ("bert", "Bert", _MASKED),
        ("roberta", "Roberta", _MASKED),
        ("xlm-roberta", "XLMRoberta", _MASKED),
        ("electra", "Electra", (*_MASKED, "ForPreTraining")),
        ("albert", "Albert", _MASKED),
        ("mpnet", "MPNet", _MASKED),
        ("deberta-v2", "DebertaV2", _MASKED),
        ("modernbert", "ModernBert", _MASKED),
        ("distilbert", "DistilBert", _MASKED),
        ("t5", "T5", (*_REWRITING, *_CLASSIFIERS)),
        ("mt5", "MT5", (*_REWRITING, *_CLASSIFIERS)),
        ("marian", "Marian", ("MTModel", "Model")),
        ("bart", "Bart", (*_REWRITING, "ForSequenceClassification")),
        ("mbart", "MBart", _REWRITING),
        ("pegasus", "Pegasus", _REWRITING),
        ("m2m_100", "M2M100", _REWRITING),
    )
    for head in heads
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
