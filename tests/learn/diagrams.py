"""Drawn configs, and drawings taken apart."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from hypothesis import strategies as st

from anyformer.config import ModelConfig
from anyformer.families import PRESETS
from anyformer.schema import ConfigError
from tests.parity.presets import shrunk

SVG = "{http://www.w3.org/2000/svg}"

_OTHERS = {"then": ".o", "position": {"kind": "none"}, "feed_forward": {"width": 9}}
CHANGES: dict[str, tuple[Any, ...]] = {
    "vocab_size": (61, 1_234_567),
    "d_model": (48,),
    "encoder_layers": (0, 1, 7),
    "decoder_layers": (0, 1, 7),
    "max_length": (32,),
    "source_vocab_size": (None, 70),
    "attention.heads": (2, 12),
    "attention.kv_heads": (None, 1, 2, 12),
    "attention.head_dim": (None, 12),
    "attention.bias": (False, True),
    "attention.output_bias": (False, True),
    "attention.scale": (None, 1.0, 0.25),
    "attention.scale_by_layer": (False, True),
    "attention.window": (None, 3),
    "attention.qk_norm": ("none", "head", "width"),
    "attention.softcap": (None, 30.0),
    "attention.sinks": (False, True),
    "other_layers": (None, {"first": "..", "window": 3}, {"then": "oo.", "window": 5}, {"then": "."}, _OTHERS),
    "attention.dropout": (0.0, 0.3),
    "decoder_attention": (None, {"heads": 3, "kv_heads": 1}),
    "decoder_feed_forward": (None, {"width": 9, "gated": True}),
    "feed_forward.width": (41,),
    "feed_forward.activation": ("relu", "relu_squared", "gelu_tanh", "silu"),
    "feed_forward.gated": (False, True),
    "feed_forward.bias": (False, True),
    "feed_forward.limit": (None, 7.0),
    "feed_forward.up_offset": (0.0, 1.0),
    "feed_forward.experts": (None, {"count": 4, "used": 2}),
    "position.kind": ("none", "sinusoidal", "learned", "rotary", "relative"),
    "position.layout": ("interleaved", "halves", "fairseq"),
    "position.offset": (0, 3),
    "position.theta": (10_000.0, 1e6),
    "position.scaling": (None, {"kind": "linear", "factor": 2.0}),
    "position.buckets": (8, 32),
    "position.max_distance": (64, 128),
    "norm.kind": ("layer", "rms", "rms_offset"),
    "norm.eps": (1e-6, 1e-5),
    "norm.placement": ("pre", "post"),
    "norm.final": (None, True, False),
    "embedding.tied": (False, True),
    "embedding.scaled": (False, True),
    "embedding.segments": (0, 1, 2),
    "embedding.norm": (False, True),
    "embedding.ngrams": (1, 3),
    "embedding.ngram_rows": (50, 100),
    "head.kind": ("none", "language_model", "classification", "token_classification"),
    "head.transform": (None, "gelu"),
    "head.bias": ("none", "learned", "fixed"),
    "head.scaled": (False, True),
    "head.pooling": ("first", "last"),
    "head.pooler": (None, "tanh"),
    "head.labels": (2, 5),
    "head.label_bias": (False, True),
    "init.std": (0.02, 0.5),
    "dropout": (0.0, 0.2),
    "special_tokens.eos": ((), (3, 4)),
}


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    """A preset, small, with some fields changed where that is allowed."""
    config = shrunk(draw(st.sampled_from(sorted(PRESETS))))
    for field in draw(st.lists(st.sampled_from(sorted(CHANGES)), max_size=6)):
        config = changed(config, field, draw(st.sampled_from(CHANGES[field])))
    return config


def changed(config: ModelConfig, field: str, value: Any) -> ModelConfig:
    """The config with another value of a field, or as it is where that describes no transformer."""
    try:
        return config.replace(**{field: value})
    except ConfigError:
        return config


@dataclass(frozen=True)
class Drawing:
    """A drawing, taken apart."""

    text: str

    @cached_property
    def root(self) -> Element:
        return ElementTree.fromstring(self.text)

    def words(self, tag: str) -> list[str]:
        """The texts of all elements of a tag, such as desc."""
        return ["".join(element.itertext()) for element in self.root.iter(SVG + tag)]

    def at(self, place: str, tag: str = "") -> list[Element]:
        """What stands at a place: its texts, or its groups."""
        return [each for each in self.root.iter() if each.get("data-place") == place and each.tag.endswith(tag)]

    def lit(self) -> set[str]:
        """The places of all texts and groups that are marked themselves."""
        return {
            each.get("data-place", "")
            for each in self.root.iter()
            if each.get("data-place") and "lit" in each.get("class", "").split()
        }
