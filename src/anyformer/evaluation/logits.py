"""The logits of classifiers and taggers in batches of texts of about the same length, and their labels."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from anyformer.data.examples import Example
from anyformer.data.examples.encoded import ClassifierInput, encode_texts, encode_words
from anyformer.errors import UserError, quote
from anyformer.evaluation.label_metrics import classification, confusion_matrix
from anyformer.evaluation.metrics import Array
from anyformer.evaluation.result import Confusion, EvaluatedRow, Evaluation
from anyformer.generation.inference import check_ids, check_nan, evaluating, require_tokenizer
from anyformer.generation.prompt import batches_by_length, input_pad_id, pad
from anyformer.model import Transformer
from anyformer.tokenizer import Tokenizer

Progress = Callable[[int], None]
"""Called after each batch with the number of its examples."""

_BATCH_TOKENS = 4096
"""Tokens of a batch, padding included."""
_SHOWN_LABELS = 5


def label_names(model: Transformer) -> list[str]:
    """The names of a classifier's answers: its labels.

    Where a tagger says of a single label whether it holds, "O" comes before it (ELECTRA's discriminator).
    """
    names = model.config.head.names
    return ["O", *names] if _is_binary(model) else [*names]


def _is_binary(model: Transformer) -> bool:
    return model.config.head.kind == "token_classification" and model.config.head.problem_type is not None


def text_logits(
    model: Transformer,
    tokenizer: Tokenizer | None,
    texts: Sequence[tuple[str, str | None]],
    *,
    progress: Progress = lambda count: None,
) -> tuple[Array, list[int]]:
    """The logits of a classifier.

    Args:
        texts: Each with its second text, or None. What is too long for the model is cut.

    Returns:
        The logits [texts, labels], and the number of tokens of each text that were cut off.

    Raises:
        UserError: a model without a classification head, no tokenizer, a text without a token, an output that is NaN.
    """
    _require_head(model, "classification", "classifies texts")
    tokenizer = require_tokenizer(tokenizer, "give the model token ids")
    inputs = encode_texts(tokenizer, texts, _longest(model))
    logits = np.zeros((len(inputs), model.config.head.labels))
    for rows, part in _forward(model, tokenizer, inputs, progress):
        logits[rows] = part.cpu().numpy()
    return logits, [each.cut for each in inputs]


def word_logits(
    model: Transformer,
    tokenizer: Tokenizer | None,
    sentences: Sequence[Sequence[str]],
    *,
    progress: Progress = lambda count: None,
) -> list[list[Float[Tensor, " labels"] | None]]:
    """The logits of each word's first token, as `encode_words` finds it.

    Returns:
        For each word of each sentence its logits; None for words that are beyond the context, and for those that the
        tokenizer makes nothing of.

    Raises:
        UserError: as `text_logits`, but the head is one for tokens.
    """
    _require_head(model, "token_classification", "labels tokens")
    tokenizer = require_tokenizer(tokenizer, "give the model token ids")
    inputs = [encode_words(tokenizer, sentence, _longest(model)) for sentence in sentences]
    words: list[list[Tensor | None]] = [[] for _ in sentences]
    for rows, logits in _forward(model, tokenizer, inputs, progress):
        for row, own in zip(rows, logits.cpu(), strict=True):
            # The sigmoid of a logit is the softmax of 0 and it.
            scores = torch.nn.functional.pad(own, (1, 0)) if _is_binary(model) else own
            words[row] = [None if index is None else scores[index] for index in inputs[row].first]
    return words


def require_words(texts: Sequence[str], what: str = "Text") -> None:
    """Raise UserError for a text, which is called `what`, that is empty or only space."""
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            raise UserError(f"{what} {number} of {len(texts)} is empty: leave it out.")


_FUNCTIONS = {"classification": "classify", "token_classification": "tag"}
"""Functions of this package by the head that they read: `anyformer classify` serves both."""


def _require_head(model: Transformer, kind: str, what: str) -> None:
    head = model.config.head.kind
    if head in _FUNCTIONS and head != kind:
        raise UserError(
            f"This model has no head that {what}: its head is {quote(head)}, so use `anyformer.{_FUNCTIONS[head]}`."
        )
    if head != kind:
        raise UserError(
            f"This model has no head that {what} (its head is {quote(head)}): load one that was trained for that, or "
            "train it with `anyformer finetune MODEL --data FILE`."
        )


def _longest(model: Transformer) -> int:
    """Tokens of a text that the model reads."""
    return model.config.context_length or model.config.max_length


def _forward(
    model: Transformer, tokenizer: Tokenizer, inputs: Sequence[ClassifierInput], progress: Progress
) -> Iterator[tuple[list[int], Tensor]]:
    """Indices of inputs and their logits, [batch, labels] or [batch, time, labels]."""
    for number, each in enumerate(inputs, start=1):
        if not each.tokens:
            raise UserError(f"Text {number} of {len(inputs)} has no token: leave it out.")
    segments = model.config.embedding.segments
    with evaluating(model), torch.inference_mode():
        for rows in batches_by_length([len(each.tokens) for each in inputs], _BATCH_TOKENS):
            batch = [inputs[row] for row in rows]
            ids, mask = pad([each.tokens for each in batch], input_pad_id(model, tokenizer), model.device)
            check_ids(ids, model.config.vocab_size)
            kinds = pad([each.segments for each in batch], 0, model.device)[0] if segments > 1 else None
            logits = model(ids, mask=None if bool(mask.all()) else mask, segments=kinds, pooled_only=True).logits
            assert logits is not None
            check_nan(logits.flatten(0, -2))
            yield rows, logits.float()
            progress(len(rows))


def single_label(
    examples: Sequence[Example],
    references: Sequence[str],
    names: Sequence[str],
    log_p: Array,
    shown: Sequence[str],
) -> Evaluation:
    """The evaluation of log-probabilities [examples, labels]."""
    index = {name: number for number, name in enumerate(names)}
    predictions = [names[int(best)] for best in log_p.argmax(axis=1)]
    rows = [
        EvaluatedRow(example.location, text, reference, name, -float(row[index[reference]]), name == reference)
        for example, text, reference, name, row in zip(examples, shown, references, predictions, log_p, strict=True)
    ]
    metrics, classes = classification(references, predictions, names)
    confusion = Confusion(names, confusion_matrix(references, predictions, names))
    return Evaluation(metrics=metrics, rows=rows, classes=classes, confusion=confusion)


def known_label(label: str, names: Sequence[str], example: Example) -> str:
    """The model's name of a label that is given by name or by number. Raises UserError for another one."""
    if label in names:
        return label
    if label.isdecimal() and int(label) < len(names):
        return names[int(label)]
    some = ", ".join(map(repr, names[:_SHOWN_LABELS])) + (" ..." if len(names) > _SHOWN_LABELS else "")
    raise UserError(f"{example.location}: the label is {quote(label)}, and those that can be predicted are {some}.")


def log_softmax(logits: Array) -> Array:
    """The log-probabilities of logits [rows, labels]."""
    return torch.from_numpy(logits).log_softmax(dim=-1).numpy()
