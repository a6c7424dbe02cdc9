"""The architectures of GGUF that models are read from and written as.

Keys and tensors are called alike in all of them, so an architecture is what differs: the family's own tables, read
through the tables below, give the rest. A Mistral is a `llama` there, and its window is not stored.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import attrgetter
from typing import TYPE_CHECKING, Any, cast

import torch.nn.functional as F

from anyformer.checkpoint.gguf.contents import (
    Contents,
    layers,
    read_rope_scaling,
    rope_factors,
    same_factors,
    token_ids,
    write_rope_scaling,
)
from anyformer.config import HeadKind, ModelConfig, SpecialTokens, diff
from anyformer.errors import UserError, quote
from anyformer.families import FAMILIES, canonical, to_huggingface
from anyformer.families.base import Family, Raw, complete, supported
from anyformer.families.llama import LAYER_TYPES, write_layer_types
from anyformer.families.rows import COPY, SPLIT, TRANSPOSE, Operation, Row, alias, resolve, split_heads
from anyformer.model import skeleton

if TYPE_CHECKING:
    from torch import Tensor

_REQUIRED = {
    "context_length": "max_length",
    "embedding_length": "d_model",
    "feed_forward_length": "feed_forward.width",
    "attention.head_count": "attention.heads",
}
"""Key, after the architecture's name and a dot -> field of ModelConfig."""
_OPTIONAL = {
    "attention.head_count_kv": "attention.kv_heads",
    "attention.key_length": "attention.head_dim",
    "attention.value_length": "attention.head_dim",
    "attention.relative_buckets_count": "position.buckets",
    "rope.dimension_count": "attention.head_dim",
    "rope.freq_base": "position.theta",
}
"""Keys of families that have the field in their table of config.json; those of `rope` where positions are rotary."""
_NAMES = {
    "token_embedding.table": "token_embd",
    "embedding.segments": "token_types",
    "embedding.norm": "token_embd_norm",
    "position.table": "position_embd",
    "attention_norm": "blk.{i}.attn_norm",
    "attention.query": "blk.{i}.attn_q",
    "attention.key": "blk.{i}.attn_k",
    "attention.value": "blk.{i}.attn_v",
    "attention.query attention.key attention.value": "blk.{i}.attn_qkv",
    "attention.query_norm": "blk.{i}.attn_q_norm",
    "attention.key_norm": "blk.{i}.attn_k_norm",
    "attention.output": "blk.{i}.attn_output",
    "attention_output_norm": "blk.{i}.post_attention_norm",
    "cross_attention_norm": "blk.{i}.cross_attn_norm",
    "cross_attention.query": "blk.{i}.cross_attn_q",
    "cross_attention.key": "blk.{i}.cross_attn_k",
    "cross_attention.value": "blk.{i}.cross_attn_v",
    "cross_attention.output": "blk.{i}.cross_attn_o",
    "feed_forward_norm": "blk.{i}.ffn_norm",
    "feed_forward.gate": "blk.{i}.ffn_gate",
    "feed_forward.gate feed_forward.up": "blk.{i}.ffn_up",
    "feed_forward.up": "blk.{i}.ffn_up",
    "feed_forward.down": "blk.{i}.ffn_down",
    "feed_forward_output_norm": "blk.{i}.post_ffw_norm",
    "final_norm": "output_norm",
    "head.projection": "output",
}
"""Our layers, several where a family holds them side by side -> GGUF's name."""
_OURS = re.compile(r"(?:(encoder|decoder)\.)?(?:blocks\.\{i\}\.)?(.+)\.(weight|bias)")
_PREFIXES = {"encoder": "enc.", "decoder": "dec."}
"""Stacks of encoder-decoders."""


@dataclass(frozen=True)
class Architecture:
    """One `general.architecture` of GGUF's.

    A model is read through Hugging Face's own words for it: metadata is translated into fields of a config.json, which
    the family then reads as it does its files, and the way back goes through what the family writes.
    """

    name: str
    model_types: Sequence[str]
    """The families whose models it can hold; files are read as the first."""
    neighboring: bool = False
    """Rotary positions turn neighboring pairs of rows of a head, not its two halves as in Hugging Face."""
    has_windows: bool = False
    """llama.cpp knows the windows of its layers."""
    keys: Mapping[str, str] = field(default_factory=dict[str, str])
    """More keys that may be missing. Two keys may say the same."""
    names: Mapping[str, str] = field(default_factory=dict[str, str])
    """Names of tensors that differ from the usual ones, as in `_NAMES`."""
    inferred: Callable[[Contents], Raw] = lambda contents: {}
    """More fields of config.json that follow from which tensors there are."""
    more: Callable[[ModelConfig], Raw] = lambda config: {}
    """More keys, after the architecture's name and a dot."""
    adjust: Callable[[ModelConfig, Contents], ModelConfig] = lambda config, contents: config
    """Adjustment by contents that no config.json can express."""
    ignored: Sequence[str] = ()
    """Regular expressions of tensor names that hold no weight of the model."""

    @property
    def family(self) -> Family:
        """The family that files are read as."""
        return FAMILIES[self.model_types[0]]

    @property
    def head(self) -> HeadKind:
        """The head of its models: encoders there end with the hidden states."""
        return "language_model" if "decoder_layers" in self.family.json_names else "none"

    @cached_property
    def all_keys(self) -> dict[str, str]:
        """Key -> field of ModelConfig."""
        config = next(iter(self.family.presets.values()))
        keys = {
            "block_count": "encoder_layers" if config.encoder_layers else "decoder_layers",
            f"attention.layer_norm_{'rms_' if config.norm.kind.startswith('rms') else ''}epsilon": "norm.eps",
            **_REQUIRED,
        }
        for key, name in _OPTIONAL.items():
            if name in self.family.json_names and (config.position.kind == "rotary" or not key.startswith("rope.")):
                keys[key] = name
        return {**keys, **self.keys}

    def read(self, contents: Contents) -> dict[str, Any]:
        """The fields of config.json. Raises UserError for a key that is missing or misshapen."""
        fields = self.family.json_names
        values = {key: contents.get(key) for key in self.all_keys}
        raw = {
            fields[self.all_keys[key]]: _number(f"{self.name}.{key}", value)
            for key, value in values.items()
            if value is not None
        }
        for key, name in self.all_keys.items():
            if key not in _OPTIONAL and key not in self.keys and fields[name] not in raw:
                raise UserError(f"The key {self.name}.{key} is missing.")
        inferred = _inferred(contents, is_partial="position.rotary_fraction" in fields)
        raw |= {fields[name]: value for name, value in inferred.items() if name in fields}
        return {**raw, **read_rope_scaling(contents), **self.inferred(contents), **token_ids(contents)}

    def write(self, config: ModelConfig) -> dict[str, Any]:
        """The metadata that `read` reads."""
        values = {key: attrgetter(name)(complete(config)) for key, name in self.all_keys.items()}
        values = {"vocab_size": config.vocab_size, **values, **write_rope_scaling(config), **self.more(config)}
        metadata = {f"{self.name}.{key}": value for key, value in values.items() if value is not None}
        return {"general.architecture": self.name, **metadata}

    def rows(self, config: ModelConfig) -> list[Row]:
        """The table of tensor names for a model of this config, from the family's own.

        Every operation moves whole rows, so that it can be applied to quantized tensors as well. An alias with an
        operation of its own (T5's head) has to be written: other programs look for it.
        """
        rows = [self._row(line, config) for line in self.family.rows_of(config) if not line.alias]
        if self.head == "none":
            return [line for line in rows if line is not None]
        # llama.cpp multiplies by `output.weight` and nothing else, so where the head of a T5 1.0 is its token embedding
        # over sqrt(d_model), the file needs that product.
        scale = 1 / math.sqrt(config.d_model)
        scaled = Operation(lambda tensor, _: [tensor / scale], lambda tensors: tensors[0] * scale)
        head = alias("output.weight", "token_embedding.table.weight")
        return [*filter(None, rows), replace(head, operation=scaled if config.head.scaled else COPY)]

    def _row(self, line: Row, config: ModelConfig) -> Row | None:
        """The row of a family's as GGUF has it, with matrices of [out, in]; None where it has no such tensor."""
        layers = [match.groups() for name in line.ours if (match := _OURS.fullmatch(name))]
        name = {**_NAMES, **self.names}.get(" ".join(layer for _, layer, _ in layers))
        if name is None:
            return None
        (stack, layer, part), operation = layers[0], line.operation
        if self.neighboring and layer in ("attention.query", "attention.key"):
            attention = config.attention
            is_key = layer == "attention.key"
            operation = neighbors(attention.kv_heads or attention.heads if is_key else attention.heads)
        elif (heads := operation.heads) is not None and len(layers) > 1:
            # All queries, then all keys, then all values.
            counts = (heads.groups * count for count in heads.counts)
            operation = split_heads(heads.head_dim, *counts, order=heads.order)
        elif operation is TRANSPOSE:
            operation = SPLIT if len(layers) > 1 else COPY
        elif layer.endswith("norm") and config.norm.kind == "rms_offset":
            operation = ONE_MORE
        elif layer == "position.table" and config.position.skip_padding:
            operation = _rows_from(config.position.offset)
        prefix = _PREFIXES.get(stack, "") if config.is_encoder_decoder else ""
        return Row(f"{prefix}{name}.{part}", line.ours, operation)


ONE_MORE = Operation(lambda tensor, _: [tensor.float() - 1], lambda tensors: tensors[0].float() + 1)
"""llama.cpp's RMSNorm multiplies by what is stored, Gemma's by 1 + weight."""


def _rows_from(first: int) -> Operation:
    """A table of positions that begins with that of the first token, as llama.cpp has it."""

    def read(tensor: "Tensor", _: int) -> Sequence["Tensor"]:
        return [F.pad(tensor, (0, 0, first, 0))]

    return Operation(read, lambda tensors: tensors[0][first:])


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


def _number(key: str, value: Any) -> int | float:
    if isinstance(value, list) and value and all(v == value[0] for v in cast("list[Any]", value)):
        value = cast("list[Any]", value)[0]  # one number for each layer
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise UserError(f"The key {key} should be one positive number, not {quote(value)}.")
    return value


def _inferred(contents: Contents, *, is_partial: bool) -> dict[str, Any]:
    """Fields of ModelConfig that follow from which tensors there are, and how much of a head turns, if it is a part."""
    if "token_embd.weight" not in contents.shapes:
        raise UserError("The tensor token_embd.weight is missing.")
    if contents.get("expert_count"):
        raise UserError("The model is a mixture of experts, which is not supported.")
    names = ["attention.key_length", "attention.value_length", *(() if is_partial else ("rope.dimension_count",))]
    widths = {key: contents.get(key) for key in names if contents.get(key) is not None}
    if len(set(widths.values())) > 1:
        listed = ", ".join(f"{key} {width}" for key, width in widths.items())
        raise UserError(f"Keys, values and rotary positions of different widths are not supported ({listed}).")
    return {
        "vocab_size": contents.shapes["token_embd.weight"][0],
        "embedding.tied": contents.output != "own",
        "embedding.segments": contents.shapes.get("token_types.weight", (0,))[0],
        "attention.bias": "blk.0.attn_q.bias" in contents.shapes,
        "feed_forward.bias": "blk.0.ffn_up.bias" in contents.shapes,
        **({"position.rotary_fraction": _rotary_fraction(contents)} if is_partial else {}),
    }


def _rotary_fraction(contents: Contents) -> float:
    width = contents.get("embedding_length") // contents.get("attention.head_count")
    return (contents.get("rope.dimension_count") or width) / width


def _write_rotary(config: ModelConfig) -> Raw:
    head_dim = config.attention.head_dim or config.d_model // config.attention.heads
    return {"rope.dimension_count": int(head_dim * config.position.rotary_fraction)}


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


def _falcon(contents: Contents) -> Raw:
    """llama.cpp knows its parallel blocks alone, without biases."""
    heads, kv_heads = contents.get("attention.head_count"), contents.get("attention.head_count_kv") or 1
    grouped = kv_heads not in (1, heads)
    fixed = {"parallel_attn": True, "num_ln_in_parallel_attn": 1, "bias": False}
    return {**fixed, "new_decoder_architecture": grouped, "multi_query": kv_heads == 1, "num_kv_heads": kv_heads}


_POOLING = {"mean": 1, "first": 2, "last": 3}
"""llama.cpp's numbers; 0 is none, and 4 scores pairs of texts."""


def _bert_adjust(config: ModelConfig, contents: Contents) -> ModelConfig:
    kinds = {number: kind for kind, number in _POOLING.items()}
    return config.replace(
        head={"pooler": None},
        pooling={"kind": kinds.get(contents.get("pooling_type"), "mean")},
        # Without segments it is a DistilBERT to Hugging Face.
        model_type="bert" if config.embedding.segments else "distilbert",
    )


_WINDOW, _PERIOD, _LOCAL_THETA = "attention.sliding_window", "attention.sliding_window_pattern", "rope.freq_base_swa"


def _windows(contents: Contents, period: int, window: int = 0) -> Raw:
    """The window, and the layers that have it: all but the last of every `period`, unless the file says otherwise."""
    window, pattern = contents.get(_WINDOW) or window, contents.get(_PERIOD)
    if isinstance(pattern, list):
        flags = [bool(flag) for flag in cast("list[Any]", pattern)]
    else:
        period = (pattern or period) if window else 1
        flags = [(layer + 1) % period != 0 for layer in range(layers(contents))]
    return {"sliding_window": window, "layer_types": [LAYER_TYPES[flag] for flag in flags]}


def _write_windows(config: ModelConfig, period: int) -> Raw:
    """The keys that `_windows` reads; those of the nearest model where no period gives the layers."""
    types, window = write_layer_types(config), (config.other_layers and config.other_layers.window)
    periods = (period, *range(2, len(types) + 2))
    fitting = (n for n in periods if types == [LAYER_TYPES[(layer + 1) % n != 0] for layer in range(len(types))])
    found = next(fitting, period)
    return {_WINDOW: window or config.attention.window, _PERIOD: None if found == period else found}


def _local_theta(config: ModelConfig) -> Raw:
    other = config.other_layers and config.other_layers.position
    return {_LOCAL_THETA: None if config.other_layers is None else (other or config.position).theta}


def _gemma2(contents: Contents) -> Raw:
    """What llama.cpp decides by itself: it has no biases, and knows the largest model by its layers."""
    is_largest = layers(contents) in (46, 62)
    heads, width = contents.get("attention.head_count"), contents.get("embedding_length")
    scalar = width // heads if is_largest else contents.get("attention.key_length") or width // heads
    return {"query_pre_attn_scalar": scalar, "attention_bias": False}


def _olmo_adjust(config: ModelConfig, contents: Contents) -> ModelConfig:
    return config.replace(model_type="olmo2") if config.other_layers is None else config


_ROPE_BUFFERS = (r"rope_freqs\.weight", r"blk\.\d+\.attn_rot_embd", r"blk\.\d+\.rope_freqs\.weight")
ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture
    for architecture in (
        Architecture("llama", ("llama", "mistral"), neighboring=True, ignored=_ROPE_BUFFERS),
        Architecture("qwen2", ("qwen2",), ignored=_ROPE_BUFFERS),
        Architecture("qwen3", ("qwen3",), ignored=_ROPE_BUFFERS),
        Architecture(
            "gemma",
            ("gemma",),
            # It has no biases, and its head is the token table.
            inferred=lambda contents: {"tie_word_embeddings": True, "attention_bias": False},
        ),
        Architecture(
            "gemma2",
            ("gemma2",),
            has_windows=True,
            keys={"attn_logit_softcapping": "attention.softcap", "final_logit_softcapping": "head.softcap"},
            inferred=lambda contents: {**_gemma2(contents), **_windows(contents, 2, 4096), "tie_word_embeddings": True},
            more=lambda config: _write_windows(config, 2),
        ),
        Architecture(
            "gemma3",
            ("gemma3_text",),
            has_windows=True,
            keys={"final_logit_softcapping": "head.softcap"},
            inferred=lambda contents: {
                **_gemma2(contents),
                **_windows(contents, 6),
                "rope_local_base_freq": contents.get(_LOCAL_THETA) or 10_000.0,
            },
            more=lambda config: {**_write_windows(config, 6), **_local_theta(config)},
        ),
        Architecture(
            "olmo2",
            ("olmo3", "olmo2"),
            has_windows=True,
            inferred=lambda contents: {
                **_windows(contents, 4),
                "attention_bias": False,
                "tie_word_embeddings": False,
            },
            more=lambda config: _write_windows(config, 4),
            adjust=_olmo_adjust,
        ),
        Architecture(
            "smollm3",
            ("smollm3",),
            neighboring=True,
            inferred=lambda contents: {"attention_bias": False, "mlp_bias": False},
            ignored=_ROPE_BUFFERS,
        ),
        Architecture(
            "gptneox",
            ("gpt_neox",),
            inferred=lambda contents: {
                "use_parallel_residual": contents.get("use_parallel_residual") is not False,
                "tie_word_embeddings": False,
                "attention_bias": True,
            },
            more=lambda config: {
                **_write_rotary(config),
                "use_parallel_residual": config.norm.placement == "parallel",
            },
        ),
        Architecture(
            "phi2",
            ("phi",),
            names={"head": "output"},
            inferred=lambda contents: {"tie_word_embeddings": False},
            more=_write_rotary,
        ),
        Architecture("phi3", ("phi3",), more=_write_rotary),
        Architecture(
            "granite",
            ("granite",),
            neighboring=True,
            keys={"embedding_scale": "embedding.scale", "residual_scale": "residual_scale"},
            inferred=_granite,
            more=_write_granite,
            ignored=_ROPE_BUFFERS,
        ),
        Architecture(
            "command-r",
            ("cohere",),
            keys={"logit_scale": "head.scale"},
            # It has no biases, and its head is the token table.
            inferred=lambda contents: {"tie_word_embeddings": True, "attention_bias": False},
        ),
        Architecture(
            "falcon",
            ("falcon",),
            inferred=_falcon,
            more=lambda config: {
                **_write_rotary(config),
                "attention.head_count_kv": config.attention.kv_heads or config.attention.heads,
            },
        ),
        Architecture("gpt2", ("gpt2",), ignored=(r"blk\.\d+\.attn\.(bias|masked_bias)",)),
        Architecture(
            "bert",
            ("bert", "distilbert", "roberta", "xlm-roberta"),
            names={"attention_norm": "blk.{i}.attn_output_norm", "feed_forward_norm": "blk.{i}.layer_output_norm"},
            more=lambda config: {"attention.causal": False, "pooling_type": _POOLING.get(config.pooling.kind)},
            adjust=_bert_adjust,
            # Poolers and heads that a converter left in: what this architecture computes ends with the hidden states.
            ignored=(r"cls(\.output)?\.(weight|bias)",),
        ),
        Architecture(
            "t5",
            ("t5", "mt5"),
            keys={
                "decoder_block_count": "decoder_layers",
                "attention.layer_norm_epsilon": "norm.eps",
                "decoder_start_token_id": "special_tokens.decoder_start",
            },
            names={"attention.output": "blk.{i}.attn_o", "position.table": "blk.0.attn_rel_b"},
            inferred=lambda contents: {
                "feed_forward_proj": "gated-gelu" if "enc.blk.0.ffn_gate.weight" in contents.shapes else "relu",
                "scale_decoder_outputs": contents.output in ("absent", "scaled"),
            },
            ignored=(r"dec\.blk\.\d+\.cross_attn_rel_b\.weight", r"(enc|dec)\.blk\.[1-9]\d*\.attn_rel_b\.weight"),
        ),
    )
}


def from_gguf(contents: Contents) -> ModelConfig:
    """The model that a GGUF file describes. Raises UserError for what is not supported, missing or misshapen."""
    kind = supported(ARCHITECTURES, contents.architecture, "The GGUF architecture")
    config = kind.adjust(kind.family.read(kind.read(contents), kind.head), contents)
    # Before anything is built: a number of layers costs nothing to write.
    for count, prefix in ((config.encoder_layers, "enc."), (config.decoder_layers, "dec.")):
        prefix = prefix if config.is_encoder_decoder else ""
        if count and count != (stored := layers(contents, prefix)):
            raise UserError(f"The metadata says {count} layers, and there are {prefix}blk tensors of {stored}.")
    return config


def architecture_of(config: ModelConfig) -> Architecture | None:
    """The architecture for models of this type; None where there is none."""
    model_type = to_huggingface(config)[0].model_type
    return next((kind for kind in ARCHITECTURES.values() if model_type in kind.model_types), None)


def to_gguf(config: ModelConfig) -> tuple[Architecture, dict[str, Any]]:
    """The architecture that can hold this model, and the metadata that describes it, without the tokenizer's.

    Raises:
        UserError: GGUF, or llama.cpp that computes by it, can't express the model; it names what stands in the way.
    """
    kind = architecture_of(config)
    if kind is None:
        raise UserError(f"GGUF has no architecture for a model of type {quote(to_huggingface(config)[0].model_type)}.")
    if config.head.kind != kind.head:
        raise UserError(f"GGUF's {kind.name} architecture has no place for a head of kind {quote(config.head.kind)}.")
    metadata = kind.write(config)
    back = from_gguf(_contents(config, kind, metadata))
    # LLaMA 3's scaling is its factors, which different lengths and frequencies can have in common.
    factors = rope_factors(config)
    are_same = factors is not None and same_factors(rope_factors(back) or (), factors)
    for name, (computed, meant) in diff(_computed(back), _computed(config)).items():
        if not (are_same and name.startswith("position.scaling.")):
            raise UserError(
                f"GGUF's {kind.name} architecture can't express {name} = {quote(meant)} (llama.cpp would compute with "
                f"{quote(computed)})."
            )
    return kind, metadata


def _computed(config: ModelConfig) -> ModelConfig:
    """The config that llama.cpp computes by: without training's settings, token ids, and synonyms."""
    pooling = {"kind": config.pooling.kind} if config.is_encoder_only else {}
    # A text has no padding, and the file's table of positions begins with that of its first token.
    position = {"offset": 0, "skip_padding": False} if config.is_encoder_only else {}
    rates = {part: {"dropout": 0.0} for part in ("attention", "feed_forward", "embedding", "head")}
    config = canonical(config.replace(position=position))
    return config.replace(dropout=0.0, special_tokens=SpecialTokens(), pooling=pooling, **rates)


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
