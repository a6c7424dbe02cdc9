"""Text in pieces, up to a stop string: what may still change is held back."""

from collections.abc import Iterable, Iterator, Sequence

from anyformer.tokenizer import StreamDecoder, Tokenizer

_CONTEXT = 32
"""Tokens of the prompt that the new ones are decoded behind: whether a word starts with a space depends on them."""


class StopStrings:
    """The text before the first of these strings; what may be the beginning of one is held back.

    The first is the one that is whole first, and of those that end together the longest: so it doesn't matter how the
    text comes in pieces.

    Attributes:
        found: whether one has come.
    """

    def __init__(self, stop: str | Sequence[str]) -> None:
        self._stops = [stop] if isinstance(stop, str) else list(stop)
        self._held = ""
        self.found = False

    def push(self, piece: str) -> str:
        """Take more of the text; returns what is certain by now."""
        if self.found:
            return ""
        held = self._held + piece
        places = [(begin + len(stop), begin) for stop in self._stops if (begin := held.find(stop)) >= 0]
        if places:
            self.found, self._held = True, ""
            return held[: min(places)[1]]
        possible = max((_begun(held, stop) for stop in self._stops), default=0)
        cut = len(held) - possible
        self._held = held[cut:]
        return held[:cut]

    def flush(self) -> str:
        """What was held back, at the end of the text."""
        rest, self._held = self._held, ""
        return rest


def _begun(text: str, stop: str) -> int:
    """How many characters of `stop` the text ends with."""
    return next((size for size in range(len(stop) - 1, 0, -1) if text.endswith(stop[:size])), 0)


def cut_at_stop(pieces: Iterable[str], stop: str | Sequence[str]) -> Iterator[str]:
    """The pieces before a stop string."""
    stops = StopStrings(stop)
    for piece in pieces:
        if certain := stops.push(piece):
            yield certain
        if stops.found:
            return
    if rest := stops.flush():
        yield rest


class Detokenizer:
    """The text of new tokens behind a prompt, in pieces, up to a stop string.

    Args:
        tokenizer: What decodes them.
        before: The prompt, or its last tokens.
        stop: Strings that end the text, and are no part of it.
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int], stop: str | Sequence[str] = ()) -> None:
        before = before[-_CONTEXT:]
        self._decoder = StreamDecoder(tokenizer)
        shown = sum(len(self._decoder.push(token)) for token in before)
        # What the decoder still holds back of the prompt is no new text.
        self._old = len(tokenizer.decode(before)) - shown if before else 0
        self._stops = StopStrings(stop)

    @property
    def stopped(self) -> bool:
        """Whether a stop string has come."""
        return self._stops.found

    def push(self, token: int) -> str:
        """Take the next token; returns the text that is certain by now."""
        return self._stops.push(self._new(self._decoder.push(token)))

    def flush(self) -> str:
        """What was held back, at the end of the text."""
        return self._stops.push(self._new(self._decoder.flush())) + self._stops.flush()

    def _new(self, piece: str) -> str:
        new = piece[self._old :]
        self._old = max(0, self._old - len(piece))
        return new


def continuation(tokenizer: Tokenizer, prompt: Sequence[int], new: Sequence[int]) -> str:
    """The text of new tokens behind a prompt, all at once."""
    before = list(prompt[-_CONTEXT:])
    known = tokenizer.decode(before) if before else ""
    return tokenizer.decode([*before, *new])[len(known) :]
