"""Rules by which fresh weights are drawn: each a function of one module, and an entry in `INITIALIZERS`.

A rule is applied to every module of a model, parts before wholes, so a whole can redraw what its parts drew.
Norms start as the identity and are not touched. docs/initialization.md says which family uses which, and why.

A rule draws weights of the module that it is given and of that one's own parts, and none deeper inside: so a model that
no process has room for is drawn a few matrices at a time, to the same numbers (`initialize_pieces`).
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from anyformer.blocks.attention import MultiHeadAttention
from anyformer.blocks.embedding import TokenEmbedding
from anyformer.blocks.feed_forward import FeedForward
from anyformer.blocks.head import LanguageModelHead
from anyformer.blocks.latent_attention import LatentAttention
from anyformer.blocks.position import RelativePosition
from anyformer.config import ModelConfig
from anyformer.schema import lookup


def normal(module: nn.Module, config: ModelConfig) -> None:
    """``N(0, std)`` for every matrix and table, zero for every bias (GPT-2, LLaMA, BART)."""
    _draw(nn.init.normal_, module, config)


def truncated_normal(module: nn.Module, config: ModelConfig) -> None:
    """`normal`, redrawn where it falls beyond two standard deviations (BERT's code, create_initializer)."""

    def draw(weight: Tensor, std: float) -> None:
        nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)

    _draw(draw, module, config)


def _draw(draw: Callable[..., object], module: nn.Module, config: ModelConfig) -> None:
    """Every matrix and table with ``draw(weight, std=...)``; what writes to the residual stream smaller if asked."""
    std = config.init.std
    if isinstance(module, nn.Linear | nn.Embedding):
        draw(module.weight, std=std)
    if config.init.scale_residual and isinstance(module, MultiHeadAttention | LatentAttention | FeedForward):
        writes_to_stream = module.down if isinstance(module, FeedForward) else module.output
        layers = config.encoder_layers + config.decoder_layers
        draw(writes_to_stream.weight, std=std / (2 * layers) ** 0.5)


def xavier(module: nn.Module, config: ModelConfig) -> None:
    """Glorot-uniform matrices, token vectors from ``N(0, 1 / d_model)`` (the 2017 paper's code, tensor2tensor)."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=config.d_model**-0.5)


def t5(module: nn.Module, config: ModelConfig) -> None:
    """Matrices from ``N(0, 1 / fan_in)``, queries with the 1 / sqrt(head_dim) that T5's scores leave out as well.

    Raffel et al. 2020 do not print it; it is Mesh TensorFlow's rule (Shazeer et al. 2018), as in the T5 code. Token
    vectors, and the rows of an untied head, come from ``N(0, std)``: 1 in T5.
    """
    d_model, std = config.d_model, config.init.std
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=module.in_features**-0.5)
    if isinstance(module, MultiHeadAttention):
        nn.init.normal_(module.query.weight, std=(d_model * module.head_dim) ** -0.5)
    if isinstance(module, RelativePosition):
        nn.init.normal_(module.table.weight, std=d_model**-0.5)
    if isinstance(module, TokenEmbedding):
        nn.init.normal_(module.table.weight, std=std)
    if isinstance(module, LanguageModelHead) and module.projection is not None:
        nn.init.normal_(module.projection.weight, std=std)


INITIALIZERS: dict[str, Callable[[nn.Module, ModelConfig], None]] = {
    "normal": normal,
    "truncated_normal": truncated_normal,
    "xavier": xavier,
    "t5": t5,
}


def initialize_weights(model: nn.Module, config: ModelConfig) -> None:
    """Draw all weights anew, as `config.init` says. Raises ConfigError for an unknown rule."""
    rule = lookup(INITIALIZERS, config.init.kind, "init.kind")
    model.apply(lambda module: rule(module, config))
    model.apply(_zero)


Cut = Callable[[Tensor], Tensor]
"""A new tensor, spread over the processes, of a whole one that all of them have."""


@contextmanager
def kept_in_pieces(cut: Cut) -> Generator[None]:
    """Context in which of each linear layer and table that a model is made of only a piece is kept, once it is drawn.

    Another thread must make no model meanwhile.
    """

    def keep(parent: nn.Module, name: str, module: nn.Module | None) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            for own, parameter in module.named_parameters(recurse=False):
                setattr(module, own, nn.Parameter(cut(parameter)))

    handle = register_module_module_registration_hook(keep)
    try:
        yield
    finally:
        handle.remove()


def initialize_pieces(model: nn.Module, config: ModelConfig, cut: Cut) -> None:
    """Draw the weights of a model that was made in `kept_in_pieces`, the same numbers as `initialize_weights`.

    The weights of one module's parts are whole at a time. Raises ConfigError for an unknown rule.
    """
    rule = lookup(INITIALIZERS, config.init.kind, "init.kind")
    pieces: dict[Tensor, nn.Parameter] = {}

    def draw(module: nn.Module) -> None:
        for part in module.children():
            draw(part)
        if isinstance(module, nn.Linear | nn.Embedding):
            for name, piece in [*module.named_parameters(recurse=False)]:
                whole = nn.Parameter(torch.empty(piece.shape, dtype=piece.dtype))
                setattr(module, name, whole)
                pieces[whole] = piece
        rule(module, config)
        for part in module.children():
            _zero(part)
            for name, whole in [*part.named_parameters(recurse=False)]:
                if (piece := pieces.pop(whole, None)) is not None:
                    # What no rule writes to is as its module has drawn it.
                    setattr(part, name, nn.Parameter(cut(whole)) if whole._version else piece)

    draw(model)


def _zero(module: nn.Module) -> None:
    """Biases start at zero, and so does a row that is never to be read."""
    if isinstance(module, nn.Linear) and (bias := cast("Tensor | None", module.bias)) is not None:
        nn.init.zeros_(bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        nn.init.zeros_(module.weight[module.padding_idx].detach())
