"""Log-probabilities of the tokens of a prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from anyformer.generation.cached_decoder import DecoderStep
from anyformer.generation.inference import check_nan, evaluating
from anyformer.generation.request import TokenLogprob
from anyformer.model import Transformer

_CHUNK = 256


def prompt_logprobs(model: Transformer, ids: Sequence[int], top: int) -> list[TokenLogprob | None]:
    """The log-probability of each token given those before it, with the likeliest tokens in its place.

    Args:
        model: A decoder-only model.
        ids: A prompt.
        top: Number of the likeliest tokens.

    Returns:
        One for each token; None for the first, which nothing predicts.

    Raises:
        UserError: the model answers with NaN.
    """
    step, cache = DecoderStep(model), model.make_cache(1, len(ids))
    tokens = torch.tensor([list(ids)], device=model.device)
    found: list[TokenLogprob | None] = [None]
    with evaluating(model), torch.inference_mode():
        for start in range(0, len(ids), _CHUNK):
            logits = check_nan(step(tokens[:, start : start + _CHUNK], cache)[0])
            targets = tokens[0, start + 1 : start + 1 + len(logits)]
            log_p = logits[: len(targets)].log_softmax(dim=-1)
            chosen: list[float] = log_p.gather(1, targets[:, None])[:, 0].tolist()
            best = log_p.topk(min(top, log_p.shape[-1]), dim=-1)
            for token, logprob, likeliest, values in zip(
                targets.tolist(), chosen, best.indices.tolist(), best.values.tolist(), strict=True
            ):
                found.append(TokenLogprob(token, logprob, dict(zip(likeliest, values, strict=True))))
    return found
