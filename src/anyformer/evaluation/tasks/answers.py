"""Answers that a model writes or chooses, and which of two it prefers."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from anyformer.data.examples import PreferenceExample, Task
from anyformer.errors import UserError
from anyformer.evaluation import answers
from anyformer.evaluation.metrics import Metric, exact_match, language_model, ratio, share, summaries, translation
from anyformer.evaluation.metrics.metric import UNIT
from anyformer.evaluation.options import Options
from anyformer.evaluation.result import EvaluatedRow, Evaluation
from anyformer.evaluation.tasks.labels import known_label, log_softmax, single_label
from anyformer.generation.inference import require_tokenizer
from anyformer.model import Transformer
from anyformer.tokenizer import Tokenizer


def evaluate_answers(
    task: Task,
    model: Transformer,
    tokenizer: Tokenizer | None,
    examples: Sequence[answers.Answered],
    options: Options,
) -> Evaluation:
    """How likely the right answers are, and how near to them those are that the model gives."""
    tokenizer = require_tokenizer(tokenizer, "it can't be asked in words")
    references = [answers.answer(example) for example in examples]
    shown = [answers.question(example) for example in examples]
    unlikely = answers.answer_losses(model, tokenizer, examples, progress=options.counter("losses", len(examples)))
    metrics = language_model([each.nats for each in unlikely], [each.tokens for each in unlikely])
    if options.choices:
        choices = [choice.strip() for choice in options.choices]
        right = [known_label(text.strip(), choices, each) for text, each in zip(references, examples, strict=True)]
        advance = options.counter("choices", len(examples))
        scores = np.array(answers.choose(model, tokenizer, examples, options.choices, progress=advance))
        chosen = single_label(task, examples, right, choices, log_softmax(scores), shown)
        return replace(chosen, metrics={**chosen.metrics, **metrics})
    given = answers.give_answers(
        model,
        tokenizer,
        examples,
        max_new_tokens=options.max_new_tokens,
        batch_size=options.batch_size,
        progress=options.counter("answers", len(examples)),
    )
    texts = [each.text for each in given]
    match = exact_match(references, texts)
    comparisons = [translation, summaries] if task == "seq2seq" else [summaries] if options.rouge else []
    compared, notes = _compared(references, texts, comparisons, options)
    metrics = {**compared, "exact_match": match, **metrics}
    if any(each.ends for each in unlikely):
        ends = [each.end_probability for each in unlikely]
        metrics["end_probability"] = replace(ratio(ends, [each.ends for each in unlikely]), bounds=UNIT)
    metrics["stopped"] = share([each.stopped for each in given])
    rows = [
        EvaluatedRow(example.where, text, reference, said, loss.nats / max(1, loss.tokens), bool(right))
        for example, text, reference, said, loss, right in zip(
            examples, shown, references, texts, unlikely, match.rows[:, 0], strict=True
        )
    ]
    return Evaluation(task=task, metrics=metrics, rows=rows, notes=notes)


def _compared(
    references: Sequence[str],
    texts: Sequence[str],
    metrics: Sequence[Callable[[Sequence[str], Sequence[str]], dict[str, Metric]]],
    options: Options,
) -> tuple[dict[str, Metric], list[str]]:
    """Metrics of texts beside references, and what is to be said about those that are left out."""
    found: dict[str, Metric] = {}
    notes: list[str] = []
    for each in metrics:
        try:
            found |= each(references, texts)
        except UserError as error:
            if not options.skip_missing:
                raise
            notes.append(f"Left out: {error}")
    return found, notes


def evaluate_preferences(
    model: Transformer, tokenizer: Tokenizer | None, examples: Sequence[PreferenceExample], options: Options
) -> Evaluation:
    """Whether the better answer is the likelier one."""
    tokenizer = require_tokenizer(tokenizer, "it can't be asked in words")
    advance = options.counter("losses", 2 * len(examples))
    both = [answer for example in examples for answer in (example.chosen, example.rejected)]
    nats = [each.nats for each in answers.answer_losses(model, tokenizer, both, progress=advance)]
    rows = [
        EvaluatedRow(
            example.where,
            answers.question(example.chosen),
            answers.answer(example.chosen),
            answers.answer(example.chosen if better < worse else example.rejected),
            better - worse,
            better < worse,
        )
        for example, better, worse in zip(examples, nats[::2], nats[1::2], strict=True)
    ]
    metrics = {"accuracy": share([bool(row.right) for row in rows])}
    return Evaluation(task="preference", metrics=metrics, rows=rows, notes=["Accuracy: the better answer is likelier."])
