"""Hugging Face models of which llama.cpp can compute nearly all that is drawn."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from tests.parity import hf_models
from tests.parity.model_spec import ModelSpec

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
    drawn = draw(hf_models.FAMILIES[family](architecture))
    if family == "t5":
        fixed = {**fixed, "feed_forward_proj": draw(st.sampled_from(("relu", "gated-gelu")))}
    return replace(drawn, options={**drawn.options, **fixed})
