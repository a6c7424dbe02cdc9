"""Texts, pairs of texts and words as a classifier reads them: with special tokens and segments, cut to a length."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from anyformer.errors import UserError
from anyformer.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class ClassifierInput:
    """Token ids.

    Attributes:
        tokens: Ids, with the special ones.
        segments: The segment of each: 1 for the second text of a pair, where the tokenizer tells them apart.
        cut: Tokens that were cut off.
    """

    tokens: Sequence[int]
    segments: Sequence[int]
    cut: int = 0


@dataclass(frozen=True, slots=True)
class WordsInput(ClassifierInput):
    """Token ids of words.

    Attributes:
        first: For each word the index of its first token, whose label is the word's; None for words that were cut off,
            or that the tokenizer makes nothing of.
    """

    first: Sequence[int | None] = ()


def encode_texts(
    tokenizer: Tokenizer, texts: Sequence[tuple[str, str | None]], max_length: int | None = None
) -> list[ClassifierInput]:
    """Encode texts, each with its second one or None, as `transformers` does.

    At most `max_length` tokens are kept; of a pair the longer text is cut, at its end.

    Raises:
        UserError: a text can't be encoded, or `max_length` has no room beside the special tokens.
    """
    encodings = _encodings(tokenizer, texts, max_length)
    return [ClassifierInput(encoding.ids, encoding.type_ids, cut) for encoding, cut in encodings]


def encode_words(tokenizer: Tokenizer, words: Sequence[str], max_length: int | None = None) -> WordsInput:
    """Encode the words of a sentence, as a text with spaces between them; otherwise as `encode_texts`."""
    ((encoding, cut),) = _encodings(tokenizer, [(" ".join(words), None)], max_length)
    # The word that each character is part of, None for the spaces between them.
    word_at = [part for index, word in enumerate(words) for part in (*[index] * len(word), None)]
    first: list[int | None] = [None] * len(words)
    for position, (begin, end) in enumerate(encoding.offsets):
        for word in word_at[begin:end]:
            if word is not None and first[word] is None:
                first[word] = position
    return WordsInput(encoding.ids, encoding.type_ids, cut, first)


def _encodings(
    tokenizer: Tokenizer, texts: Sequence[tuple[str, str | None]], max_length: int | None
) -> list[tuple[Any, int]]:
    """The encoding of each text, and how many tokens of it were cut off."""
    encodings = tokenizer.encodings([text if second is None else (text, second) for text, second in texts])
    result: list[tuple[Any, int]] = []
    for (text, second), encoding in zip(texts, encodings, strict=True):
        if max_length is None or len(encoding.ids) <= max_length:
            result.append((encoding, 0))
        else:
            result.append((_truncated(tokenizer, text, second, max_length), len(encoding.ids) - max_length))
    return result


def _truncated(tokenizer: Tokenizer, text: str, second: str | None, max_length: int) -> Any:
    """The encoding of a text that is too long, the longer one of two being cut first."""
    backend: Any = tokenizer.backend
    parts = [backend.encode(part, add_special_tokens=False) for part in (text, second) if part is not None]
    room = max_length - backend.num_special_tokens_to_add(second is not None)
    if room < len(parts):
        raise UserError(f"A context of {max_length} tokens has no room for a text beside the special tokens: raise it.")
    lengths = [room]
    if len(parts) == 2:
        first, other = (len(part.ids) for part in parts)
        shorter = min(first, other, room // 2)
        lengths = [shorter, room - shorter] if first <= other else [room - shorter, shorter]
    for part, length in zip(parts, lengths, strict=True):
        part.truncate(length)
    return backend.post_process(*parts)
