"""The config of a stored model, in which its tensors have the last word."""

import torch
from torch import Tensor

from anyformer.checkpoint.sources import TensorSource
from anyformer.config import ModelConfig
from anyformer.errors import UserError
from anyformer.families import with_head
from anyformer.kernels.quantization import QuantizedWeight

Weight = Tensor | QuantizedWeight


def config_of(source: TensorSource) -> ModelConfig:
    """The config of the model in a source: the tensors have the last word on whether it has a head and a pooler.

    A head that differs from the token table is its own, a masked language model without any weight of its head is a
    bare model (all-mpnet-base-v2), and a bare model without the weights of a pooler has none.

    Raises:
        UserError: more layers than tensors. A number costs nothing to write, and a layer to build.
    """
    config, count = source.config, len(source.names)
    layers = min(config.encoder_layers, config.distinct_layers or config.encoder_layers) + config.decoder_layers
    if layers > count:
        raise UserError(f"{source.path}: config.json speaks of {layers} layers, and there are {count} weights.")
    networks = [(other and other.feed_forward) or config.feed_forward for other in config.others(layers)]
    mixed = sum(network.experts is not None for network in networks)
    if (experts := mixed * sum(row.part is not None for row in source.family.rows_of(config))) > count:
        raise UserError(
            f"{source.path}: config.json speaks of {experts} matrices of experts, and there are {count} weights."
        )
    if _lacks_transform(config, source):
        config = with_head(config, "none")
    config = without_missing_pooler(config, source)
    if config.head.kind == "language_model":
        head, table = (
            stored_name(source, config, name) for name in ("head.projection.weight", "token_embedding.table.weight")
        )
        tied = config.embedding.tied or (head is None and source.family.ties_missing_head)
        if tied and head and table:
            tied = equal_weights(source.read(head), source.read(table))
        config = config.replace(embedding={"tied": tied})
    return config


def _lacks_transform(config: ModelConfig, source: TensorSource) -> bool:
    """Whether a head with a transform has none of its weights in the source."""
    if config.head.kind != "language_model" or config.head.transform is None:
        return False
    names = ("head.transform.dense.weight", "head.transform.norm.weight", "head.bias", "head.projection.weight")
    return not any(stored_name(source, config, name) for name in names)


def without_missing_pooler(config: ModelConfig, source: TensorSource) -> ModelConfig:
    """The config without a pooler that a bare model's source has no weights of."""
    has_pooler = stored_name(source, config, "pooler.dense.weight") or stored_name(source, config, "pooler.dense.bias")
    if config.head.kind == "none" and config.head.pooler is not None and not has_pooler:
        return config.replace(head={"pooler": None})
    return config


def stored_name(source: TensorSource, config: ModelConfig, ours: str) -> str | None:
    """The name in the source of one of our weights."""
    return next((name for name in source.family.stored_names(config, ours) if name in source.names), None)


def equal_weights(a: Weight, b: Weight) -> bool:
    """Whether two weights are the same in the dtype and on the device of the second."""
    if isinstance(a, QuantizedWeight) and isinstance(b, QuantizedWeight):
        return torch.equal(a.integers.to(b.integers.device), b.integers)
    return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a.to(b), b)
