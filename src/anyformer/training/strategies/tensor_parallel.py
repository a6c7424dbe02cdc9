"""Tensor parallelism: the matrices of each layer are spread over some processes (Shoeybi et al. 2019, Megatron-LM).

::

    x ─ norm ─ enter ─ query, key, value ─ attention ─ output ─ leave ─ + ──▶    of heads
    x ─ norm ─ enter ─ up, gate ──────────────────────── down ─ leave ─ + ──▶    of inner activations, or experts

With it goes sequence parallelism (Korthikanti et al. 2022, Reducing Activation Recomputation in Large Transformer
Models, section 4.2.2): the tokens of the residual stream are spread over the same processes. `enter` gathers them, and
`leave` sums what the processes computed and scatters it; norms, dropout and what the backward pass needs are of a
process's own tokens. Embeddings and what follows a stack each process computes for itself, as a whole. The vocabulary
is spread as well.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Partial, Placement, Shard
from torch.distributed.tensor.parallel import ParallelStyle, parallelize_module
from typing_extensions import override

from anyformer import kernels
from anyformer.blocks.attention import MultiHeadAttention
from anyformer.blocks.block import TransformerBlock
from anyformer.blocks.embedding import TokenEmbedding
from anyformer.blocks.experts import Experts
from anyformer.blocks.feed_forward import FeedForward
from anyformer.blocks.head import LanguageModelHead
from anyformer.blocks.kv_cache import KeysValues
from anyformer.blocks.latent_attention import LatentAttention
from anyformer.blocks.linear import Dropout, Embedding, Linear, LowRankAdapter
from anyformer.blocks.pooling import select
from anyformer.blocks.position import DisentangledPosition, RelativePosition
from anyformer.blocks.stack import Stack
from anyformer.config import ModelConfig
from anyformer.errors import UserError
from anyformer.kernels import RelativeVectors
from anyformer.kernels.autocast import matmul_dtype
from anyformer.model import Transformer
from anyformer.quantization import bits_of
from anyformer.training.strategies.parallel_layers import (
    COLUMNS,
    DIVIDED,
    ROWS,
    SAME,
    SLICED,
    SUMMED,
    WHOLE,
    Parallel,
    Part,
    Style,
    VocabularyEmbedding,
    VocabularyHead,
    WidthNorm,
    enter,
    gather,
    leave,
    own_part,
    own_rows,
    redistribute,
)

_OF_OWN_TOKENS = {"weight": SUMMED, "bias": SUMMED}


class Tokens:
    """All tokens in each process: what a layer that is spread reads, and what its processes computed, summed."""

    def __init__(self, mesh: DeviceMesh) -> None:
        self.mesh = mesh

    def enter(self, x: Tensor) -> Tensor:
        """The input of a layer, whose gradients are summed."""
        return enter(x, self.mesh)

    def leave(self, x: Tensor) -> Tensor:
        """The sum of the outputs."""
        return leave(x, self.mesh)


class OwnTokens(Tokens):
    """The residual stream of a stack, [1, own tokens, d_model]: the rows of a batch one after the other, cut."""

    shape = torch.Size((0, 0))

    def begin(self, x: Float[Tensor, "batch time d_model"]) -> Float[Tensor, "1 own d_model"]:
        """This process's tokens of a batch."""
        self.shape = x.shape[:2]
        return self.own(x)

    def own(self, x: Float[Tensor, "batch time d_model"]) -> Float[Tensor, "1 own d_model"]:
        """This process's tokens, of vectors that are the same in all."""
        return own_part(x.flatten(0, 1), self.mesh, 0)[None]

    def all(self, x: Float[Tensor, "1 own width"], gradient: Placement = SAME) -> Float[Tensor, "batch time width"]:
        """All tokens; see `gather` for their gradients."""
        return gather(x[0], self.mesh, 0, self.shape.numel(), gradient).unflatten(0, self.shape)

    @override
    def enter(self, x: Tensor) -> Tensor:
        return self.all(x.to(matmul_dtype(x)), Partial())

    @override
    def leave(self, x: Tensor) -> Tensor:
        return redistribute(x.flatten(0, 1), self.mesh, Partial(), Shard(0))[None]


class SpreadLayer(Parallel):
    """A feed-forward block or self-attention whose matrices are spread."""

    stream: Tokens

    def forward(self, x: Tensor, *others: Any, **options: Any) -> Tensor:
        """Compute this process's heads, or inner activations, and sum up."""
        others = tuple(None if other is x else other for other in others)  # self-attention's keys are of x, too
        with kernels.counting_heads(self.stream.mesh.get_local_rank()):
            return self.stream.leave(super().forward(self.stream.enter(x), *others, **options))


class SpreadCrossAttention(SpreadLayer, MultiHeadAttention):
    """Attention to an encoder's output, which all processes have."""

    @override
    def keys_values(self, states: Tensor) -> KeysValues:
        return super().keys_values(enter(states, self.mesh))


class Followed(Parallel):
    """A layer of own tokens whose outputs are summed, or gathered for what follows.

    Attributes:
        follow: sums or gathers the outputs.
    """

    follow: Callable[[Tensor], Tensor]

    def forward(self, *inputs: Any, **options: Any) -> Tensor:
        """Compute the outputs, and sum or gather them."""
        return self.follow(super().forward(*inputs, **options))


class SpreadLatentAttention(Followed, LatentAttention):
    """Latent attention whose heads are spread."""

    @override
    def forward(self, *inputs: Any, **options: Any) -> Tensor:
        with kernels.counting_heads(self.mesh.get_local_rank()):
            return super().forward(*inputs, **options)


class SpreadExperts(Parallel, Experts):
    """A mixture of experts of which each process has some; each chooses those of all tokens."""

    stream: OwnTokens

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.stream.own(super().forward(self.stream.all(x)))

    @override
    def network(self, x: Tensor, *ends: Tensor) -> Tensor:
        """Compute the rows of this process's experts, of rows that are sorted by expert."""
        own, (last,) = own_rows(self.count, self.mesh), ends
        begin, end = F.pad(last, (1, 0))[[own.start, own.stop]].tolist()
        out = super().network(enter(x, self.mesh)[begin:end], last[own] - begin)
        return leave(F.pad(out, (0, 0, begin, len(x) - end)), self.mesh)


class SpreadPosition(Parallel, DisentangledPosition):
    """Vectors of relative positions, which heads that are spread are compared with."""

    @override
    def relative_vectors(self, queries: Tensor, keys: Tensor) -> RelativeVectors:
        relative = super().relative_vectors(queries, keys)
        return relative._replace(vectors=enter(relative.vectors, self.mesh))


class SequenceDropout(Parallel, Dropout):
    """Dropout of own tokens."""

    stream: OwnTokens

    @override
    def forward(self, x: Tensor) -> Tensor:
        counters = kernels.vector_counters(x.new_empty((*self.stream.shape, 0)))
        return kernels.dropout(x, self.p, self.training, self.stream.own(counters[..., None])[..., 0])


class SpreadDropout(Parallel, Dropout):
    """Dropout of features that are spread."""

    @override
    def forward(self, x: Tensor) -> Tensor:
        first = self.mesh.get_local_rank() * x.shape[-1]
        return kernels.dropout(x, self.p, self.training, kernels.vector_counters(x) + first)


class SequenceStack(Parallel, Stack):
    """A stack whose residual stream is spread by tokens."""

    stream: OwnTokens

    @override
    def forward(self, *inputs: Any, query_index: Tensor | None = None, **options: Any) -> Tensor:
        return select(super().forward(*inputs, **options), query_index)

    @override
    def embed(self, *inputs: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.stream.begin(super().embed(*inputs))


def make_tensor_parallel(model: Transformer, mesh: DeviceMesh) -> None:
    """Spread a model over the processes of a mesh of one dimension, in place.

    Raises:
        UserError: the model can't be spread over so many.
    """
    check_model(model.config, mesh.size())
    if bits_of(model) is not None:
        raise UserError("--tensor-parallel can't spread quantized weights: take the model that they were made of.")
    styles = dict(_styles(model, mesh))
    plan: dict[str, ParallelStyle] = {}
    spread: dict[nn.Parameter, nn.Parameter] = {}  # a parameter of several modules stays one
    for path, module in model.named_modules():
        names = [name for name, _ in module.named_parameters(recurse=False)]
        if names or module in styles:
            plan[path] = style = styles.get(module) or Style(Parallel, dict.fromkeys(names, WHOLE))
            style.spread = spread
    parallelize_module(model, mesh, plan)


def check_model(config: ModelConfig, processes: int) -> None:
    """Raise UserError for a model that can't be spread over so many processes."""
    attentions = {"attention": config.attention, "decoder_attention": config.decoder_attention}
    others = config.other_layers and config.other_layers.feed_forward
    networks = {
        "feed_forward": config.feed_forward,
        "decoder_feed_forward": config.decoder_feed_forward,
        "other_layers.feed_forward": others,
    }
    sizes = {"vocab_size": None if config.vocab_size >= processes else config.vocab_size}
    for name, attention in attentions.items():
        if attention is not None:
            sizes |= {f"{name}.heads": attention.heads, f"{name}.kv_heads": attention.kv_heads}
    for name, network in networks.items():
        if network is not None and (experts := network.experts) is not None:
            sizes[f"{name}.experts.count"] = experts.count
            sizes[f"{name}.width"] = experts.shared * network.width
        elif network is not None:
            sizes[f"{name}.width"] = network.width
    for name, size in sizes.items():
        if size is not None and size % processes:
            raise UserError(
                f"--tensor-parallel {processes} can't spread {name} {size} evenly: take a number that divides it."
            )


def _styles(model: Transformer, mesh: DeviceMesh) -> Iterator[tuple[nn.Module, Style]]:
    """The styles of all modules that do not compute the same in each process."""
    for module in model.modules():
        if isinstance(module, RelativePosition):
            yield from _columns(module.table, weight=COLUMNS)
        elif isinstance(module, DisentangledPosition):
            yield module, Style(SpreadPosition, {})
        elif isinstance(module, TokenEmbedding):
            table = module.table
            rows, padding = own_rows(table.num_embeddings, mesh), table.padding_idx
            if padding is not None:
                padding = padding - rows.start if rows.start <= padding < rows.stop else None
            style = Style(VocabularyEmbedding, {"weight": ROWS}, padding_idx=padding)
            yield from _layer(table, style, {"a": COLUMNS, "b": SUMMED})
        elif isinstance(module, LanguageModelHead):
            yield module, Style(VocabularyHead, {"bias": SLICED}, vocab_size=model.config.vocab_size)
            if module.projection is not None:
                yield from _columns(module.projection)
        elif isinstance(module, Stack):
            stream = OwnTokens(mesh)
            yield module, Style(SequenceStack, {}, stream=stream)
            yield module.final_norm, Style(Followed, _OF_OWN_TOKENS, follow=stream.all)
            for block in cast("Iterable[TransformerBlock]", module.blocks):
                yield from _block_styles(block, stream)


def _block_styles(block: TransformerBlock, stream: OwnTokens) -> Iterator[tuple[nn.Module, Style]]:
    """The styles of the parts of a block: norms, dropout, attention, a feed-forward block."""
    for part in block.children():
        if isinstance(part, Dropout):
            yield part, Style(SequenceDropout, {}, stream=stream)
        elif isinstance(part, LatentAttention):
            yield from _latent_styles(part, stream)
        elif isinstance(part, MultiHeadAttention):
            kind = SpreadCrossAttention if part is block.cross_attention else SpreadLayer
            yield part, Style(kind, {"sinks": SLICED}, stream=stream)
            yield from _heads_styles(part, stream.mesh)
        elif isinstance(part, Experts):
            yield part, Style(SpreadExperts, {}, stream=stream)
            yield from _experts_styles(part, stream.mesh)
        elif isinstance(part, FeedForward):
            yield from _feed_forward_styles(part, stream)
        else:
            yield part, Style(Parallel, _OF_OWN_TOKENS)


def _latent_styles(part: LatentAttention, stream: OwnTokens) -> Iterator[tuple[nn.Module, Style]]:
    yield (
        part,
        Style(SpreadLatentAttention, {}, follow=stream.leave),
    )  # its processes make the latents of their own tokens
    for layer in (part.query_down, part.latent_down):
        style = Style(Followed, _OF_OWN_TOKENS, follow=stream.enter)
        yield from _layer(layer, style, dict.fromkeys(("a", "b", "magnitude"), SUMMED))
    for norm in (part.query_norm, part.latent_norm):
        yield norm, Style(Parallel, {"weight": SUMMED})
    for layer in (part.query, part.latent_up):
        yield from _columns(layer)
    yield from _row(part.output)
    part.heads //= stream.mesh.size()


def _heads_styles(part: MultiHeadAttention, mesh: DeviceMesh) -> Iterator[tuple[nn.Module, Style]]:
    for layer in (part.query, part.key, part.value):
        yield from _columns(layer)
    yield from _row(part.output)
    for norm, heads in ((part.query_norm, part.heads), (part.key_norm, part.kv_heads)):
        if part.qk_norm == "width":
            yield norm, Style(WidthNorm, {"weight": WHOLE}, width=heads * part.head_dim)
        else:
            yield norm, Style(Parallel, {"weight": SUMMED})
    part.heads, part.kv_heads = part.heads // mesh.size(), part.kv_heads // mesh.size()


def _experts_styles(part: Experts, mesh: DeviceMesh) -> Iterator[tuple[nn.Module, Style]]:
    for layer in (part.up, part.gate, part.down):
        if layer is not None:
            yield from _layer(layer, Style(Parallel, {"weight": ROWS, "bias": SLICED}), {"a": ROWS, "b": ROWS})
    if part.shared is not None:
        yield from _feed_forward_styles(part.shared, Tokens(mesh))


def _feed_forward_styles(part: FeedForward, stream: Tokens) -> Iterator[tuple[nn.Module, Style]]:
    yield part, Style(SpreadLayer, {}, stream=stream)
    for layer in (part.up, part.gate):
        if layer is not None:
            yield from _columns(layer)
    yield part.dropout, Style(SpreadDropout, {})
    yield from _row(part.down)


def _columns(layer: Linear | Embedding, *, weight: Part = ROWS) -> Iterator[tuple[nn.Module, Style]]:
    """The styles of a layer whose outputs are spread, and of its adapters."""
    style = Style(Parallel, {"weight": weight, "bias": SLICED})
    return _layer(layer, style, {"a": SUMMED, "b": ROWS, "magnitude": SLICED})


def _row(layer: Linear) -> Iterator[tuple[nn.Module, Style]]:
    """The styles of a layer whose inputs are spread, and of its adapters."""
    if any(isinstance(part, LowRankAdapter) and part.magnitude is not None for part in layer.modules()):
        raise UserError(
            "--tensor-parallel doesn't train DoRA, whose lengths are of whole rows: leave one of the two out."
        )
    yield from _layer(layer, Style(Parallel, {"weight": COLUMNS, "bias": DIVIDED}), {"a": COLUMNS, "b": SUMMED})
    for part in layer.modules():
        if isinstance(part, Dropout):
            yield part, Style(SpreadDropout, {})


def _layer(layer: nn.Module, style: Style, parts: Mapping[str, Part]) -> Iterator[tuple[nn.Module, Style]]:
    """The style of a layer, and that of its adapters, whose parameters are spread so."""
    yield layer, style
    for adapter in layer.modules():
        if isinstance(adapter, LowRankAdapter):
            yield adapter, Style(Parallel, parts)
