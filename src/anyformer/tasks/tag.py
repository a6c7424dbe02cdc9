"""A tag for each word of a sentence."""

from collections.abc import Iterator, Sequence

import numpy as np

from anyformer.config import ModelConfig
from anyformer.data.batch import IGNORED, Batch, Rng
from anyformer.data.examples import TagExample
from anyformer.data.examples.columns import WORDS
from anyformer.data.examples.datasets import Dataset, tagged
from anyformer.data.examples.encoded import Truncation, encode_words
from anyformer.data.examples.labels import resolve_tags
from anyformer.data.examples.parts import Parts, as_text, fault, kind_of
from anyformer.errors import UserError
from anyformer.evaluation.label_metrics import (
    TaggedSpans,
    classification,
    entities,
    is_entity_scheme,
    never_right,
    span_pieces,
    tagging,
)
from anyformer.evaluation.logits import known_label, label_names, word_logits
from anyformer.evaluation.result import EvaluatedRow, Evaluation, Options
from anyformer.model import Transformer
from anyformer.tasks.task import Encoded, EncodedText, Encoding, RowSchema, Task, random_ids
from anyformer.tokenizer import Tokenizer
from anyformer.training.config import CompleteRunConfig


def _build(parts: Parts) -> TagExample:
    words, tags = parts.items("tokens"), parts.items("tags")
    tokens, own = parts.place("tokens"), parts.place("tags")
    if len(words) != len(tags):
        counts = f"has {len(words)} words in {tokens} and {len(tags)} tags in {own}"
        raise fault(parts.location, counts, "there must be one for each word")
    for word in words:
        as_text(word, parts.location, f"the list of {tokens}", empty=True)
    for tag in tags:
        if not isinstance(tag, str | int) or isinstance(tag, bool) or tag == "":
            raise fault(parts.location, f"has {kind_of(tag)} in the list of {own}", "tags are names or whole numbers")
    return TagExample(location=parts.location, words=tuple(words), tags=tuple(tags))


def _encode(encoding: Encoding, examples: Sequence[TagExample]) -> Iterator[Encoded]:
    grouped = is_entity_scheme(encoding.labels)
    for example in examples:
        words = encode_words(encoding.tokenizer, example.words, encoding.context)
        tags: list[str | None] = [None] * len(words.tokens)
        for position, tag in zip(words.first, example.tags, strict=True):
            if position is not None:
                tags[position] = tag
        text = EncodedText(tokens=words.tokens, tags=tags, grouped=grouped, cut=Truncation(tokens=words.cut))
        kinds = [entity.kind for entity in entities(example.tags)] if grouped else []
        yield Encoded(example=example, texts=[text], labels=example.tags, entities=kinds)


def _dataset(encoding: Encoding, encoded: Sequence[Encoded]) -> Dataset:
    numbers: dict[str | None, int] = {None: IGNORED, **encoding.numbers()}
    texts = [each.texts[0] for each in encoded]
    targets = [[numbers[tag] for tag in text.tags or ()] for text in texts]
    if all(number == IGNORED for row in targets for number in row):
        raise UserError(
            f"No word is left to be tagged, as in {encoded[0].example.location}: the tokenizer makes nothing of them, "
            f"or the context of {encoding.context:,} tokens has no room for them."
        )
    return tagged([text.tokens for text in texts], targets, encoding.pad)


def _evaluate(
    model: Transformer, tokenizer: Tokenizer | None, examples: Sequence[TagExample], options: Options
) -> Evaluation:
    """A tag for each word; one that is beyond the context counts as O."""
    sentences = [example.words for example in examples]
    outputs = word_logits(model, tokenizer, sentences, progress=options.counter("tag", len(examples)))
    names = label_names(model)
    grouped, index = is_entity_scheme(names), {name: number for number, name in enumerate(names)}
    outside = "O" if "O" in index else names[0]
    references, predictions, rows = list[list[str]](), list[list[str]](), list[EvaluatedRow]()
    for example, logits in zip(examples, outputs, strict=True):
        right = [known_label(tag, names, example) for tag in example.tags]
        tags = [outside if each is None else names[int(each.argmax())] for each in logits]
        losses = [
            np.log(len(names)) if each is None else -float(each.log_softmax(-1)[index[tag]])
            for each, tag in zip(logits, right, strict=True)
        ]
        tagged_words = list(zip(example.words, right, tags, strict=True))
        shown = " ".join(f"{word}/{tag}" for word, tag, _ in tagged_words if tag != outside)
        wrong = ", ".join(f"{word}: {other} for {tag}" for word, tag, other in tagged_words if tag != other)
        spans = TaggedSpans(*(span_pieces(example.words, each, grouped=grouped) for each in (right, tags)))
        loss = float(np.mean(losses))
        rows.append(EvaluatedRow(example.location, " ".join(example.words), shown, wrong, loss, not wrong, spans))
        references.append(right)
        predictions.append(tags)
    truncated = sum(each is None for logits in outputs for each in logits)
    notes = [f"{truncated:,} words are beyond the model's context, and count as {outside}."] if truncated else []
    if grouped:
        metrics, classes = tagging(references, predictions)
    else:
        flat, other = ([tag for row in tags for tag in row] for tags in (references, predictions))
        metrics, classes = classification(flat, other, names)
    if (missed := never_right(classes)) is not None:
        notes.append(missed)
    return Evaluation(metrics=metrics, rows=rows, classes=classes, notes=notes)


def _random_batch(config: CompleteRunConfig, model: ModelConfig, rng: Rng) -> Batch:
    tokens = random_ids(config, model, rng)
    return Batch(tokens, np.zeros_like(tokens))


TASK = Task(
    name="tag",
    learns="a label for each word",
    finetune="bert-base-uncased --data names.conll",
    example=TagExample,
    schemas=[
        RowSchema(build=_build, required={"tokens": WORDS, "tags": ("ner_tags", "tags", "pos_tags", "labels")}),
    ],
    resolve_labels=lambda examples, kind, labels, classes: resolve_tags(examples, labels, classes.get("tags", ())),
    classes=lambda example: example.tags,
    head="token_classification",
    encode=_encode,
    dataset=_dataset,
    loss_unit=lambda config: "cross-entropy of a tag, nats",
    settings=("labels",),
    # Most words are no entity, so that a rare label is in few batches, and is found only long after the frequent ones.
    fewest_steps=500,
    evaluate=_evaluate,
    lists_classes=True,
    nothing="nothing wrong",
    pipeline="token-classification",
    auto_class="AutoModelForTokenClassification",
    commands=lambda config, example, evaluate: [("classify", '"text"'), ("evaluate", evaluate)],
    random_batch=_random_batch,
)
