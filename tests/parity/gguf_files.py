"""Hugging Face models as GGUF files: gguf-py's names for their weights, and its writer.

What a converter has to know beside the names is written out here from what llama.cpp computes, independently of the
tables under test.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from hypothesis import strategies as st
from transformers import PreTrainedModel

from tests.checkpoint.gguf import sample_files
from tests.parity import hf_models
from tests.parity.model_spec import ModelSpec

_ARCHITECTURES = {
    "GPT2LMHeadModel": "gpt2",
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "GemmaForCausalLM": "gemma",
    "BertModel": "bert",
    "DistilBertModel": "bert",
    "T5ForConditionalGeneration": "t5",
}
ARCHITECTURES = tuple(_ARCHITECTURES)


@st.composite
def models(draw: st.DrawFn, architecture: str) -> ModelSpec:
    """A drawn model that GGUF can express."""
    drawn: ModelSpec = draw(hf_models.models(architecture))
    options = drawn.options
    match drawn.family:
        case "gpt2":
            options |= {"activation_function": "gelu_new", "scale_attn_weights": True}
            options |= {"scale_attn_by_inverse_layer_idx": False}
        case "bert":
            options |= {"hidden_act": "gelu"}
        case "distilbert":
            options |= {"activation": "gelu"}
        case "t5":
            options |= {"relative_attention_max_distance": 128}
            options |= {"feed_forward_proj": draw(st.sampled_from(("relu", "gated-gelu")))}
        case _:
            options |= {"hidden_act": "silu"}
            if drawn.family == "gemma":
                options |= {"hidden_act": "gelu_pytorch_tanh", "attention_bias": False, "tie_word_embeddings": True}
            elif drawn.family == "mistral":
                options |= {"sliding_window": None}
            else:
                options |= {"use_sliding_window": False}
            # llama.cpp's Gemma has no tensor of factors, which LLaMA 3's scaling is in a file.
            kinds = ("default", "linear", *(() if drawn.family == "gemma" else ("llama3",)), "yarn")
            length, options["rope_parameters"] = draw(hf_models.rope(kinds))
            options["max_position_embeddings"] = length
            for name in ("attention_factor", "truncate"):
                options["rope_parameters"].pop(name, None)
    return drawn


def write(model: PreTrainedModel, path: Path) -> Path:
    """The file that a converter would make of this model, in float32."""
    name = _ARCHITECTURES[type(model).__name__]
    config = model.config
    layers = config.num_hidden_layers
    decoders = getattr(config, "num_decoder_layers", None) or layers
    kind = next(kind for kind, value in gguf.MODEL_ARCH_NAMES.items() if value == name)
    names = gguf.get_tensor_name_map(kind, max(layers, decoders))
    head = getattr(model, "lm_head", None)
    tied = head is None or torch.equal(head.weight, model.get_input_embeddings().weight)
    tensors: dict[str, np.ndarray] = {}
    for theirs, tensor in model.state_dict().items():
        if (theirs.startswith("lm_head") and tied) or ("embed_tokens" in theirs and name == "t5") or "pooler" in theirs:
            continue
        mapped = names.get_name(theirs, (".weight", ".bias"))
        assert mapped is not None, theirs
        tensors[mapped] = _moved(theirs, tensor.numpy(), name, config)
    if name == "t5" and config.scale_decoder_outputs:
        tensors["output.weight"] = tensors["token_embd.weight"] * np.float32(config.d_model**-0.5)
    metadata = _metadata(name, config, decoders)
    factors = _llama3_factors(config)
    if factors is not None:
        tensors["rope_freqs.weight"] = factors
    return sample_files.write(path, metadata, tensors)


def _moved(theirs: str, tensor: np.ndarray, name: str, config: Any) -> np.ndarray:
    if name == "gpt2" and ".c_" in theirs and theirs.endswith(".weight"):
        return np.ascontiguousarray(tensor.T)
    if name == "llama" and (".q_proj." in theirs or ".k_proj." in theirs):
        heads = config.num_attention_heads if ".q_proj." in theirs else config.num_key_value_heads
        # llama.cpp turns neighbors, Hugging Face halves.
        halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
        return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(tensor.shape)
    if name == "gemma" and theirs.endswith("norm.weight"):
        return tensor + 1  # what llama.cpp multiplies by
    return tensor


def _metadata(name: str, config: Any, decoders: int) -> dict[str, Any]:
    heads = config.num_attention_heads
    said: dict[str, Any] = {
        "block_count": config.num_hidden_layers,
        "context_length": getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", 512),
        "embedding_length": config.hidden_size,
        "attention.head_count": heads,
    }
    if name == "gpt2":
        said |= {"feed_forward_length": config.n_inner or 4 * config.n_embd}
        said |= {"attention.layer_norm_epsilon": config.layer_norm_epsilon}
    elif name == "bert":
        inner = getattr(config, "intermediate_size", None) or config.hidden_dim
        said |= {"feed_forward_length": inner, "attention.causal": False, "pooling_type": 2}
        said |= {"attention.layer_norm_epsilon": getattr(config, "layer_norm_eps", 1e-12)}
    elif name == "t5":
        said |= {"feed_forward_length": config.d_ff, "decoder_block_count": decoders}
        said |= {"attention.key_length": config.d_kv, "attention.value_length": config.d_kv}
        said |= {"attention.layer_norm_epsilon": config.layer_norm_epsilon}
        said |= {"attention.layer_norm_rms_epsilon": config.layer_norm_epsilon, "decoder_start_token_id": 0}
        said |= {"attention.relative_buckets_count": config.relative_attention_num_buckets}
    else:
        said |= {"feed_forward_length": config.intermediate_size, **_rotary(config, heads)}
        said |= {"attention.head_count_kv": config.num_key_value_heads}
        said |= {"attention.layer_norm_rms_epsilon": config.rms_norm_eps}
    return {"general.architecture": name, **{f"{name}.{key}": value for key, value in said.items()}}


def _rotary(config: Any, heads: int) -> dict[str, Any]:
    rope = config.rope_parameters
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    said = {"rope.dimension_count": head_dim, "attention.key_length": head_dim, "attention.value_length": head_dim}
    said |= {"rope.freq_base": float(rope["rope_theta"])}
    if rope["rope_type"] in ("linear", "yarn"):
        said |= {"rope.scaling.type": rope["rope_type"], "rope.scaling.factor": float(rope["factor"])}
    if rope["rope_type"] == "yarn":
        said |= {"rope.scaling.original_context_length": rope["original_max_position_embeddings"]}
        said |= {"rope.scaling.yarn_beta_fast": float(rope.get("beta_fast") or 32)}
        said |= {"rope.scaling.yarn_beta_slow": float(rope.get("beta_slow") or 1)}
    return said


def _llama3_factors(config: Any) -> np.ndarray | None:
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") != "llama3":
        return None
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    wavelengths = 2 * np.pi * rope["rope_theta"] ** (np.arange(0, head_dim, 2) / head_dim)
    original, low, high = rope["original_max_position_embeddings"], rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = (original / wavelengths - low) / (high - low)
    blended = 1 / ((1 - smooth) / rope["factor"] + smooth)
    factors = np.where(
        wavelengths < original / high, 1, np.where(wavelengths > original / low, rope["factor"], blended)
    )
    return factors.astype(np.float32)
