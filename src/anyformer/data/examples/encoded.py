"""Examples as token ids: texts and completions of a decoder, and what a classifier reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from anyformer.config import SpecialTokens
from anyformer.data.examples import CompletionExample
from anyformer.errors import UserError, located
from anyformer.tokenizer import Tokenizer
from anyformer.tokenizer.prompt import encode_continuation, encode_decoder_prompt


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """A text as a decoder reads it.

    Attributes:
        tokens: Its ids, with the special ones.
        loss_mask: For each of them whether it is a target of the loss; the token before it predicts it.
        mismatches: Borders of prompts and answers across which the tokenizer would merge characters if it encoded both
            together. The ids are those of the prompt and then those of the answer, as in generation.
    """

    tokens: Sequence[int]
    loss_mask: Sequence[bool]
    mismatches: int = 0

    @property
    def targets(self) -> int:
        """The number of targets."""
        return sum(self.loss_mask)


@dataclass(frozen=True, slots=True)
class Truncation:
    """Tokens that `truncate` cut off.

    Attributes:
        tokens, targets: Tokens, and how many of them were targets.
        lost_end: Whether the last target is gone, from which the model learns where an answer ends.
        lost_all: Whether there were targets, and none is left.
    """

    tokens: int = 0
    targets: int = 0
    lost_end: bool = False
    lost_all: bool = False


def truncate(row: EncodedRow, context: int | None) -> tuple[EncodedRow, Truncation]:
    """Keep the beginning of a row, at most `context` tokens (None: all), and say what was cut off."""
    if context is None or len(row.tokens) <= context:
        return row, Truncation()
    beginning = EncodedRow(row.tokens[:context], row.loss_mask[:context], row.mismatches)
    lost = row.targets - beginning.targets
    return beginning, Truncation(len(row.tokens) - context, lost, lost > 0, lost > 0 and beginning.targets == 0)


def encode_completion(
    tokenizer: Tokenizer,
    example: CompletionExample,
    *,
    learn_all: bool = False,
    special_tokens: SpecialTokens | None = None,
) -> EncodedRow:
    """The ids of a prompt and its completion, with the end of text, which is a target.

    The prompt has the ids that `generate` gives it, and each segment those that it has behind them.

    Args:
        learn_all: Learn the prompt, too.
        special_tokens: The model's, for an empty prompt.

    Raises:
        UserError: a text can't be encoded, there is no token that ends a text, or none to begin one with.
    """
    with located(example.location):
        eos = end_of_text(tokenizer)
        runs = groupby(example.segments, key=lambda segment: segment[1])
        segments = [("".join(text for text, _ in run), is_target) for is_target, run in runs]
        text, _ = segments.pop(0) if segments and not segments[0][1] else ("", False)
        ids = encode_decoder_prompt(tokenizer, text, special_tokens)
        if not ids:
            raise UserError(
                "the prompt is empty, and the model has no beginning-of-text token: give it a few words to start from."
            )
        loss_mask, mismatches = [False] + [learn_all] * (len(ids) - 1), 0  # nothing predicts the first token
        for segment, is_target in segments:
            # An empty prompt is a token alone, which need not be what the tokenizer puts before a text.
            whole = encode_decoder_prompt(tokenizer, text + segment, special_tokens)
            new, mismatch = encode_continuation(tokenizer, ids, whole, segment)
            ids, text, mismatches = ids + new, text + segment, mismatches + mismatch
            loss_mask += [is_target or learn_all] * len(new)
        if ids[-1] != eos or not loss_mask[-1]:
            ids, loss_mask = [*ids, eos], [*loss_mask, True]
        return EncodedRow(ids, loss_mask, mismatches)


def end_of_text(tokenizer: Tokenizer) -> int:
    """The id of the end of text. Raises UserError where there is none."""
    if tokenizer.eos is None:
        advice = "declare eos_token in its tokenizer_config.json"
        if not tokenizer.special_ids:
            advice = "its vocabulary has none, either; a base that is trained with --tokenizer bpe:2048 has one"
        raise UserError(
            f"the tokenizer has no end-of-text token, so a model can't learn where an answer ends: {advice}."
        )
    return tokenizer.eos


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

    At most `max_length` tokens are kept; of a pair the longer text is cut, at its end. Raises UserError where a text
    can't be encoded, or `max_length` has no room beside the special tokens.
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
    pairs = zip(texts, encodings, strict=True)
    return [_shortened(tokenizer.backend, own, encoding, max_length) for own, encoding in pairs]


def _shortened(backend: Any, texts: tuple[str, str | None], encoding: Any, max_length: int | None) -> tuple[Any, int]:
    """The encoding in at most so many tokens, the longer of two texts cut first, and how many tokens were cut off."""
    if max_length is None or len(encoding.ids) <= max_length:
        return encoding, 0
    parts = [backend.encode(text, add_special_tokens=False) for text in texts if text is not None]
    room = max_length - backend.num_special_tokens_to_add(len(parts) == 2)
    if room < len(parts):
        raise UserError(f"A context of {max_length} tokens has no room for a text beside the special tokens: raise it.")
    lengths = [room]
    if len(parts) == 2:
        first, other = (len(part.ids) for part in parts)
        shorter = min(first, other, room // 2)
        lengths = [shorter, room - shorter] if first <= other else [room - shorter, shorter]
    for part, length in zip(parts, lengths, strict=True):
        part.truncate(length)
    return backend.post_process(*parts), len(encoding.ids) - max_length
