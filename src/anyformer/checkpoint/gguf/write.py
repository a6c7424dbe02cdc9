"""From a model, or an adapter of one, to a GGUF file, tensor by tensor."""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anyformer import atomic
from anyformer.adapters.modules import adapter_of
from anyformer.blocks.linear import GroupedLinear, Linear, LowRankAdapter
from anyformer.checkpoint.gguf.architecture import Architecture
from anyformer.checkpoint.gguf.architectures import architecture_of, table, to_gguf
from anyformer.checkpoint.gguf.container import NAMED, TensorType
from anyformer.checkpoint.gguf.contents import rope_factors
from anyformer.checkpoint.gguf.mixtures import split_latents
from anyformer.checkpoint.gguf.source import package
from anyformer.checkpoint.gguf.tokenizer_writer import tokenizer_metadata
from anyformer.config import HeadConfig, ModelConfig
from anyformer.errors import UserError, nearest
from anyformer.families.rows import COPY, Row
from anyformer.model import Transformer, skeleton
from anyformer.one_line import OneLine
from anyformer.quantization import bits_of
from anyformer.tokenizer import Tokenizer

_FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "BF16": 32}
"""llama.cpp's numbers for a file that is mostly of one type."""
FORMATS = {name.lower(): NAMED[name] for name in ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")}
"""Types that a file can be written in, K-quants excepted: llama.cpp's quantizer makes those from F16 or F32."""

_EXACT = ("position_embd.weight", "token_types.weight", "attn_rel_b.weight", "ffn_gate_inp.weight")
"""Small tables that llama.cpp adds or reads as they are, and routers, whose choice rounding would change."""
_FACTORS = "rope_freqs.weight"
"""No weight of the model, but what its rotary frequencies are divided by."""
_OUTER = ("token_embd.weight", "output.weight")
_AT_ONCE = 2**22
"""Weights that are quantized at once: the quantizer needs several times their room."""
_LARGEST_F16 = 65504.0


@dataclass(frozen=True, repr=False)
class Written(OneLine):
    """The outcome of writing a model."""

    architecture: str
    formats: Mapping[str, int]
    """Format -> number of tensors."""
    size: int
    """Bytes of the file."""
    notes: Sequence[str]
    """Sentences about what the file, or llama.cpp, leaves out or does in another way."""


def save_gguf(
    model: Transformer, path: str | Path, tokenizer: Tokenizer | None = None, *, kind: str = "f16"
) -> Written:
    """Write a GGUF file, whole or not at all.

    Args:
        model: What to write. Its weights are converted one by one, so that little more than they is in memory.
        path: The file; one that is there is replaced once the new one is complete.
        tokenizer: Goes into the file, with its special tokens and chat template.
        kind: f32, f16, bf16, q8_0, q5_1, q5_0, q4_1 or q4_0: the format of the matrices.

    Raises:
        UserError: the matrices are integers, llama.cpp can't compute the model or its tokenizer, a type that is not
            known, the package gguf is missing, or the disk is full.
    """
    gguf = package("Writing GGUF")
    if bits_of(model) is not None:
        raise UserError(
            "This model's matrices are integers already: write the model that they were made of, as q8_0 or q4_1."
        )
    if kind not in FORMATS:
        raise UserError(f"There is no type {kind!r} to convert to ({nearest(kind, FORMATS)}).")
    file_type = FORMATS[kind]
    path = Path(path)
    notes: list[str] = []
    config = storable(model.config, notes)
    architecture, metadata = to_gguf(config)
    _refuse(config, architecture)
    if architecture.name in ("bert", "gptneox", "falcon"):
        notes.append("llama.cpp computes GELU by its tanh formula, which moves hidden states by about 1e-3.")
    vocabulary = tokenizer_metadata(tokenizer, config, notes)
    general: dict[str, Any] = {
        "general.type": "model",
        "general.name": path.stem,
        "general.file_type": _FILE_TYPES[file_type.name],
        **({"general.quantization_version": 2} if file_type.block > 1 else {}),
    }
    rows = table(architecture, config, set(skeleton(config).state_dict()))
    # A second name with an operation of its own is no second name but another tensor (T5's head).
    rows = {name: row for name, row in split_latents(rows, config) if not row.alias or row.operation is not COPY}
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    if factors := rope_factors(config):
        rows = {_FACTORS: Row(_FACTORS, (_FACTORS,)), **rows}
        state[_FACTORS] = torch.tensor(factors)
    on_meta = {name: tensor.to("meta") for name, tensor in state.items()}
    shapes = {name: row.write(on_meta).shape for name, row in rows.items()}
    formats = {name: _stored_as(name, shape, file_type) for name, shape in shapes.items()}
    if fallbacks := [name for name, stored in formats.items() if file_type.block > 1 and stored.name == "F16"]:
        notes.append(
            f"{len(fallbacks)} tensors are stored as F16, because their rows are no whole number of blocks of "
            f"{file_type.block} (such as {fallbacks[0]}, of {shapes[fallbacks[0]][-1]})."
        )
    counts = Counter(stored.name for name, stored in formats.items() if name != _FACTORS)
    with (
        atomic.replacing(path, make_parents=True) as temporary,
        closing(gguf.GGUFWriter(temporary, architecture.name)) as writer,
    ):
        # Each value in the type that llama.cpp reads it as.
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        for key, value in {**metadata, **general, **vocabulary}.items():
            if key != "general.architecture":
                add.get(type(value), writer.add_array)(key, value)
        for name, shape in shapes.items():
            stored, size = gguf.GGMLQuantizationType(formats[name].number), formats[name].size(shape)
            writer.add_tensor_info(name, shape, np.dtype(np.float32), size, raw_dtype=stored)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, row in rows.items():
            writer.write_tensor_data(_encode(name, row.write(state), formats[name]))
    return Written(architecture.name, counts, path.stat().st_size, notes)


def storable(config: ModelConfig, notes: list[str]) -> ModelConfig:
    """The config that llama.cpp will compute; notes get what differs.

    Encoders there end with the hidden states. In most architectures every token of a decoder sees all before it: the
    same as a window, until the window is full.
    """
    if config.is_encoder_only:
        if config.head.kind != "none":
            kind = "masked-LM head" if config.head.kind == "language_model" else "classifier"
            notes.append(f"llama.cpp has no {kind}, so it is left out: the file gives hidden states and embeddings.")
        elif config.head.pooler is not None:
            notes.append("The pooler, a layer over the first token that embeddings do not use, is left out.")
        config = replace(config, head=HeadConfig(kind="none"), embedding=replace(config.embedding, tied=True))
    scaling = config.position.scaling
    if scaling is not None and scaling.kind == "yarn" and not scaling.truncate:
        notes.append(
            "llama.cpp rounds the range in which YaRN blends, and this model does not (position.scaling.truncate): its "
            "logits differ by about 0.2% after 16 tokens, and by 4% after 1,000."
        )
        config = config.replace(**{"position.scaling.truncate": True})
    window = config.attention.window if config.other_layers is None else config.other_layers.window
    if window is None or config.position.kind != "rotary":
        return config
    kind = architecture_of(config)
    if kind is not None and kind.has_windows:
        return config
    if window < config.max_length:
        notes.append(
            f"llama.cpp knows no sliding window for this model, so the file is for contexts of up to {window} tokens "
            f"(the window) instead of {config.max_length}: within them nothing differs."
        )
    return config.replace(attention={"window": None}, other_layers=None, max_length=min(window, config.max_length))


def _refuse(config: ModelConfig, kind: Architecture) -> None:
    """Refuse models that the format could express and llama.cpp does not compute."""
    attention, scaling = config.attention, config.position.scaling
    width = attention.heads * config.head_dim
    if kind.name in ("qwen2", "olmo2") and width != config.d_model:
        raise UserError(
            f"llama.cpp computes a {kind.name} model only where its heads are as wide as the model: {attention.heads} "
            f"heads of {attention.head_dim} make {width}, not {config.d_model}."
        )
    if kind.name == "olmoe" and attention.kv_heads not in (None, attention.heads):
        raise UserError("llama.cpp computes an olmoe model only where no heads share keys and values (kv_heads).")
    if kind.name == "gemma-embedding" and len({*map(bool, config.others(config.encoder_layers))}) == 1:
        raise UserError(
            "llama.cpp computes a gemma-embedding model only where some layers have a window and others none."
        )
    if config.pooling.dense and (len(config.pooling.dense) != 2 or config.pooling.dense[-1] != config.d_model):
        raise UserError("llama.cpp computes two linear layers after pooling, the second as wide as the model, or none.")
    if kind.name in ("qwen3", "qwen3moe") and (attention.bias or attention.output_bias):
        raise UserError(f"llama.cpp knows no biases in a {kind.name} model's attention.")
    if attention.latent is not None and (attention.latent.query_rank is None) != (config.decoder_layers in (26, 27)):
        raise UserError(
            "llama.cpp takes a deepseek2 model of 26 or 27 layers for a Lite, whose queries have no latent "
            "(attention.latent.query_rank), and no other."
        )
    if attention.latent is not None and not (config.feed_forward.experts and config.feed_forward.experts.shared):
        raise UserError("llama.cpp computes no deepseek2 model without shared experts (feed_forward.experts.shared).")
    if config.encoder_layers and config.decoder_layers > config.encoder_layers:
        raise UserError(
            f"llama.cpp computes no {kind.name} model whose decoder has more layers ({config.decoder_layers}) than its "
            f"encoder ({config.encoder_layers})."
        )
    if scaling is not None and scaling.kind == "llama3" and kind.name != "llama":
        raise UserError(f"llama.cpp does not scale the positions of a {kind.name} model as LLaMA 3 does.")
    if scaling is not None and scaling.kind == "yarn" and kind.name in ("gemma3", "gemma-embedding"):
        raise UserError(f"llama.cpp scales the positions of a {kind.name} model's windows by YaRN, too.")
    if scaling is not None and scaling.kind == "yarn" and (scaling.beta_fast, scaling.beta_slow) != (32, 1):
        raise UserError(
            "llama.cpp computes YaRN with beta_fast 32 and beta_slow 1 whatever the file says, not with "
            f"{scaling.beta_fast:g} and {scaling.beta_slow:g}."
        )


def _stored_as(name: str, shape: Sequence[int], file_type: TensorType) -> TensorType:
    """The format of one tensor in a file of this type.

    Vectors, biases of experts and small tables stay F32. Where weights get fewer than 8 bits, the token table and the
    head, on which quality hangs most, get 8; rows that are no whole number of blocks fall back to F16.
    """
    if len(shape) < 2 or name.endswith((*_EXACT, ".bias")):
        return NAMED["F32"]
    if file_type.block > 1 and shape[-1] % file_type.block:
        return NAMED["F16"]
    return NAMED["Q8_0"] if file_type.block > 1 and name in _OUTER else file_type


def _encode(name: str, tensor: Tensor, kind: TensorType) -> NDArray[Any]:
    """The bytes of a tensor in this format, [..., bytes of a row]; F32 and F16 as numbers.

    Raises UserError for a number too large for F16.
    """
    if kind.name == "F32":
        return cast("NDArray[np.float32]", tensor.float().contiguous().numpy())
    if kind.name == "F16":
        if tensor.numel() and float(tensor.abs().max()) > _LARGEST_F16:
            raise UserError(f"The weight {name} has numbers too large for f16: convert with --type bf16 or f32.")
        return cast("NDArray[np.float16]", tensor.half().contiguous().numpy())
    if kind.name == "BF16":
        return cast("NDArray[np.uint8]", tensor.bfloat16().contiguous().view(torch.uint8).numpy())
    import gguf

    rows = tensor.reshape(-1, tensor.shape[-1])
    quantized = np.empty((rows.shape[0], rows.shape[1] // kind.block * kind.bytes), dtype=np.uint8)
    step = max(1, _AT_ONCE // rows.shape[1])
    for start in range(0, rows.shape[0], step):
        part = rows[start : start + step].float().numpy()
        quantized[start : start + step] = gguf.quantize(part, gguf.GGMLQuantizationType(kind.number))
    return quantized.reshape(*tensor.shape[:-1], -1)


def save_gguf_adapter(model: Transformer, path: Path, name: str) -> None:
    """Write an adapter of a model as a GGUF file, whole or not at all.

    What it is multiplied by is in its matrices: llama.cpp knows one alpha for all layers, and takes 0 for none.

    Raises UserError where llama.cpp can't compute the model, or an adapter of this kind (DoRA, embeddings, other
    weights); the package gguf is missing, or the disk is full.
    """
    gguf = package("Writing GGUF")
    config = model.adapter_configs[name]
    if config.use_dora or not config.is_low_rank_only:
        raise UserError("llama.cpp has no DoRA, and no biases or whole modules in adapters: `merge` it into the model.")
    base = storable(model.config, [])
    architecture, _ = to_gguf(base)
    rows = table(architecture, base, set(skeleton(base).state_dict()))
    modules = dict(model.named_modules())
    tensors: dict[str, Tensor] = {}
    left = {module for module in modules.values() if adapter_of(module, name) is not None}
    for theirs, row in rows.items():
        parts = [modules.get(ours.removesuffix(".weight")) for ours in row.ours]
        layers = [part for part in parts if isinstance(part, Linear) and not isinstance(part, GroupedLinear)]
        adapters = [adapter_of(layer, name) for layer in layers]
        if row.alias or len(layers) != len(parts) or not any(adapters):
            continue
        left.difference_update(layers)
        a, b = _joined([(layer.weight.shape[0], adapter) for layer, adapter in zip(layers, adapters, strict=True)])
        # Operations move whole rows, so they move those of B.
        tensors |= {f"{theirs}.lora_a": a, f"{theirs}.lora_b": row.operation.write(b)}
    if left:
        raise UserError("llama.cpp has no place for an adapter of one of these layers: `merge` it into the model.")
    with (
        atomic.replacing(path, make_parents=True) as temporary,
        closing(gguf.GGUFWriter(temporary, architecture.name)) as writer,
    ):
        writer.add_string("general.type", "adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", 0.0)
        for key, tensor in tensors.items():
            writer.add_tensor(key, tensor.float().contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()


def _joined(layers: Sequence[tuple[int, LowRankAdapter | None]]) -> tuple[Tensor, list[Tensor]]:
    """One A for layers side by side, and the rows of B of each, from its outputs and its adapter; 0 without one."""
    starts: dict[Tensor, int] = {}
    rank = 0
    for adapter in (adapter for _, adapter in layers if adapter is not None and adapter.a not in starts):
        starts[adapter.a], rank = rank, rank + len(adapter.a)
    rows = [torch.zeros(outputs, rank) for outputs, _ in layers]
    for b, (_, adapter) in zip(rows, layers, strict=True):
        if adapter is not None:
            start = starts[adapter.a]
            b[:, start : start + len(adapter.a)] = adapter.scale * adapter.b.detach().cpu()
    return torch.cat([a.detach().cpu() for a in starts]), rows
