"""Hugging Face models of which llama.cpp can compute nearly all that is drawn."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from tests.parity import hf_models
from tests.parity.model_spec import ModelSpec

_NO_BIAS = {"attention_bias": False, "mlp_bias": False}
_DEEPSEEK = {"q_lora_rank": 4, "attention_bias": False, "rms_norm_eps": 1e-6}
EXPRESSIBLE: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": (
        "GPT2LMHeadModel",
        {"activation_function": "gelu_new", "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False},
    ),
    "llama": ("LlamaForCausalLM", {"hidden_act": "silu"}),
    "mistral": ("MistralForCausalLM", {"hidden_act": "silu"}),
    "qwen2": ("Qwen2ForCausalLM", {"hidden_act": "silu"}),
    "qwen3": ("Qwen3ForCausalLM", {"hidden_act": "silu", "attention_bias": False}),
    "gemma": (
        "GemmaForCausalLM",
        {"hidden_act": "gelu_pytorch_tanh", "attention_bias": False, "tie_word_embeddings": True},
    ),
    "gemma2": (
        "Gemma2ForCausalLM",
        {"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False, "tie_word_embeddings": True},
    ),
    "gemma3_text": (
        "Gemma3ForCausalLM",
        {"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False, "final_logit_softcapping": None},
    ),
    "gemma-embedding": (
        "Gemma3TextModel",
        {"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False, "use_bidirectional_attention": True},
    ),
    "modernbert": ("ModernBertModel", {"hidden_activation": "gelu", "norm_bias": False, **_NO_BIAS}),
    "olmo2": ("Olmo2ForCausalLM", {"hidden_act": "silu", "attention_bias": False, "tie_word_embeddings": False}),
    "olmo3": ("Olmo3ForCausalLM", {"hidden_act": "silu", "attention_bias": False, "tie_word_embeddings": False}),
    "smollm3": (
        "SmolLM3ForCausalLM",
        {"hidden_act": "silu", "no_rope_layers": None, "no_rope_layer_interval": 4, **_NO_BIAS},
    ),
    "gpt_neox": ("GPTNeoXForCausalLM", {"hidden_act": "gelu", "tie_word_embeddings": False, "attention_bias": True}),
    "phi": ("PhiForCausalLM", {"hidden_act": "gelu_new", "tie_word_embeddings": False}),
    "phi3": ("Phi3ForCausalLM", {"hidden_act": "silu"}),
    "granite": ("GraniteForCausalLM", {"hidden_act": "silu"}),
    "cohere": ("CohereForCausalLM", {"hidden_act": "silu", "attention_bias": False, "tie_word_embeddings": True}),
    "falcon": (
        "FalconForCausalLM",
        {"activation": "gelu", "bias": False, "parallel_attn": True, "num_ln_in_parallel_attn": 1},
    ),
    "mixtral": ("MixtralForCausalLM", {"hidden_act": "silu"}),
    "qwen3_moe": ("Qwen3MoeForCausalLM", {"hidden_act": "silu", "attention_bias": False, "norm_topk_prob": True}),
    "olmoe": (
        "OlmoeForCausalLM",
        {"hidden_act": "silu", "attention_bias": False, "norm_topk_prob": False, "tie_word_embeddings": False},
    ),
    "gpt_oss": (
        "GptOssForCausalLM",
        {"swiglu_limit": 7.0, "attention_bias": True, "tie_word_embeddings": False, "layer_types": None},
    ),
    "granitemoe": ("GraniteMoeForCausalLM", {"hidden_act": "silu", "attention_bias": False}),
    "deepseek_v2": ("DeepseekV2ForCausalLM", {**_DEEPSEEK, "topk_method": "greedy"}),
    "deepseek_v3": ("DeepseekV3ForCausalLM", _DEEPSEEK),
    "bert": ("BertModel", {"hidden_act": "gelu"}),
    "roberta": ("RobertaModel", {"hidden_act": "gelu"}),
    "xlm-roberta": ("XLMRobertaModel", {"hidden_act": "gelu"}),
    "distilbert": ("DistilBertModel", {"activation": "gelu"}),
    "t5": ("T5ForConditionalGeneration", {"relative_attention_max_distance": 128, "num_decoder_layers": None}),
}
"""Families that llama.cpp knows, and what it hard-codes of them."""


@st.composite
def expressible(draw: st.DrawFn, family: str) -> ModelSpec:
    """A model of which llama.cpp can compute nearly everything that is drawn."""
    architecture, fixed = EXPRESSIBLE[family]
    drawn = draw(hf_models.FAMILIES[hf_models.ARCHITECTURES[architecture]](architecture))
    if family in ("gemma2", "gemma3_text", "gemma-embedding"):
        # llama.cpp bounds every Gemma 2, and its scale is that of the width of a head.
        caps = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0} if family == "gemma2" else {}
        fixed = {**fixed, **caps, "query_pre_attn_scalar": drawn.options["head_dim"]}
    if family in ("gemma3_text", "gemma-embedding", "olmo3", "modernbert"):
        length, rope = draw(hf_models.rope(("default",) if family == "modernbert" else ("default", "linear")))
        local = {"rope_type": "default", "rope_theta": rope["rope_theta"] if family == "olmo3" else 50.0}
        ropes = {"full_attention": rope, "sliding_attention": local}
        fixed = {**fixed, "max_position_embeddings": length, "rope_parameters": ropes}
    if family in ("gemma2", "olmo2", "mixtral", "qwen3_moe", "olmoe", "granitemoe"):
        length, rope = draw(hf_models.rope(("default", "linear")))
        fixed = {**fixed, "max_position_embeddings": length, "rope_parameters": rope}
    if family in ("olmo2", "olmo3") and "head_dim" in drawn.options:
        # llama.cpp computes heads as wide as the model alone.
        fixed = {**fixed, "head_dim": drawn.options["hidden_size"] // drawn.options["num_attention_heads"]}
    if family == "gpt_oss":  # of a single layer's window, GGUF has no word
        fixed = {**fixed, "num_hidden_layers": draw(st.integers(2, 3))}
    if family == "olmoe":
        fixed = {**fixed, "num_key_value_heads": drawn.options["num_attention_heads"]}
    if family == "gemma-embedding":
        types = ["sliding_attention", "full_attention", "sliding_attention"]
        window = draw(st.integers(2, 12))
        return replace(
            drawn,
            options={**drawn.options, **fixed, "num_hidden_layers": 3, "layer_types": types, "sliding_window": window},
        )
    if family.startswith("deepseek"):
        length, rope = draw(hf_models.rope(("default", "yarn")))
        factors = dict.fromkeys(("mscale", "mscale_all_dim"), draw(st.sampled_from((1.0, 0.7))))
        rope = {**rope, **factors} if rope["rope_type"] == "yarn" else rope
        fixed = {**fixed, "max_position_embeddings": length, "rope_parameters": rope}
    if family == "t5":
        fixed = {**fixed, "feed_forward_proj": draw(st.sampled_from(("relu", "gated-gelu")))}
    if "layer_types" in drawn.options and draw(st.booleans()):
        fixed = {**fixed, "layer_types": None}
    return replace(drawn, options={**drawn.options, **fixed})
