"""Predicted tokens, and generated texts."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from anyformer.errors import UserError
from anyformer.evaluation.metrics.metric import Array, Metric, Numbers, ratio, share

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def exact_match(references: Sequence[str], predictions: Sequence[str]) -> Metric:
    """The share of texts that are their reference, but for whitespace around them."""
    return share([right.strip() == text.strip() for right, text in zip(references, predictions, strict=True)])


def translation(references: Sequence[str], predictions: Sequence[str]) -> dict[str, Metric]:
    """BLEU and chrF as sacrebleu's defaults define them, from 0 to 100. Raises UserError where it isn't installed."""
    try:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF
    except ImportError as error:
        raise UserError("BLEU and chrF need sacrebleu: pip install 'anyformer[eval]'.") from error
    scorers: dict[str, Any] = {"bleu": BLEU(force=True), "chrf": CHRF()}
    return {name: _corpus_metric(scorer, references, predictions) for name, scorer in scorers.items()}


def summaries(references: Sequence[str], predictions: Sequence[str]) -> dict[str, Metric]:
    """ROUGE-1, -2, -L and -Lsum (mean F1 of the rows, without stemming) as rouge-score defines them, from 0 to 1.

    Only the letters a to z and digits count. For ROUGE-Lsum each line is a sentence. Raises UserError where rouge-score
    isn't installed.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise UserError("ROUGE needs rouge-score: pip install 'anyformer[eval]'.") from error
    scorer = RougeScorer(list(ROUGE))
    scores = [scorer.score(right, text) for right, text in zip(references, predictions, strict=True)]
    return {name: share([score[name].fmeasure for score in scores]) for name in ROUGE}


def _corpus_metric(scorer: Any, references: Sequence[str], predictions: Sequence[str]) -> Metric:
    """One of sacrebleu's metrics. Its own bootstrap sums the counts of each row in the same way."""
    rows = np.array(scorer._extract_corpus_statistics(predictions, [references]), dtype=np.float64)

    def scores(sums: Array) -> Array:
        counts = sums.round().astype(np.int64).tolist()
        return np.array([scorer._compute_score_from_stats(each).score for each in counts])

    return Metric(rows, scores, (0.0, 100.0))


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
