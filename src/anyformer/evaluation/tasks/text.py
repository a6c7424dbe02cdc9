"""How well the next token of plain text is predicted."""

from collections.abc import Sequence

import numpy as np

from anyformer.data.examples import TextExample
from anyformer.evaluation.metrics import language_model
from anyformer.evaluation.options import Options
from anyformer.evaluation.perplexity import join_texts, losses, predictions
from anyformer.evaluation.result import Evaluation
from anyformer.generation.inference import require_tokenizer
from anyformer.model import Transformer
from anyformer.tokenizer import Tokenizer


def evaluate_text(
    model: Transformer, tokenizer: Tokenizer | None, examples: Sequence[TextExample], options: Options
) -> Evaluation:
    """How well the next token is predicted, in windows over all texts, as `anyformer evaluate` does without a task."""
    tokenizer = require_tokenizer(tokenizer, "its text can't be read")
    text = join_texts(tokenizer, ((example.text, True) for example in examples))
    total = predictions(text)
    parts = list(losses(model, text, progress=lambda count: options.progress("predict", count, total)))
    nats, counts = (np.array(column, dtype=np.float64) for column in zip(*parts, strict=True))
    metrics = language_model(nats, counts, text.size * counts / total)
    return Evaluation(task="text", metrics=metrics, notes=[f"{total:,} tokens, {text.size:,} bytes of text."])
