"""Answers of classifiers on texts, and of taggers on the words of texts."""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch

from anyformer.checkpoint.load import takes_model
from anyformer.data.examples.columns import Columns
from anyformer.data.examples.tables import Sentences, Texts, read_sentences, read_texts
from anyformer.errors import UserError
from anyformer.evaluation.label_metrics import entities, is_entity_scheme
from anyformer.evaluation.logits import label_names, require_words, text_logits, word_logits
from anyformer.model import Transformer
from anyformer.one_line import OneLine
from anyformer.tokenizer import Tokenizer
from anyformer.tokenizer.texts import texts_of

_LIKELY = 0.5
"""The probability above which one of several labels is taken for right, as in training and evaluation."""
_OUTSIDE = "O"
Span = tuple[int, int]
"""The characters of a word: the first one, and the one behind the last."""

_PIECE = re.compile(r"\S+")
_INITIALS = re.compile(r"\W*(?:[^\W\d_]\.)+")
_POSSESSIVE = ("'s", "\u2019s", "'S", "\u2019S")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Classification(OneLine):
    """The answer of a classifier on a text.

    Attributes:
        labels: The likeliest label; of a model for several labels those whose probability is over 0.5, the likeliest
            first; none of a regression.
        scores: By the name of each label its probability, the highest first; of a regression the numbers.
        cut: Tokens of the text that were cut off, as it is longer than the model's context.
    """

    labels: tuple[str, ...]
    scores: Mapping[str, float]
    cut: int = 0

    @property
    def label(self) -> str | None:
        """The first of the labels; None: there is none."""
        return self.labels[0] if self.labels else None

    @property
    def value(self) -> float | None:
        """The number that a regression predicts; None: there are labels, or several numbers."""
        return next(iter(self.scores.values())) if not self.labels and len(self.scores) == 1 else None


@takes_model
def classify(
    model: Transformer,
    tokenizer: Tokenizer | None,
    texts: Texts,
    second: str | Iterable[str] | None = None,
    *,
    columns: Columns | Mapping[str, str] | None = None,
) -> list[Classification]:
    """Classify texts, or pairs of texts.

    Args:
        model, tokenizer: A model with a classification head, and its tokenizer. A text that is too long for the model
            is cut at its end, of a pair the longer one.
        texts: One string is a list of one. In their place may be rows, as `anyformer.evaluate` takes them: dicts, a
            data frame of pandas or polars, a `datasets.Dataset`; their labels are not read.
        second: The second text of each pair; one string is that of all. None: the texts are no pairs, or rows have
            both.
        columns: The names of columns of rows that aren't the usual ones, such as ``{"text": "review"}``.

    Returns:
        For each text its label and the probability of every label: the softmax of the logits, or for a model of several
        labels their sigmoid; the logits themselves are the numbers of a regression.

    Raises:
        UserError: a model without a classification head, no tokenizer, an empty text, other numbers of texts and second
            texts, rows without a column of texts, an output that is NaN.
    """
    pairs = read_texts(texts, columns)
    texts = [text for text, _ in pairs]
    seconds = [own for _, own in pairs]
    if second is not None:
        seconds = [second] * len(texts) if isinstance(second, str) else texts_of(second, "Second text")
    if len(seconds) != len(texts):
        raise UserError(
            f"There are {len(texts)} texts and {len(seconds)} second texts: give one for each, or one for all."
        )
    require_words(texts)
    require_words([each for each in seconds if each is not None], "Second text")
    rows, cut = text_logits(model, tokenizer, list(zip(texts, seconds, strict=True)))
    names = label_names(model)
    logits = torch.from_numpy(rows)
    if model.config.head.problem == "regression":
        return [
            Classification(labels=(), scores=dict(zip(names, row, strict=True)), cut=tokens)
            for row, tokens in zip(logits.tolist(), cut, strict=True)
        ]
    several = model.config.head.problem_type == "multi_label_classification"
    probabilities = (logits.sigmoid() if several else logits.softmax(dim=-1)).numpy()
    answers = list[Classification]()
    for row, tokens in zip(probabilities, cut, strict=True):
        scores = {names[index]: float(row[index]) for index in np.argsort(-row, kind="stable")}
        labels = [name for name, score in scores.items() if score > _LIKELY] if several else list(scores)[:1]
        answers.append(Classification(labels=tuple(labels), scores=scores, cut=tokens))
    return answers


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class TaggedWord(OneLine):
    """A word and its tag.

    Attributes:
        start, end: Its first character in the text, from 0, and the one behind its last.
        tag: The likeliest; None: the word is beyond the model's context, or its tokenizer makes nothing of it.
        probability: Of the tag; 0 where there is none.
    """

    text: str
    start: int
    end: int
    tag: str | None
    probability: float


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Entity(OneLine):
    """Words with a name, such as a person's.

    Attributes:
        label: Its kind: the tags of its words without B- and I-.
        start, end: Its first character in the text, from 0, and the one behind its last.
        probability: The mean of its words' probabilities.
    """

    label: str
    text: str
    start: int
    end: int
    probability: float


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class TaggedText(OneLine):
    """The answer of a tagger on a text.

    Attributes:
        entities: Those that the tags make up; none where the model's tags are not B-, I- (or E-, S-) and O.
    """

    words: tuple[TaggedWord, ...]
    entities: tuple[Entity, ...]

    @property
    def untagged(self) -> int:
        """Words without a tag."""
        return sum(word.tag is None for word in self.words)


def finds_entities(model: Transformer) -> bool:
    """Whether a tagger's tags make up entities, and are not parts of speech, say."""
    return is_entity_scheme(label_names(model))


@takes_model
def tag(
    model: Transformer,
    tokenizer: Tokenizer | None,
    texts: Sentences,
    *,
    columns: Columns | Mapping[str, str] | None = None,
) -> list[TaggedText]:
    """Tag the words of texts, and find the entities among them.

    A word is given the label of its first token, which is the one that fine-tuning trains. Entities begin and end as
    conlleval and seqeval read the tags.

    Args:
        model, tokenizer: A model with a token classification head, and its tokenizer. Words beyond the model's context
            get no tag.
        texts: One string is a list of one. A text is split into words as `word_spans` does;
            in its place may be a list of words, whose characters are counted in the words with a space between them.
            Rows, as `anyformer.evaluate` takes them, have a column of either; their tags are not read.
        columns: The name of that column, where it isn't a usual one: ``{"tokens": "split"}`` of lists of words, or
            ``{"text": "review"}``.

    Returns:
        For each text its words, each with its tag, and the entities.

    Raises:
        UserError: a model without such a head, no tokenizer, an empty text, rows without a column of texts, an output
            that is NaN.
    """
    split = [_split(text) for text in read_sentences(texts, columns)]
    require_words([text for text, _ in split])
    sentences = [[text[start:end] for start, end in spans] for text, spans in split]
    names, grouped = label_names(model), finds_entities(model)
    tagged = list[TaggedText]()
    for (text, spans), logits in zip(split, word_logits(model, tokenizer, sentences), strict=True):
        words = list[TaggedWord]()
        for (start, end), own in zip(spans, logits, strict=True):
            probability, best = (0.0, None) if own is None else own.softmax(dim=-1).max(dim=-1)
            label = None if best is None else names[int(best)]
            words.append(
                TaggedWord(text=text[start:end], start=start, end=end, tag=label, probability=float(probability))
            )
        tagged.append(TaggedText(words=tuple(words), entities=_entities(text, words) if grouped else ()))
    return tagged


def _split(text: str | Sequence[str]) -> tuple[str, list[Span]]:
    if isinstance(text, str):
        return text, word_spans(text)
    starts = accumulate((len(word) + 1 for word in text), initial=0)
    return " ".join(text), [(start, start + len(word)) for start, word in zip(starts, text, strict=False)]


def _entities(text: str, words: Sequence[TaggedWord]) -> tuple[Entity, ...]:
    named = list[Entity]()
    for label, first, behind in entities([word.tag or _OUTSIDE for word in words]):
        members = words[first:behind]
        start, end = members[0].start, members[-1].end
        mean = sum(word.probability for word in members) / len(members)
        named.append(Entity(label=label, text=text[start:end], start=start, end=end, probability=mean))
    return tuple(named)


def word_spans(text: str) -> list[Span]:
    """Find the words of a text.

    Words are separated by space. Punctuation before and behind a word is a word of its own, the same mark several times
    is one (`...`), and so is `'s`, as in the data sets of CoNLL 2003 and WNUT 2017. What is left whole: punctuation
    within a word (`co-op`, `3.5`, `don't`), initials (`U.S.`), and `@` and `#` before a name.
    """
    return [span for piece in _PIECE.finditer(text) for span in _split_piece(text, *piece.span())]


def _split_piece(text: str, start: int, end: int) -> Iterator[Span]:
    """The words of a piece without space."""
    after = list[Span]()
    while start < end and _is_mark(text[end - 1]):
        first = end - 1
        while first > start and text[first - 1] == text[end - 1]:
            first -= 1
        after.append((first, end))
        end = first
    if after and _INITIALS.fullmatch(text, start, after[-1][1]):
        end = after.pop()[1]
    if text.endswith(_POSSESSIVE, start, end):
        after.append((end - 2, end))
        end -= 2
    while start < end and _is_mark(text[start]) and not (text[start] in "@#" and not _is_mark(text[start + 1])):
        first = start
        while start < end and text[start] == text[first]:
            start += 1
        yield first, start
    if start < end:
        yield start, end
    yield from reversed(after)


def _is_mark(character: str) -> bool:
    return unicodedata.category(character).startswith("P")
