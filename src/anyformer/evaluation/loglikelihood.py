"""Log-likelihoods of continuations."""

from collections.abc import Sequence
from typing import NamedTuple

from anyformer.evaluation.scorer import LogLikelihood, Progress, Query, Scorer
from anyformer.generation.inference import require_generative
from anyformer.generation.prompt import decoder_start_id
from anyformer.model import Transformer


class Continuation(NamedTuple):
    """A continuation that is scored.

    Attributes:
        context: Tokens that it follows, at least one; of an encoder-decoder the source.
        ids: Its tokens, at least one.
    """

    context: Sequence[int]
    ids: Sequence[int]


def log_likelihoods(
    model: Transformer,
    continuations: Sequence[Continuation],
    *,
    max_length: int | None = None,
    batch_size: int | None = None,
    progress: Progress = lambda count: None,
) -> list[LogLikelihood]:
    """Score continuations.

    Args:
        model: A decoder-only model or an encoder-decoder.
        continuations: Of any lengths. What is too long with its context loses the beginning of the context.
        max_length: Tokens that the model is to see at most; None: as many as it was trained on.
        batch_size: See `Scorer`.
        progress: Called after each batch with the number of its continuations.

    Raises:
        UserError: a model that doesn't generate text, an id outside of its vocabulary, an output that is NaN.
        ValueError: a continuation that is empty, has no context, or is longer than `max_length`.
    """
    require_generative(model)
    longest = max_length or model.config.max_length
    start = (decoder_start_id(model),) if model.config.is_encoder_decoder else ()
    queries = list[Query]()
    for context, ids in continuations:
        if not context or not 1 <= len(ids) <= longest:
            raise ValueError(f"a continuation has a context and from 1 to {longest} tokens")
        if start:
            queries.append(Query((*start, *ids[:-1]), 0, ids, context[-longest:]))
        else:
            seen = (*context, *ids)[-longest - 1 : -1]
            queries.append(Query(seen, len(seen) - len(ids), ids))
    return Scorer(model, batch_size)(queries, progress)
