"""Sizes of models, made equal.

Depth and width decide most at budgets of minutes (2606.05186), so they are the same for all, and what is made to fit is
the inner width of the feed-forward blocks. An encoder-decoder has two stacks:

    --match parameters   half of the blocks in each: as many blocks, and as many weights
    --match flops        all of them in each: a token passes as many blocks, and costs as much, with twice the weights
                         (Raffel et al. 2020, section 3.2.2)
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from anyformer.blocks.stack import Stack
from anyformer.compare.result import ComparedModel
from anyformer.config import AttentionConfig, FeedForwardConfig, ModelConfig
from anyformer.errors import UserError
from anyformer.families import ALIASES, FAMILIES
from anyformer.model import skeleton
from anyformer.schema import differences
from anyformer.spec import read_config

D_MODEL, BLOCKS, HEADS = 128, 4, 4
"""The size of llama-nano, which learns something in minutes on two cores."""
TOLERANCE = 0.05
_LEAST_WIDTH, _WIDEST = 8, 16
"""Inner width of a feed-forward block (and width of embeddings): at least, and at most as a multiple of d_model."""
_EXPERTS = 8
"""Experts at most: more would be narrower than a small model can use."""

Size = Callable[[ModelConfig], float]


def read_models(specs: Sequence[str], match: str) -> list[ComparedModel]:
    """Read models as `read_config` does. Families get the size of the first that has one, or else of `llama-nano`."""
    read = [read_config(spec) for spec in specs]
    sized = next((each.config for each in read if not _is_family(each.spec)), None)
    models: list[ComparedModel] = []
    for each, name in zip(read, _names(specs), strict=True):
        config, notes = each.config, ()
        if _is_family(each.spec):
            base = read_config(each.spec.partition(":")[0]).config
            small, notes = scaled(base, sized, match)
            config = small.replace(**{field: value for field, (_, value) in differences(base, config, "")})
        models.append(ComparedModel(each.spec, config, each.directory, name=name, notes=notes))
    return models


def scaled(config: ModelConfig, like: ModelConfig | None, match: str) -> tuple[ModelConfig, tuple[str, ...]]:
    """A family at the size of another model: everything but sizes, dropout and what belongs to long texts stays.

    Args:
        like: has d_model, heads and blocks; None: the default size.
        match: decides on the blocks of encoder-decoders, see above.

    Returns:
        The model, and sentences on what was left out.
    """
    d_model = D_MODEL if like is None else like.d_model
    heads = HEADS if like is None else (like.decoder_attention or like.attention).heads
    blocks = BLOCKS if like is None else depth(like, match)
    layers = (blocks if config.encoder_layers else 0, blocks if config.decoder_layers else 0)
    if config.is_encoder_decoder and match != "flops":
        layers = (math.ceil(blocks / 2), max(1, blocks // 2))
    shrink = d_model / config.d_model
    spread = config.init.std / math.sqrt(shrink) if config.init.kind != "t5" else d_model**-0.5
    changes: dict[str, Any] = {
        "d_model": d_model,
        "embedding.width": config.embedding.width and max(_LEAST_WIDTH, round(config.embedding.width * shrink)),
        "dropout": 0.0,
        "embedding.dropout": 0.0,
        "encoder_layers": layers[0],
        "decoder_layers": layers[1],
        "position.scaling": None,
        "position.theta": min(config.position.theta, 10_000.0),
        "init.std": spread,
    }
    for stack in ("", "decoder_"):
        attention: AttentionConfig | None = getattr(config, f"{stack}attention")
        feed_forward: FeedForwardConfig | None = getattr(config, f"{stack}feed_forward")
        if attention is not None:
            changes[f"{stack}attention"] = _attention(attention, heads, d_model)
        if feed_forward is not None:
            changes[f"{stack}feed_forward"] = _feed_forward(feed_forward, shrink)
    if config.other_layers is not None and config.other_layers.feed_forward is not None:
        changes["other_layers.feed_forward"] = _feed_forward(config.other_layers.feed_forward, shrink)
    small = config.replace(**changes)
    notes = [f"scaled down from d_model {config.d_model} to {d_model}, and {_blocks(config)} to {_blocks(small)}"]
    if max(config.dropout, config.attention.dropout, config.feed_forward.dropout, config.embedding.dropout):
        notes.append("without dropout, for which a short run has no use")
    if small.feed_forward.experts != config.feed_forward.experts:
        notes.append(f"with {_EXPERTS} experts")
    if small.position != config.position:
        notes.append("rotary positions of theta 10,000 without scaling, as texts are short")
    return small, tuple(notes)


def _feed_forward(feed_forward: FeedForwardConfig, shrink: float) -> FeedForwardConfig:
    """A narrower feed-forward block, of fewer experts and in one group where there are many."""
    experts, width = feed_forward.experts, max(_LEAST_WIDTH, round(feed_forward.width * shrink))
    if experts is not None and experts.count > _EXPERTS:
        experts = replace(experts, count=_EXPERTS, used=min(experts.used, 2), groups=1, used_groups=1, group_best=1)
    return replace(feed_forward, width=width, experts=experts, dropout=0.0)


def _attention(attention: AttentionConfig, heads: int, d_model: int) -> AttentionConfig:
    """Attention with other heads, of which about the same share has keys and values."""
    groups = round(attention.heads / (attention.kv_heads or attention.heads))
    fitting = [count for count in range(1, heads + 1) if heads % count == 0]
    shared = min(fitting, key=lambda count: abs(math.log(heads / count / groups)))
    kv_heads = None if attention.kv_heads is None or shared == heads else shared
    head_dim = None if d_model % heads == 0 else max(2, 2 * (d_model // heads // 2))
    latent = attention.latent
    if latent is not None:
        shrink = (head_dim or d_model // heads) / (attention.head_dim or 1)
        latent = replace(
            latent,
            rank=max(2, round(latent.rank * shrink)),
            rotary_dim=max(2, 2 * round(latent.rotary_dim * shrink / 2)),
            value_dim=max(2, round(latent.value_dim * shrink)),
            query_rank=latent.query_rank and max(2, round(latent.query_rank * shrink)),
        )
    return replace(attention, heads=heads, kv_heads=kv_heads, head_dim=head_dim, latent=latent, dropout=0.0)


def matched(models: Sequence[ComparedModel], size: Size, what: str) -> list[ComparedModel]:
    """Models of the same size: that of the first one that is compared as it is, within 5%, or else of the first one
    that all others can have within 1%, preferably one whose layers share no weights.

    Raises:
        UserError: one can't be matched; `what` is the size's name, for people.
    """
    first, *others = sorted(models, key=lambda model: (not _is_fixed(model), model.config.distinct_layers is not None))
    likes = [first] if _is_fixed(first) else [first, *others]
    made, refused = list[list[ComparedModel]](), list[UserError]()
    for like in likes:
        try:
            made.append([model if model is like else _matched(model, like, size, what) for model in models])
        except UserError as error:
            refused.append(error)
            continue
        sizes = [size(model.config) for model in made[-1]]
        if max(sizes) < 1.01 * min(sizes):
            return made[-1]
    if not made:
        raise refused[0]
    return made[0]


def _matched(model: ComparedModel, like: ComparedModel, size: Size, what: str) -> ComparedModel:
    own, target = size(model.config), size(like.config)
    if abs(own / target - 1) <= (TOLERANCE if _is_fixed(model) else 0.001):
        return model
    if _is_fixed(model):
        raise UserError(
            f"{model.spec} has {own:,.0f} {what} and {like.spec} has {target:,.0f}, and neither is to be changed: "
            "compare models of one size, or give --match none."
        )
    width = model.config.feed_forward.width
    slope = (size(with_width(model.config, width + 64)) - own) / 64
    fitting = round(width + (target - own) / slope)
    layers = model.config.encoder_layers + model.config.decoder_layers
    # Few blocks that all layers share have to be as wide as many.
    widest = _WIDEST * model.config.d_model * layers // (model.config.distinct_layers or layers)
    fitting = min(max(fitting, _LEAST_WIDTH), widest)
    config = with_width(model.config, fitting)
    if abs(size(config) / target - 1) > TOLERANCE:
        raise UserError(
            f"{model.spec} can't be matched with {like.spec}, which has {target:,.0f} {what}: with the nearest width "
            f"of its feed-forward blocks it has {size(config):,.0f}. Name families (gpt2, llama, bert), which are "
            "scaled, or give --match none."
        )
    note = f"feed_forward.width {width} -> {fitting}, to have as many {what} as {like.spec}"
    return replace(model, config=config, notes=(*model.notes, note))


def with_width(config: ModelConfig, width: int) -> ModelConfig:
    """A model with another inner width of its feed-forward blocks; a decoder's own keeps its proportion."""
    made = config.replace(feed_forward={"width": width})
    if config.decoder_feed_forward is None:
        return made
    own = max(1, round(config.decoder_feed_forward.width * width / config.feed_forward.width))
    return made.replace(decoder_feed_forward={"width": own})


def parameters_outside_embeddings(config: ModelConfig) -> int:
    """Weights of the blocks, and of what a head has beside an output matrix (Kaplan et al. 2020, section 2.1).

    Left out are tables of tokens, segments, positions and n-grams, and what has a row for each token of the vocabulary.
    """
    model = skeleton(config)
    parts: list[nn.Module | None] = [model.token_embedding, model.source_embedding]
    for stack in (model.encoder, model.decoder):
        if isinstance(stack, Stack):
            parts += [stack.position, stack.embedding.ngrams, stack.embedding.segments]
    tables = {id(weight) for part in parts if part is not None for weight in part.parameters()}
    head = {id(weight) for weight in model.head.parameters()} if model.head is not None else set[int]()
    return sum(
        weight.numel()
        for weight in model.parameters()
        if id(weight) not in tables and not (id(weight) in head and len(weight) == config.vocab_size)
    )


def depth(config: ModelConfig, match: str) -> int:
    """Blocks that are compared: of all stacks, or those that a token passes."""
    stacks = config.encoder_layers, config.decoder_layers
    return max(stacks) if match == "flops" else sum(stacks)


def _blocks(config: ModelConfig) -> str:
    stacks = [count for count in (config.encoder_layers, config.decoder_layers) if count]
    return f"{' + '.join(map(str, stacks))} blocks"


def _is_family(spec: str) -> bool:
    """Whether a specification names a family without a size."""
    name = spec.partition(":")[0]
    return name in ALIASES or name in FAMILIES


def _is_fixed(model: ComparedModel) -> bool:
    """Whether a model is compared as it is: a file's or a run's."""
    spec = model.spec
    return model.directory is not None or "/" in spec or spec.endswith((".json", ".yaml", ".yml", ".gguf"))


def _names(specs: Sequence[str]) -> list[str]:
    """Short names, all different: the last part of a path, and a number where that is not enough."""
    names: list[str] = []
    for spec in specs:
        short = spec.rstrip("/").rpartition("/")[2] if "=" not in spec else spec
        number = sum(name == short or name.startswith(f"{short} (") for name in names)
        names.append(f"{short} ({number + 1})" if number else short)
    return names
