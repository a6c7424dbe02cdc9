"""What llama.cpp can compute of a model: the part that a GGUF file holds, and sentences about what it does not."""

from dataclasses import replace
from typing import Any

from anyformer.config import HeadConfig, ModelConfig
from anyformer.errors import UserError
from anyformer.families.gguf import Architecture, to_gguf


def expressible(config: ModelConfig) -> tuple[ModelConfig, Architecture, dict[str, Any], list[str]]:
    """The model as llama.cpp computes it.

    Returns:
        Its config, its architecture, the metadata that describes it, and a sentence for everything in which it
        differs from the model that was given.

    Raises:
        UserError: llama.cpp can't compute the model at all, and why.
    """
    notes: list[str] = []
    config = _without_head(config, notes)
    config = _within_window(config, notes)
    kind, metadata = to_gguf(config)
    _refuse(config, kind)
    if kind.name == "bert":
        notes.append("llama.cpp computes GELU by its tanh formula, which moves hidden states by about 1e-3.")
    return config, kind, metadata, notes


def _without_head(config: ModelConfig, notes: list[str]) -> ModelConfig:
    """Encoders there end with the hidden states."""
    if config.decoder_layers:
        return config
    if config.head.kind != "none":
        what = "masked-LM head" if config.head.kind == "language_model" else "classifier"
        notes.append(f"llama.cpp has no {what}, so it is left out: the file gives hidden states and embeddings.")
    elif config.head.pooler is not None:
        notes.append("The pooler, a layer over the first token that embeddings do not use, is left out.")
    return replace(config, head=HeadConfig(kind="none"), embedding=replace(config.embedding, tied=True))


def _within_window(config: ModelConfig, notes: list[str]) -> ModelConfig:
    """llama.cpp lets every token of these models see all before it: the same as a window, until the window is full."""
    window = config.attention.window
    if window is None or config.position.kind != "rotary":
        return config
    if window < config.max_length:
        notes.append(
            f"llama.cpp knows no sliding window for this model, so the file is for contexts of up to {window} tokens "
            f"(the window) instead of {config.max_length}: within them nothing differs."
        )
    return config.replace(attention={"window": None, "window_from": 0}, max_length=min(window, config.max_length))


def _refuse(config: ModelConfig, kind: Architecture) -> None:
    """What the format could say and llama.cpp does not compute."""
    attention, scaling = config.attention, config.position.scaling
    head_dim = attention.head_dim or config.d_model // attention.heads
    if kind.name == "qwen2" and head_dim * attention.heads != config.d_model:
        raise UserError(
            f"llama.cpp computes a qwen2 model only where its heads are as wide as the model: {attention.heads} heads "
            f"of {head_dim} make {head_dim * attention.heads}, not {config.d_model}."
        )
    if kind.name == "qwen3" and (attention.bias or attention.output_bias):
        raise UserError("llama.cpp knows no biases in a qwen3 model's attention.")
    if config.encoder_layers and config.decoder_layers > config.encoder_layers:
        raise UserError(
            f"llama.cpp computes no {kind.name} model whose decoder has more layers ({config.decoder_layers}) than its "
            f"encoder ({config.encoder_layers})."
        )
    if scaling is not None and scaling.kind == "llama3" and kind.name != "llama":
        raise UserError(f"llama.cpp does not scale the positions of a {kind.name} model as LLaMA 3 does.")
    if scaling is not None and scaling.kind == "yarn" and (scaling.beta_fast, scaling.beta_slow) != (32, 1):
        raise UserError(
            "llama.cpp computes YaRN with beta_fast 32 and beta_slow 1 whatever the file says, not with "
            f"{scaling.beta_fast:g} and {scaling.beta_slow:g}."
        )
