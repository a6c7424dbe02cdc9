"""The evaluation of each task: what is asked of the model, and which metrics tell how good the answers are."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch

from anyformer.data.examples import (
    ClassifyExample,
    EmbedExample,
    Example,
    PreferenceExample,
    TagExample,
    Task,
    TextExample,
)
from anyformer.errors import UserError
from anyformer.evaluation import answers
from anyformer.evaluation.logits import Progress, is_regression, label_names, text_logits, word_logits
from anyformer.evaluation.metrics import (
    ClassScores,
    Metric,
    class_table,
    classification,
    confusion_matrix,
    entity_table,
    exact_match,
    language_model,
    mean,
    multilabel,
    ratio,
    regression,
    relevant_ranks,
    retrieval,
    similarity,
    summaries,
    tagging,
    translation,
)
from anyformer.evaluation.metrics.classification import all_labels, class_counts
from anyformer.evaluation.metrics.metric import Array
from anyformer.evaluation.metrics.retrieval import unit
from anyformer.evaluation.metrics.tagging import is_entity_scheme
from anyformer.evaluation.perplexity import join_texts, losses, predictions
from anyformer.evaluation.result import Confusion, EvaluatedRow, Evaluation
from anyformer.generation import embed
from anyformer.generation.inference import require_tokenizer
from anyformer.model import Transformer
from anyformer.tokenizer import Tokenizer

_SHOWN_LABELS = 5


@dataclass(frozen=True, kw_only=True)
class Options:
    """How examples are evaluated.

    Attributes:
        choices: chat, completion: The answers to choose from, by their log-probability. Empty: answers are generated.
        max_new_tokens: Of a generated answer; None: as many as the context has room for, at most 200.
        batch_size: Answers that are generated at a time.
        skip_missing: Leave out the metrics whose library isn't installed, and say so in a note.
        progress: Called after each batch with what is done, the number of its examples, and that of all examples.
    """

    choices: Sequence[str] = ()
    max_new_tokens: int | None = None
    batch_size: int = 16
    skip_missing: bool = False
    progress: Callable[[str, int, int], None] = field(default=lambda what, count, total: None)

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "batch_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"{name} is at least 1, not {value}.")
        if len(set(self.choices)) != len(self.choices) or len(self.choices) == 1:
            raise UserError("choices are at least two answers, each different from the others.")


def evaluate_classify(
    model: Transformer, tokenizer: Tokenizer | None, examples: Sequence[ClassifyExample], options: Options
) -> Evaluation:
    """One label, several labels or a number for each text."""
    for example in examples:
        if example.label is None:
            raise UserError(f"{example.where}: there is no label to compare with.")
    texts = [(example.text, example.second) for example in examples]
    logits, _ = text_logits(model, tokenizer, texts, progress=_progress(options, "classify", examples))
    if is_regression(model):
        return _regression(examples, logits)
    for example in examples:
        if isinstance(example.label, float):
            raise UserError(
                f"{example.where}: the label is the number {example.label:g}, and this model knows classes."
            )
    names = label_names(model)
    several = any(isinstance(example.label, tuple) for example in examples)
    if several or model.config.head.problem_type == "multi_label_classification":
        return _multilabel(examples, logits, names)
    labels = [_known(str(example.label), names, example) for example in examples]
    return _single_label("classify", examples, labels, names, _log_softmax(logits), [_shown(each) for each in examples])


def evaluate_tag(
    model: Transformer, tokenizer: Tokenizer | None, examples: Sequence[TagExample], options: Options
) -> Evaluation:
    """A tag for each word; one that is beyond the context counts as O."""
    sentences = [example.words for example in examples]
    found = word_logits(model, tokenizer, sentences, progress=_progress(options, "tag", examples))
    names = label_names(model)
    index = {name: number for number, name in enumerate(names)}
    outside = "O" if "O" in index else names[0]
    references, said, rows = list[list[str]](), list[list[str]](), list[EvaluatedRow]()
    cut = 0
    for example, logits in zip(examples, found, strict=True):
        right = [_known(tag, names, example) for tag in example.tags]
        tags = [outside if each is None else names[int(each.argmax())] for each in logits]
        cut += sum(each is None for each in logits)
        losses = [
            np.log(len(names)) if each is None else -float(each.log_softmax(-1)[index[tag]])
            for each, tag in zip(logits, right, strict=True)
        ]
        wrong = [
            f"{word}: {is_} for {tag}" for word, tag, is_ in zip(example.words, right, tags, strict=True) if tag != is_
        ]
        references.append(right)
        said.append(tags)
        words = " ".join(example.words)
        shown = [f"{word}/{tag}" for word, tag in zip(example.words, right, strict=True) if tag != outside]
        rows.append(EvaluatedRow(example.where, words, " ".join(shown), ", ".join(wrong), sum(losses), not wrong))
    notes = [f"{cut:,} words are beyond the model's context, and count as {outside}."] if cut else []
    if is_entity_scheme(names):
        metrics, classes = tagging(references, said), entity_table(references, said)
    else:
        flat, other = ([tag for row in tags for tag in row] for tags in (references, said))
        metrics, classes = classification(flat, other, names), _class_table(flat, other, names)
    return Evaluation(task="tag", metrics=metrics, rows=rows, classes=classes, notes=notes)


def evaluate_embed(
    model: Transformer, tokenizer: Tokenizer | None, examples: Sequence[EmbedExample], options: Options
) -> Evaluation:
    """How alike the vectors of pairs are; whether that of a text is nearest to the one that belongs to it."""
    texts = list(dict.fromkeys(text for example in examples for text in example.texts))
    vectors = embed(model, tokenizer, texts).double().cpu().numpy()
    options.progress("embed", len(examples), len(examples))
    vector = dict(zip(texts, unit(vectors), strict=True))
    if all(example.score is not None and len(example.texts) == 2 for example in examples):
        return _similarity(examples, vector)
    if all(example.label is None and len(example.texts) >= 2 for example in examples):
        return _retrieval(examples, vector)
    if all(example.label is not None and len(example.texts) == 1 for example in examples):
        return _neighbors(examples, vector)
    raise UserError(
        "Vectors are compared by pairs with a score, by texts with another that belongs to each, or by texts with a "
        "class: pairs with a class say nothing about how near they are."
    )


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
    unlikely = answers.answer_losses(model, tokenizer, examples, progress=_progress(options, "losses", examples))
    metrics = language_model([each.nats for each in unlikely], [each.tokens for each in unlikely])
    if options.choices:
        choices = [choice.strip() for choice in options.choices]
        right = [_known(text.strip(), choices, each) for text, each in zip(references, examples, strict=True)]
        advance = _progress(options, "choices", examples)
        scores = np.array(answers.choose(model, tokenizer, examples, options.choices, progress=advance))
        chosen = _single_label(task, examples, right, choices, _log_softmax(scores), shown)
        return replace(chosen, metrics={**chosen.metrics, **metrics})
    given = answers.give_answers(
        model,
        tokenizer,
        examples,
        max_new_tokens=options.max_new_tokens,
        batch_size=options.batch_size,
        progress=_progress(options, "answers", examples),
    )
    texts = [each.text for each in given]
    match = exact_match(references, texts)
    compared, notes = _compared(references, texts, [*([translation] if task == "seq2seq" else []), summaries], options)
    metrics = {**compared, "exact_match": match, **metrics}
    if any(each.ends for each in unlikely):
        ends = [each.end_probability for each in unlikely]
        metrics["end_probability"] = ratio(ends, [each.ends for each in unlikely])
    metrics["stopped"] = mean([each.stopped for each in given])
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
    advance = _progress(options, "losses", [*examples, *examples])
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
    metrics = {"accuracy": mean([bool(row.right) for row in rows])}
    return Evaluation(task="preference", metrics=metrics, rows=rows, notes=["Accuracy: the better answer is likelier."])


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


def _single_label(
    task: Task,
    examples: Sequence[Example],
    references: Sequence[str],
    names: Sequence[str],
    log_p: Array,
    shown: Sequence[str],
) -> Evaluation:
    """The evaluation of log-probabilities [examples, labels]."""
    index = {name: number for number, name in enumerate(names)}
    said = [names[int(best)] for best in log_p.argmax(axis=1)]
    rows = [
        EvaluatedRow(example.where, text, reference, name, -float(row[index[reference]]), name == reference)
        for example, text, reference, name, row in zip(examples, shown, references, said, log_p, strict=True)
    ]
    return Evaluation(
        task=task,
        metrics=classification(references, said, names),
        rows=rows,
        classes=_class_table(references, said, names),
        confusion=Confusion(names, confusion_matrix(references, said, names)),
    )


def _class_table(references: Sequence[str], said: Sequence[str], names: Sequence[str]) -> list[ClassScores]:
    labels = all_labels(references, said, names)
    counts = class_counts([{name} for name in references], [{name} for name in said], labels)
    return [row for row in class_table(counts, labels) if row.support or row.precision]


def _multilabel(examples: Sequence[ClassifyExample], logits: Array, names: Sequence[str]) -> Evaluation:
    references = [[_known(name, names, example) for name in _labels_of(example)] for example in examples]
    said = [[name for name, logit in zip(names, row, strict=True) if logit > 0] for row in logits]
    truth = np.array([[name in right for name in names] for right in references])
    losses = np.logaddexp(0, np.where(truth, -logits, logits)).sum(axis=1)
    rows = [
        EvaluatedRow(
            example.where, _shown(example), ", ".join(right), ", ".join(found), float(loss), set(right) == set(found)
        )
        for example, right, found, loss in zip(examples, references, said, losses, strict=True)
    ]
    classes = class_table(class_counts(references, said, names), names)
    return Evaluation(task="classify", metrics=multilabel(references, said, names), rows=rows, classes=classes)


def _labels_of(example: ClassifyExample) -> Sequence[str]:
    label = example.label
    return label if isinstance(label, tuple) else [str(label)]


def _regression(examples: Sequence[ClassifyExample], logits: Array) -> Evaluation:
    wanted: list[float] = []
    for example in examples:
        if isinstance(example.label, str | tuple):
            raise UserError(f"{example.where}: the label {example.label!r} is a name, and this model predicts numbers.")
        wanted.append(float(cast("float", example.label)))
    found = logits[:, 0]
    rows = [
        EvaluatedRow(example.where, _shown(example), f"{right:g}", f"{said:.4g}", float((right - said) ** 2))
        for example, right, said in zip(examples, wanted, found, strict=True)
    ]
    return Evaluation(task="classify", metrics=regression(wanted, found), rows=rows)


def _similarity(examples: Sequence[EmbedExample], vector: dict[str, Array]) -> Evaluation:
    scores = np.array([example.score for example in examples], dtype=np.float64)
    cosines = np.array([vector[a] @ vector[b] for a, b in (example.texts for example in examples)])
    # Spearman's correlation is of ranks, so the worst pairs are those that are out of their place.
    places = [np.argsort(np.argsort(values, kind="stable")) for values in (scores, cosines)]
    rows = [
        EvaluatedRow(example.where, " | ".join(example.texts), f"{score:g}", f"{cosine:.3f}", float(abs(a - b)))
        for example, score, cosine, a, b in zip(examples, scores, cosines, *places, strict=True)
    ]
    return Evaluation(task="embed", metrics=similarity(scores, cosines), rows=rows)


def _retrieval(examples: Sequence[EmbedExample], vector: dict[str, Array]) -> Evaluation:
    """Anchors are queries, and the texts that belong to any of them, or to none, are the documents."""
    documents = list(dict.fromkeys(text for example in examples for text in example.texts[1:]))
    place = {text: number for number, text in enumerate(documents)}
    relevant = defaultdict[str, set[int]](set)
    where = {example.texts[0]: example.where for example in reversed(examples)}
    for example in examples:
        relevant[example.texts[0]].add(place[example.texts[1]])
    queries = list(relevant)
    matrices = [np.stack([vector[text] for text in texts]) for texts in (queries, documents)]
    ranks = relevant_ranks(matrices[0], matrices[1], [sorted(relevant[query]) for query in queries])
    best = [int((matrices[1] @ vector[query]).argmax()) for query in queries]
    rows = [
        EvaluatedRow(
            where[query], query, documents[min(relevant[query])], documents[first], float(found.min()), found.min() == 1
        )
        for query, first, found in zip(queries, best, ranks, strict=True)
    ]
    notes = [f"{len(queries):,} queries, {len(documents):,} documents."]
    return Evaluation(task="embed", metrics=retrieval(ranks), rows=rows, notes=notes)


def _neighbors(examples: Sequence[EmbedExample], vector: dict[str, Array]) -> Evaluation:
    """Whether the nearest other text has the same class."""
    if len(examples) < 2:
        raise UserError("The nearest other text takes at least two texts.")
    vectors = np.stack([vector[example.texts[0]] for example in examples])
    nearest: list[int] = []
    for number, query in enumerate(vectors):
        cosines = vectors @ query
        cosines[number] = -np.inf
        nearest.append(int(cosines.argmax()))
    rows = [
        EvaluatedRow(
            example.where,
            example.texts[0],
            str(example.label),
            f"{examples[other].label}: {examples[other].texts[0]}",
            float(vectors[number] @ vectors[other]),
            example.label == examples[other].label,
        )
        for number, (example, other) in enumerate(zip(examples, nearest, strict=True))
    ]
    notes = ["Accuracy is that of the nearest other text's class."]
    return Evaluation(
        task="embed", metrics={"accuracy": mean([bool(row.right) for row in rows])}, rows=rows, notes=notes
    )


def _known(label: str, names: Sequence[str], example: Example) -> str:
    """The label as the model calls it: by name, or by its number. Raises UserError for another one."""
    if label in names:
        return label
    if label.isdecimal() and int(label) < len(names):
        return names[int(label)]
    some = ", ".join(map(repr, names[:_SHOWN_LABELS])) + (" ..." if len(names) > _SHOWN_LABELS else "")
    raise UserError(f"{example.where}: the label is {label!r}, and those that can be predicted are {some}.")


def _shown(example: ClassifyExample) -> str:
    return example.text if example.second is None else f"{example.text} | {example.second}"


def _log_softmax(logits: Array) -> Array:
    return torch.from_numpy(logits).log_softmax(dim=-1).numpy()


def _progress(options: Options, what: str, examples: Sequence[Any]) -> Progress:
    def advance(count: int) -> None:
        options.progress(what, count, len(examples))

    return advance
