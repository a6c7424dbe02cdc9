"""Tensor parallelism: the matrices of each layer are spread over some processes (Shoeybi et al. 2019, Megatron-LM).

::

    x ─ enter ─ query, key, value ─ attention ─ output ─ leave ─ + ──▶      heads are spread
    x ─ enter ─ up, gate ──────────────────────── down ─ leave ─ + ──▶      inner activations, or experts, are spread

`leave` sums what the processes computed, `enter` sums their gradients. What comes before and after, norms among it,
each process computes for itself, as a whole. The vocabulary is spread as well.
"""

from collections.abc import Iterator

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ParallelStyle, parallelize_module

from anyformer.blocks.attention import MultiHeadAttention
from anyformer.blocks.embedding import TokenEmbedding
from anyformer.blocks.experts import Experts
from anyformer.blocks.feed_forward import FeedForward
from anyformer.blocks.head import LanguageModelHead
from anyformer.blocks.latent_attention import LatentAttention
from anyformer.blocks.linear import Embedding, Linear, LowRankAdapter
from anyformer.blocks.position import RelativePosition
from anyformer.config import ModelConfig
from anyformer.errors import UserError
from anyformer.model import Transformer
from anyformer.training.strategies.parallel_layers import (
    COLUMNS,
    DIVIDED,
    ROWS,
    SLICED,
    SUMMED,
    WHOLE,
    Column,
    Entrance,
    Fork,
    Parallel,
    Part,
    Row,
    SpreadExperts,
    Style,
    VocabularyEmbedding,
    VocabularyHead,
    WidthNorm,
    own_rows,
)


def make_tensor_parallel(model: Transformer, mesh: DeviceMesh) -> None:
    """Spread a model over the processes of a mesh of one dimension, in place.

    Raises:
        UserError: the model can't be spread over so many.
    """
    check_model(model.config, mesh.size())
    styles: dict[nn.Module, Style] = {}
    for module in model.modules():
        styles.update(_styles(module, mesh, model.config.vocab_size))
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


def _styles(module: nn.Module, mesh: DeviceMesh, vocab_size: int) -> Iterator[tuple[nn.Module, Style]]:
    """The styles of a module and of the layers inside it that are not used for the same in each process."""
    if isinstance(module, MultiHeadAttention):
        yield from _attention_styles(module, mesh)
    elif isinstance(module, LatentAttention):
        module.heads //= mesh.size()
        yield from _columns(module.query, entrance=Entrance(mesh, module, 1))
        # All heads share a part of its output.
        yield module.latent_down, Style(Fork, {"weight": WHOLE, "bias": WHOLE})
        yield module.latent_norm, Style(Parallel, {"weight": SUMMED})
        yield from _columns(module.latent_up)
        yield from _row(module.output)
    elif isinstance(module, Experts):
        yield module, Style(SpreadExperts, {})
        for layer in (module.up, module.gate, module.down):
            if layer is not None:
                yield layer, Style(Parallel, {"weight": ROWS, "bias": SLICED})
                for adapter in _adapters(layer):
                    yield adapter, Style(Parallel, {"a": ROWS, "b": ROWS})
    elif isinstance(module, FeedForward):
        layers = [layer for layer in (module.up, module.gate) if layer is not None]
        entrance = Entrance(mesh, module, len(layers))
        for layer in layers:
            yield from _columns(layer, entrance=entrance)
        yield from _row(module.down)
    elif isinstance(module, RelativePosition):
        yield from _columns(module.table, weight=COLUMNS)
    elif isinstance(module, TokenEmbedding):
        table = module.table
        rows, padding = own_rows(table.num_embeddings, mesh), table.padding_idx
        if padding is not None:
            padding = padding - rows.start if rows.start <= padding < rows.stop else None
        yield table, Style(VocabularyEmbedding, {"weight": ROWS}, padding_idx=padding)
        for adapter in _adapters(table):
            yield adapter, Style(Parallel, {"a": COLUMNS, "b": SUMMED})
    elif isinstance(module, LanguageModelHead):
        yield module, Style(VocabularyHead, {"bias": SLICED}, vocab_size=vocab_size)
        if module.projection is not None:
            yield from _columns(module.projection)


def _attention_styles(module: MultiHeadAttention, mesh: DeviceMesh) -> Iterator[tuple[nn.Module, Style]]:
    entrance, size = Entrance(mesh, module, 3), mesh.size()
    for layer in (module.query, module.key, module.value):
        yield from _columns(layer, entrance=entrance)
    yield from _row(module.output)
    yield module, Style(Parallel, {"sinks": SLICED})
    for norm, heads in ((module.query_norm, module.heads), (module.key_norm, module.kv_heads)):
        if module.qk_norm == "width":
            yield norm, Style(WidthNorm, {"weight": WHOLE}, width=heads * module.head_dim)
        else:
            yield norm, Style(Parallel, {"weight": SUMMED})
    module.heads, module.kv_heads = module.heads // size, module.kv_heads // size


def _columns(
    layer: Linear | Embedding, *, weight: Part = ROWS, entrance: Entrance | None = None
) -> Iterator[tuple[nn.Module, Style]]:
    """The styles of a layer whose outputs are spread, and of its adapters."""
    parts = {"weight": weight, "bias": SLICED}
    yield layer, Style(Parallel, parts) if entrance is None else Style(Column, parts, entrance=entrance)
    for adapter in _adapters(layer):
        yield adapter, Style(Parallel, {"a": SUMMED, "b": ROWS, "magnitude": SLICED})


def _row(layer: Linear) -> Iterator[tuple[nn.Module, Style]]:
    """The styles of a layer whose inputs are spread, and of its adapters."""
    yield layer, Style(Row, {"weight": COLUMNS, "bias": DIVIDED})
    for adapter in _adapters(layer):
        if adapter.magnitude is not None:
            raise UserError(
                "--tensor-parallel doesn't train DoRA, whose lengths are of whole rows: leave one of the two out."
            )
        yield adapter, Style(Parallel, {"a": COLUMNS, "b": SUMMED})


def _adapters(layer: Linear | Embedding) -> list[LowRankAdapter]:
    return [part for part in layer.modules() if isinstance(part, LowRankAdapter)]
