"""A tag for each word of a sentence."""

from collections.abc import Sequence

import numpy as np

from anyformer.data.examples import TagExample
from anyformer.evaluation.logits import label_names, word_logits
from anyformer.evaluation.metrics import classification, entity_table, tagging
from anyformer.evaluation.metrics.classification import never_right
from anyformer.evaluation.metrics.tagging import is_entity_scheme
from anyformer.evaluation.options import Options
from anyformer.evaluation.result import EvaluatedRow, Evaluation
from anyformer.evaluation.spans import TaggedSpans, span_pieces
from anyformer.evaluation.tasks.labels import known_label, label_table
from anyformer.model import Transformer
from anyformer.tokenizer import Tokenizer


def evaluate_tag(
    model: Transformer, tokenizer: Tokenizer | None, examples: Sequence[TagExample], options: Options
) -> Evaluation:
    """A tag for each word; one that is beyond the context counts as O."""
    sentences = [example.words for example in examples]
    found = word_logits(model, tokenizer, sentences, progress=options.counter("tag", len(examples)))
    names = label_names(model)
    index = {name: number for number, name in enumerate(names)}
    outside = "O" if "O" in index else names[0]
    references, said, rows = list[list[str]](), list[list[str]](), list[EvaluatedRow]()
    cut, grouped = 0, is_entity_scheme(names)
    for example, logits in zip(examples, found, strict=True):
        right = [known_label(tag, names, example) for tag in example.tags]
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
        spans = TaggedSpans(*(span_pieces(example.words, each, grouped=grouped) for each in (right, tags)))
        rows.append(
            EvaluatedRow(
                example.where, words, " ".join(shown), ", ".join(wrong), float(np.mean(losses)), not wrong, spans
            )
        )
    notes = [f"{cut:,} words are beyond the model's context, and count as {outside}."] if cut else []
    if grouped:
        metrics, classes = tagging(references, said), entity_table(references, said)
    else:
        flat, other = ([tag for row in tags for tag in row] for tags in (references, said))
        metrics, classes = classification(flat, other, names), label_table(flat, other, names)
    if (missed := never_right(classes)) is not None:
        notes.append(missed)
    return Evaluation(task="tag", metrics=metrics, rows=rows, classes=classes, notes=notes)
