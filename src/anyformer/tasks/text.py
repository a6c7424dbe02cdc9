"""The next token of plain text."""

from collections.abc import Sequence

import numpy as np

from anyformer.config import ModelConfig
from anyformer.data.examples import TextExample
from anyformer.data.examples.parts import Parts
from anyformer.evaluation.metrics import language_model
from anyformer.evaluation.perplexity import join_texts, losses, predictions
from anyformer.evaluation.result import Evaluation, Options
from anyformer.generation.inference import require_tokenizer
from anyformer.model import Transformer
from anyformer.tasks.task import RowSchema, Task
from anyformer.tokenizer import Tokenizer


def _build(parts: Parts) -> TextExample | None:
    text = parts.text("text", empty=True)
    return TextExample(location=parts.location, text=text) if text.strip() else None


def _refusal(model: ModelConfig, name: str) -> str | None:
    if model.head.kind == "language_model":
        return None
    return (
        f"{name} has no language-model head, so it learns nothing from plain text: if the data are examples of another "
        "task, name it with --task."
    )


def _evaluate(
    model: Transformer, tokenizer: Tokenizer | None, examples: Sequence[TextExample], options: Options
) -> Evaluation:
    """Predictions of the next token, in windows over all texts, as `anyformer evaluate` does without a task."""
    tokenizer = require_tokenizer(tokenizer, "its text can't be read")
    text = join_texts(tokenizer, ((example.text, True) for example in examples))
    total = predictions(text)
    parts = list(losses(model, text, progress=lambda count: options.progress("predict", count, total)))
    nats, counts = (np.array(column, dtype=np.float64) for column in zip(*parts, strict=True))
    metrics = language_model(nats, counts, text.size * counts / total)
    return Evaluation(metrics=metrics, notes=[f"{total:,} tokens, {text.size:,} bytes of text."])


TASK = Task(
    name="text",
    learns="the next token of plain text",
    finetune="openai-community/gpt2 --task text --data notes.txt",
    example=TextExample,
    schemas=[RowSchema(build=_build, required={"text": ("text", "content")}, rank=10, suggested=-1)],
    refusal=_refusal,
    settings=("packing",),
    generates=True,
    evaluate=_evaluate,
)
