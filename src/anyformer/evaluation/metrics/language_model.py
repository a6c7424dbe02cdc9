"""Predicted tokens: perplexity and bits per byte."""

import numpy as np

from anyformer.evaluation.metrics.metric import Array, Metric, Numbers, ratio


def language_model(nats: Numbers, tokens: Numbers, size: Numbers | None = None) -> dict[str, Metric]:
    """Perplexity, the exponential of the mean loss of a token, and bits per byte.

    Args:
        nats: The summed loss of each row.
        tokens: How many of its tokens were predicted.
        size: Bytes of its text in UTF-8; None: there are no bits per byte.
    """
    metrics = {"perplexity": Metric(np.stack([nats, tokens], axis=-1).astype(np.float64), _perplexity)}
    if size is not None:
        metrics["bits_per_byte"] = ratio(np.divide(nats, np.log(2)), size)
    return metrics


def _perplexity(sums: Array) -> Array:
    predicted = sums[..., 1]
    return np.where(predicted > 0, np.exp(np.minimum(sums[..., 0] / np.maximum(predicted, 1), 700)), np.nan)
