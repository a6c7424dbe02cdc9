"""The architectures of GGUF that models are read from and written as.

A Mistral is a `llama` there, and its window is not stored.
"""

import math
from itertools import pairwise
from typing import Any, cast

from anyformer.checkpoint.gguf.architecture import DENSE, Architecture
from anyformer.checkpoint.gguf.contents import Contents, layers, rope_factors, same_factors
from anyformer.checkpoint.gguf.mixtures import GRANITE, MIXTRAL, MIXTURES, ROPE_BUFFERS
from anyformer.config import ModelConfig, SpecialTokens, diff
from anyformer.errors import UserError, quote
from anyformer.families import canonical, to_huggingface
from anyformer.families.base import Raw, none_if_default, supported
from anyformer.families.rotary import LAYER_TYPES, window_of, write_layer_types
from anyformer.families.rows import Row, resolve
from anyformer.model import skeleton


def _write_rotary(config: ModelConfig) -> Raw:
    return {"rope.dimension_count": int(config.head_dim * config.position.rotary_fraction)}


def _plain(contents: Contents) -> Raw:
    """A model without biases, whose head is the token table."""
    return {"tie_word_embeddings": True, "attention_bias": False}


def _falcon(contents: Contents) -> Raw:
    """llama.cpp knows its parallel blocks alone, without biases."""
    heads, kv_heads = contents.get("attention.head_count"), contents.get("attention.head_count_kv") or 1
    grouped = kv_heads not in (1, heads)
    fixed = {"parallel_attn": True, "num_ln_in_parallel_attn": 1, "bias": False}
    return {**fixed, "new_decoder_architecture": grouped, "multi_query": kv_heads == 1, "num_kv_heads": kv_heads}


_POOLING = {"mean": 1, "first": 2, "last": 3}
"""llama.cpp's numbers; 0 is none, and 4 scores pairs of texts."""


def _bert_adjust(config: ModelConfig, contents: Contents) -> ModelConfig:
    # Without segments it is a DistilBERT to Hugging Face.
    model_type = "bert" if config.embedding.segments else "distilbert"
    return _read_pooling(config, contents).replace(head={"pooler": None}, model_type=model_type)


def _write_pooling(config: ModelConfig) -> Raw:
    widths = (config.d_model, *config.pooling.dense)
    sizes = {
        f"dense_{place}_feat_{end}": width
        for place, pair in enumerate(pairwise(widths), 2)
        for end, width in zip(("in", "out"), pair, strict=True)
    }
    return {"attention.causal": False, "pooling_type": _POOLING.get(config.pooling.kind), **sizes}


def _read_pooling(config: ModelConfig, contents: Contents) -> ModelConfig:
    kinds = {number: kind for kind, number in _POOLING.items()}
    widths = [contents.shapes[name][0] for name in DENSE if name in contents.shapes]
    return config.replace(pooling={"kind": kinds.get(contents.get("pooling_type"), "mean"), "dense": widths})


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
    return {_WINDOW: window_of(config), _PERIOD: _period(config, period, first=1)}


def _period(config: ModelConfig, usual: int, first: int) -> int | None:
    """Layers of which one sees all; None: as many as usual. The first layer has the number `first`."""
    types = write_layer_types(config)
    numbers = range(first, first + len(types))
    periods = (n for n in (usual, *range(2, len(types) + 2)) if types == [LAYER_TYPES[i % n != 0] for i in numbers])
    return none_if_default(next(periods, usual), usual)


def _local_theta(config: ModelConfig) -> Raw:
    other = config.other_layers and config.other_layers.position
    return {_LOCAL_THETA: None if config.other_layers is None else (other or config.position).theta}


def _both_sides(config: ModelConfig) -> int | None:
    """The window as files of encoders count it, on both sides of a token."""
    window = config.other_layers and config.other_layers.window
    return None if window is None else 2 * (window - 1)


def _modern_bert(contents: Contents) -> Raw:
    """Every third layer, from the first on, sees the whole text; llama.cpp knows no biases."""
    window, period, count = contents.get(_WINDOW), contents.get(_PERIOD) or 3, layers(contents)
    theta = contents.get("rope.freq_base") or 10_000.0
    return {
        "layer_types": [LAYER_TYPES[bool(window) and layer % period != 0] for layer in range(count)],
        "local_attention": window or 0,
        "global_rope_theta": theta,
        "local_rope_theta": contents.get(_LOCAL_THETA) or theta,
        **dict.fromkeys(("attention_bias", "mlp_bias"), False),
    }


def _gemma2(contents: Contents) -> Raw:
    """Fields that llama.cpp decides by itself: it has no biases, and knows the largest model by its layers."""
    is_largest = layers(contents) in (46, 62)
    heads, width = contents.get("attention.head_count"), contents.get("embedding_length")
    scalar = width // heads if is_largest else contents.get("attention.key_length") or width // heads
    return {"query_pre_attn_scalar": scalar, "attention_bias": False}


def _gpt_oss(contents: Contents) -> Raw:
    """llama.cpp has the window in layers 0, 2, 4 ..., biases everywhere, and rounds YaRN's range."""
    is_scaled = contents.get("rope.scaling.type") not in (None, "none")
    return {
        "sliding_window": contents.get(_WINDOW),
        "attention_bias": True,
        "tie_word_embeddings": False,
        **({} if is_scaled else {"rope_parameters": {"rope_type": "default"}}),
    }


ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture
    for architecture in (
        Architecture("llama", ("llama", "mistral"), neighboring=True, ignored=ROPE_BUFFERS),
        Architecture("qwen2", ("qwen2",), ignored=ROPE_BUFFERS),
        Architecture("qwen3", ("qwen3",), ignored=ROPE_BUFFERS),
        Architecture("gemma", ("gemma",), inferred=_plain),
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
            "gemma-embedding",
            ("gemma3_text",),
            is_encoder=True,
            has_windows=True,
            inferred=lambda contents: {
                **_windows(contents, 6),
                "query_pre_attn_scalar": contents.get("attention.key_length"),
                "rope_local_base_freq": contents.get(_LOCAL_THETA) or 10_000.0,
                "attention_bias": False,
                "use_bidirectional_attention": True,
            },
            more=lambda config: {
                **_write_windows(config, 6),
                **_local_theta(config),
                _WINDOW: _both_sides(config),
                **_write_pooling(config),
            },
            adjust=_read_pooling,
        ),
        Architecture(
            "modern-bert",
            ("modernbert",),
            has_windows=True,
            inferred=_modern_bert,
            more=lambda config: {
                "rope.freq_base": config.position.theta,
                **_local_theta(config),
                _WINDOW: _both_sides(config),
                _PERIOD: _period(config, 3, first=0),
                **_write_pooling(config),
            },
            adjust=_read_pooling,
        ),
        Architecture(
            "olmo2",
            ("olmo3", "olmo2"),
            has_windows=True,
            inferred=lambda contents: {
                **_windows(contents, 4),
                # One theta for all layers; the scaling holds for those without a window.
                "rope_parameters": {LAYER_TYPES[1]: {"rope_theta": contents.get("rope.freq_base") or 10_000.0}},
                "attention_bias": False,
                "tie_word_embeddings": False,
            },
            more=lambda config: _write_windows(config, 4),
            adjust=lambda config, contents: config if config.other_layers else config.replace(model_type="olmo2"),
        ),
        Architecture(
            "smollm3",
            ("smollm3",),
            neighboring=True,
            inferred=lambda contents: {"attention_bias": False, "mlp_bias": False},
            ignored=ROPE_BUFFERS,
        ),
        Architecture(
            "gptneox",
            ("gpt_neox",),
            inferred=lambda contents: {
                "use_parallel_residual": contents.get("use_parallel_residual") is not False,
                "tie_word_embeddings": False,
                "attention_bias": True,
            },
            more=lambda config: {**_write_rotary(config), "use_parallel_residual": config.norm.placement == "parallel"},
        ),
        Architecture(
            "phi2",
            ("phi",),
            names={"head": "output"},
            inferred=lambda contents: {"tie_word_embeddings": False},
            more=_write_rotary,
        ),
        Architecture("phi3", ("phi3",), more=_write_rotary),
        GRANITE,
        *MIXTURES,
        Architecture(
            "gpt-oss",
            ("gpt_oss",),
            has_windows=True,
            keys={"expert_feed_forward_length": "feed_forward.width"},
            names={"feed_forward_norm": "blk.{i}.post_attention_norm", "attention.sinks": "blk.{i}.attn_sinks"},
            inferred=_gpt_oss,
            more=lambda config: {_WINDOW: config.other_layers and config.other_layers.window},
        ),
        Architecture("command-r", ("cohere",), keys={"logit_scale": "head.scale"}, inferred=_plain),
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
            more=_write_pooling,
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


def described(contents: Contents) -> Architecture:
    """The architecture of a file. Raises UserError for one that is not supported."""
    if contents.architecture == MIXTRAL.name and contents.get("expert_count"):
        return MIXTRAL
    return supported(ARCHITECTURES, contents.architecture, "The GGUF architecture")


def from_gguf(contents: Contents) -> ModelConfig:
    """The model that a GGUF file describes. Raises UserError for what is not supported, missing or misshapen."""
    kind = described(contents)
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
    named = (kind for kind in (*ARCHITECTURES.values(), MIXTRAL) if model_type in kind.model_types)
    return next((kind for kind in named if (kind.head == "none") == config.is_encoder_only), None)


def to_gguf(config: ModelConfig) -> tuple[Architecture, dict[str, Any]]:
    """The architecture that can hold this model, and the metadata that describes it, without the tokenizer's.

    Raises UserError where GGUF, or llama.cpp that computes by it, can't express the model, naming what is in the way.
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
    pooling = {name: getattr(config.pooling, name) for name in ("kind", "dense", "dense_bias", "dense_activation")}
    if not config.is_encoder_only:
        pooling = {}
    # A text has no padding, and the file's table of positions begins with that of its first token.
    position = {"offset": 0, "skip_padding": False} if config.is_encoder_only else {}
    rates = {part: {"dropout": 0.0} for part in ("attention", "feed_forward", "embedding", "head")}
    config = canonical(config.replace(position=position))
    scaling = config.position.scaling
    if scaling is not None and scaling.kind == "yarn":
        usual = 0.1 * math.log(scaling.factor) + 1
        if math.isclose(scaling.attention_factor or usual, usual, rel_tol=1e-6):
            config = config.replace(**{"position.scaling.attention_factor": None})
    mixture, choice = config.feed_forward.experts, {}
    if mixture is not None:
        ungrouped = {"groups": 1, "used_groups": 1} if mixture.used_groups == mixture.groups else {}
        choice = {"feed_forward.experts": {"balance": 0.0, **ungrouped}}
    return config.replace(dropout=0.0, special_tokens=SpecialTokens(), pooling=pooling, **rates, **choice)


def _contents(config: ModelConfig, kind: Architecture, metadata: dict[str, Any]) -> Contents:
    state = skeleton(config).state_dict()
    shapes = {
        theirs: tuple(line.write(state).shape) for theirs, line in table(kind, config, state).items() if not line.alias
    }
    tied = config.head.kind != "language_model" or config.embedding.tied
    output = "own" if not tied else "scaled" if config.head.scaled else "same"
    # Other architectures of llama.cpp don't read this tensor.
    factors = rope_factors(config) if ROPE_BUFFERS[0] in kind.ignored else None
    return Contents(metadata, shapes, output, factors)


def table(kind: Architecture, config: ModelConfig, ours: Any) -> dict[str, Row]:
    """The row for every tensor name of a model with these weights. Raises UserError for one that has no place."""
    try:
        return resolve(kind.rows(config), ours)
    except UserError as error:
        raise UserError(str(error).replace("This model type", f"GGUF's {kind.name} architecture")) from error
