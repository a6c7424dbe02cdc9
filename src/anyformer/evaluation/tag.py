"""Answers of a tagger on the words of texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from anyformer.checkpoint.by_name import takes_model
from anyformer.data.examples.asked import Sentences, asked_sentences
from anyformer.data.examples.columns import Columns
from anyformer.evaluation.logits import label_names, require_words, word_logits
from anyformer.evaluation.metrics.tagging import entities, is_entity_scheme
from anyformer.evaluation.words import Span, word_spans
from anyformer.model import Transformer
from anyformer.one_line import OneLine
from anyformer.tokenizer import Tokenizer

_OUTSIDE = "O"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class TaggedWord(OneLine):
    """A word and its tag.

    Attributes:
        text: The word.
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
        label: What it is: the tags of its words without B- and I-.
        text: The words, as they are in the text.
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
        words: All words, in order.
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
        texts: One string is a list of one. A text is split into words as `anyformer.evaluation.words.word_spans` does;
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
    split = [_split(text) for text in asked_sentences(texts, columns)]
    require_words([text for text, _ in split])
    sentences = [[text[start:end] for start, end in spans] for text, spans in split]
    names, grouped = label_names(model), finds_entities(model)
    found = list[TaggedText]()
    for (text, spans), logits in zip(split, word_logits(model, tokenizer, sentences), strict=True):
        words = list[TaggedWord]()
        for (start, end), own in zip(spans, logits, strict=True):
            probability, best = (0.0, None) if own is None else own.softmax(dim=-1).max(dim=-1)
            said = None if best is None else names[int(best)]
            words.append(
                TaggedWord(text=text[start:end], start=start, end=end, tag=said, probability=float(probability))
            )
        found.append(TaggedText(words=tuple(words), entities=_entities(text, words) if grouped else ()))
    return found


def _split(text: str | Sequence[str]) -> tuple[str, list[Span]]:
    """A text, and where its words are."""
    if isinstance(text, str):
        return text, word_spans(text)
    spans, end = list[Span](), -1
    for word in text:
        start = end + 1
        end = start + len(word)
        spans.append((start, end))
    return " ".join(text), spans


def _entities(text: str, words: Sequence[TaggedWord]) -> tuple[Entity, ...]:
    found = list[Entity]()
    for label, first, behind in entities([word.tag or _OUTSIDE for word in words]):
        members = words[first:behind]
        start, end = members[0].start, members[-1].end
        mean = sum(word.probability for word in members) / len(members)
        found.append(Entity(label=label, text=text[start:end], start=start, end=end, probability=mean))
    return tuple(found)
