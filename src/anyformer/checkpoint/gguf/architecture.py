"""One architecture of GGUF: how its keys and tensors are read as a family's, and written.

Keys and tensors are called alike in all of them, so an architecture is what differs: the family's own tables, read
through the tables below, give the rest.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import attrgetter
from typing import Any, cast

import torch.nn.functional as F

from anyformer.checkpoint.gguf.contents import Contents, read_rope_scaling, token_ids, write_rope_scaling
from anyformer.config import HeadKind, ModelConfig
from anyformer.errors import UserError, quote
from anyformer.families import FAMILIES
from anyformer.families.base import Family, Raw, complete
from anyformer.families.rotary import head_operations
from anyformer.families.rows import COPY, SPLIT, TRANSPOSE, Operation, Row, alias, row, split_heads, stacked

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
    "expert_count": "feed_forward.experts.count",
    "expert_used_count": "feed_forward.experts.used",
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
    "feed_forward.router": "blk.{i}.ffn_gate_inp",
    "feed_forward_output_norm": "blk.{i}.post_ffw_norm",
    "final_norm": "output_norm",
    "head.projection": "output",
}
"""Our layers, several where a family holds them side by side -> GGUF's name."""
DENSE = {"dense_2.weight": "pooling.dense.0.weight", "dense_3.weight": "pooling.dense.1.weight"}
"""Names of linear layers after pooling (EmbeddingGemma's)."""
_OURS = re.compile(r"(?:(encoder|decoder)\.)?(?:blocks\.\{i\}\.)?(.+?)(?:\.(weight|bias))?")
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
    is_encoder: bool = False
    """Its models are the encoders of a family that has decoders as well."""
    keys: Mapping[str, str] = field(default_factory=dict[str, str])
    """More keys that may be missing. Two keys may say the same."""
    names: Mapping[str, str] = field(default_factory=dict[str, str])
    """Names of tensors that differ from the usual ones, as in `_NAMES`; or by the last name that a family has."""
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
        is_encoder = self.is_encoder or "decoder_layers" not in self.family.json_names
        return "none" if is_encoder else "language_model"

    @property
    def json_names(self) -> dict[str, str]:
        """Field of ModelConfig -> field of config.json."""
        return {"encoder_layers": "num_hidden_layers", **self.family.json_names}

    @cached_property
    def all_keys(self) -> dict[str, str]:
        """Key -> field of ModelConfig."""
        config = next(iter(self.family.presets.values()))
        keys = {
            "block_count": "encoder_layers" if config.encoder_layers or self.is_encoder else "decoder_layers",
            f"attention.layer_norm_{'rms_' if config.norm.kind.startswith('rms') else ''}epsilon": "norm.eps",
            **_REQUIRED,
        }
        for key, name in _OPTIONAL.items():
            if name in self.family.json_names and (config.position.kind == "rotary" or not key.startswith("rope.")):
                keys[key] = name
        return {**keys, **self.keys}

    def read(self, contents: Contents) -> dict[str, Any]:
        """The fields of config.json. Raises UserError for a key that is missing or misshapen."""
        fields = self.json_names
        values = {key: contents.get(key) for key in self.all_keys}
        raw = {
            fields[self.all_keys[key]]: _number(f"{self.name}.{key}", value)
            for key, value in values.items()
            if value is not None
        }
        for key, name in self.all_keys.items():
            if key not in _OPTIONAL and key not in self.keys and fields[name] not in raw:
                raise UserError(f"The key {self.name}.{key} is missing.")
        if contents.get("expert_count") and "feed_forward.experts.count" not in fields:
            raise UserError(f"A mixture of experts is not supported in the GGUF architecture {quote(self.name)}.")
        inferred = _inferred(contents, fields)
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
        lines = (line for row in self.family.rows_of(config) if not row.alias for line in _without_parts(row))
        rows = [self._row(line, config) for line in lines]
        if self.head == "none":
            return [*filter(None, rows), *(row(theirs, ours) for theirs, ours in DENSE.items())]
        # llama.cpp multiplies by `output.weight` and nothing else, so where the head of a T5 1.0 is its token embedding
        # over sqrt(d_model), the file needs that product.
        scale = 1 / math.sqrt(config.d_model)
        scaled = Operation(lambda tensor, _: [tensor / scale], lambda tensors: tensors[0] * scale)
        head = alias("output.weight", "token_embedding.table.weight")
        return [*filter(None, rows), replace(head, operation=scaled if config.head.scaled else COPY)]

    def _row(self, line: Row, config: ModelConfig) -> Row | None:
        """The row of a family's as GGUF has it, with matrices of [out, in]; None where it has no such tensor."""
        layers = [match.groups() for name in line.ours if (match := _OURS.fullmatch(name))]
        names = {**_NAMES, **self.names}
        name = self.names.get(line.theirs.split(".")[-2:][0]) or names.get(" ".join(layer for _, layer, _ in layers))
        if name is None:
            return None
        (stack, layer, part), operation = layers[0], line.operation
        if operation.experts is not None:
            name += "_exps"
        elif self.neighboring and layer in ("attention.query", "attention.key"):
            heads, kv_heads = config.attention.heads, config.attention.kv_heads
            count = kv_heads or heads if layer == "attention.key" else heads
            operation = head_operations(config, "neighbors")(count)
        elif (layout := operation.heads) is not None and len(layers) > 1:
            # All queries, then all keys, then all values.
            counts = (layout.groups * count for count in layout.counts)
            operation = split_heads(layout.head_dim, *counts, order=layout.order)
        elif operation is TRANSPOSE:
            operation = SPLIT if len(layers) > 1 else COPY
        elif layer.endswith("norm") and config.norm.kind == "rms_offset":
            operation = ONE_MORE
        elif layer == "position.table" and config.position.skip_padding:
            operation = _rows_from(config.position.offset)
        prefix = _PREFIXES.get(stack, "") if config.is_encoder_decoder else ""
        part = part or ("weight" if layer == "attention.sinks" else "bias")
        return Row(f"{prefix}{name}.{part}", line.ours, operation, requires=line.requires)


def _without_parts(line: Row) -> Sequence[Row]:
    """The lines in which the matrices of experts are one tensor of each kind, in the place of the family's."""
    count = line.operation.experts if line.part is None else line.part[1]
    if count is None:
        return [line]
    first = line.part is None or line.part[0] == 0
    return [replace(line, ours=(ours,), operation=stacked(count), part=None) for ours in line.ours if first]


ONE_MORE = Operation(lambda tensor, _: [tensor.float() - 1], lambda tensors: tensors[0].float() + 1)
"""llama.cpp's RMSNorm multiplies by what is stored, Gemma's by 1 + weight."""


def _rows_from(first: int) -> Operation:
    """A table of positions that begins with that of the first token, as llama.cpp has it."""
    return Operation(lambda tensor, _: [F.pad(tensor, (0, 0, first, 0))], lambda tensors: tensors[0][first:])


def _number(key: str, value: Any) -> int | float:
    if isinstance(value, list) and value and all(v == value[0] for v in cast("list[Any]", value)):
        value = cast("list[Any]", value)[0]  # one number for each layer
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise UserError(f"The key {key} should be one positive number, not {quote(value)}.")
    return value


def _inferred(contents: Contents, fields: Mapping[str, str]) -> dict[str, Any]:
    """Fields of ModelConfig that follow from which tensors there are, and how much of a head turns, if it is a part."""
    if "token_embd.weight" not in contents.shapes:
        raise UserError("The tensor token_embd.weight is missing.")
    is_partial = "position.rotary_fraction" in fields
    names = ["attention.key_length", "attention.value_length", *(() if is_partial else ("rope.dimension_count",))]
    widths = {key: contents.get(key) for key in names if contents.get(key) is not None}
    if len(set(widths.values())) > 1 and "attention.latent.rank" not in fields:
        listed = ", ".join(f"{key} {width}" for key, width in widths.items())
        raise UserError(f"Keys, values and rotary positions of different widths are not supported ({listed}).")
    inferred: dict[str, Any] = {
        "vocab_size": contents.shapes["token_embd.weight"][0],
        "embedding.tied": contents.output != "own",
        "embedding.segments": contents.shapes.get("token_types.weight", (0,))[0],
        "attention.bias": "blk.0.attn_q.bias" in contents.shapes,
        "feed_forward.bias": "blk.0.ffn_up.bias" in contents.shapes,
    }
    if is_partial:
        width = contents.get("embedding_length") // contents.get("attention.head_count")
        inferred["position.rotary_fraction"] = (contents.get("rope.dimension_count") or width) / width
    return inferred
