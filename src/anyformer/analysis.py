"""Costs of a model: parameters, arithmetic and memory of each of its parts."""

from dataclasses import dataclass

from torch import nn

from anyformer.blocks.experts import Experts
from anyformer.blocks.linear import GroupedLinear
from anyformer.blocks.position import DisentangledPosition
from anyformer.blocks.stack import Stack
from anyformer.config import ModelConfig
from anyformer.model import skeleton


@dataclass(frozen=True)
class PartCost:
    """The cost of one part of a model, such as the attention of all decoder layers."""

    name: str
    layers: int
    """Number of occurrences."""
    parameters: int
    """Weights of all its occurrences; what is shared counts once, where it is first used."""
    flops: int
    """Floating-point operations of a forward pass for one token (of its stack), a multiply-add being two."""


def part_costs(config: ModelConfig, context: int) -> list[PartCost]:
    """The cost of each part of a model.

    Matrix multiplications count 2 for each weight, attention 2 * heads * head_dim for each key and each value that is
    attended to (Chowdhery et al. 2022, appendix B); norms, softmax and lookups are left out, as is usual. Each token is
    taken to attend to `context` tokens, or to its window.

    Args:
        context: Tokens in the text (and in the source).
    """
    model = skeleton(config)
    rows = [PartCost("token embedding", 1, _parameters(model.token_embedding, model.source_embedding), 0)]
    for name, stack in (("encoder", model.encoder), ("decoder", model.decoder)):
        if stack is not None:
            rows += _stack(name, stack, context)
    is_tied = config.head.kind == "language_model" and config.embedding.tied
    tied = model.token_embedding.weight.shape.numel() if is_tied else 0
    head = _parameters(model.pooler, model.head)
    if head or tied:
        rows.append(PartCost("head", 1, head, _matmul_flops(model.pooler, model.head) + 2 * tied))
    return [part for part in rows if part.parameters or part.flops]


def _stack(name: str, stack: Stack, context: int) -> list[PartCost]:
    blocks = stack.layers
    attention = [block.attention for block in blocks]
    cross = [block.cross_attention for block in blocks if block.cross_attention is not None]
    norms = [part for block in blocks for name, part in block.named_children() if name.endswith("_norm")]
    embedding, widths = stack.embedding, attention[0].heads * (attention[0].head_dim + attention[0].value_dim)
    attended = sum(min(context, window or context) for window in stack.windows)
    if isinstance(stack.position, DisentangledPosition):
        attended += len(blocks) * min(stack.position.config.buckets, 2 * context)  # vectors of distances, both ways

    def part(label: str, layers: int, *modules: nn.Module | None, scores: int = 0) -> PartCost:
        return PartCost(f"{name} {label}", layers, _parameters(*modules), _matmul_flops(*modules) + scores)

    return [
        part("n-grams", 1, embedding.ngrams),
        # with the segment vectors and the norm of the embeddings, where there are any
        part("positions", 1, stack.position, embedding.segments, embedding.norm),
        part("projection", 1, embedding.projection),
        part("attention", len(blocks), *attention, scores=2 * widths * attended),
        part("cross-attention", len(blocks), *cross, scores=2 * widths * context * len(cross)),
        part("feed-forward", len(blocks), *(block.feed_forward for block in blocks)),
        part("norms", len(blocks), *norms, stack.final_norm),
    ]


def _parameters(*modules: nn.Module | None) -> int:
    own = {id(weight): weight for module in modules if module is not None for weight in module.parameters()}
    return sum(weight.numel() for weight in own.values())


def _matmul_flops(*modules: nn.Module | None) -> int:
    """Operations of all matrix multiplications in these modules, for one token."""
    parts = [part for module in modules if module is not None for part in module.modules()]
    linear = sum(2 * part.weight.numel() for part in parts if isinstance(part, nn.Linear))
    return linear - 2 * sum(map(_unused, parts))


def _unused(module: nn.Module) -> int:
    """Weights of the experts that don't compute a token."""
    if not isinstance(module, Experts):
        return 0
    stacks = (part.weight.numel() for part in module.modules() if isinstance(part, GroupedLinear))
    return sum(stacks) * (module.count - module.used) // module.count


def unused_parameters(config: ModelConfig) -> int:
    """The weights of a mixture of experts that a token does not go to, of all layers; others have none."""
    return 0 if config.feed_forward.experts is None else sum(map(_unused, skeleton(config).modules()))


def cache_bytes_per_token(config: ModelConfig) -> int:
    """Memory that the keys and values of one token take while a decoder generates; a window keeps it from growing."""
    attention = config.decoder_attention or config.attention
    head_dim = attention.head_dim or config.d_model // attention.heads
    numbers = 2 * (attention.kv_heads or attention.heads) * head_dim
    if attention.latent is not None:
        numbers = attention.latent.rank + attention.latent.rotary_dim
    return 2 * config.decoder_layers * numbers  # bytes, of 16 bits each


@dataclass(frozen=True)
class TrainingFlops:
    """Floating-point operations of a training step: for each token that an encoder-decoder's encoder reads (`source`),
    and for any other.
    """

    source: int
    token: int


def step_flops(config: ModelConfig, rows: int, tokens: int, source: int = 0, predicted: int | None = None) -> int:
    """Floating-point operations of a training step on a batch whose two sides may differ in length.

    As `training_flops`, but an encoder-decoder's cross-attention reads a source of its own length, whose keys and
    values are computed once for each of its tokens, and logits are counted where there is something to predict.

    Args:
        tokens, source: Tokens of a row, and of its source.
        predicted: Tokens of the batch that have a target; None: all.
    """
    costs = {part.name: part.flops for part in part_costs(config, tokens)}
    head = costs.pop("head", 0)
    forward = sum(costs.values()) * tokens
    if config.is_encoder_decoder:
        cross_attention = "decoder cross-attention"
        of_source = {part.name: part.flops for part in part_costs(config, source)}
        encoder = sum(flops for name, flops in of_source.items() if name.startswith("encoder"))
        decoder = sum(flops for name, flops in costs.items() if name.startswith("decoder") and name != cross_attention)
        stack = skeleton(config).decoder
        assert stack is not None
        blocks = [block.cross_attention for block in stack.layers]
        memory = sum(_matmul_flops(block.key, block.value) for block in blocks if block is not None)
        forward = (encoder + memory) * source + (decoder + of_source[cross_attention] - memory) * tokens
    return 3 * (rows * forward + head * (rows * tokens if predicted is None else predicted))


def training_flops(config: ModelConfig, context: int) -> TrainingFlops:
    """A step costs three forward passes, as the backward pass costs two (Kaplan et al. 2020, section 2.1)."""
    costs = part_costs(config, context)
    both = config.is_encoder_decoder
    source = sum(part.flops for part in costs if both and part.name.startswith("encoder"))
    return TrainingFlops(3 * source, 3 * (sum(part.flops for part in costs) - source))
