"""The text of generated tokens in pieces, up to a stop string; what may still change is held back."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile

from torch import Tensor
from typing_extensions import override

from anyformer.tokenizer import StreamDecoder, Tokenizer

_CONTEXT = 32
"""Tokens of the prompt that the new ones are decoded with: whether a word starts with a space depends on them."""


def begun(text: str, marks: Iterable[str]) -> int:
    """Characters at the end of a text with which one of these strings may begin."""
    searches = [_Search(mark) for mark in marks]
    for search in searches:
        search.push(text[max(0, len(text) - len(search.mark) + 1) :])
    return max((search.size for search in searches), default=0)


class _Search:
    """The search for a string in a text that comes in pieces, in time linear in the text (Knuth, Morris and Pratt 1977,
    "Fast Pattern Matching in Strings").

    Attributes:
        size: Characters at the end of the text that the string begins with.
    """

    def __init__(self, mark: str) -> None:
        self.mark, self.size = mark, 0
        self._borders = [0, 0]
        """For each beginning of the string that has come, the longest shorter one at its end."""

    def push(self, piece: str) -> int | None:
        """Append to the text; returns where in the piece the string ends, or None."""
        mark, borders, size = self.mark, self._borders, self.size
        for index, character in enumerate(piece):
            while size and mark[size] != character:
                size = borders[size]
            size += mark[size] == character
            if size == len(mark):
                return index + 1
            if size == len(borders):  # the text ends with this beginning, so its border is found as the text was
                border = borders[-1]
                while border and mark[border] != character:
                    border = borders[border]
                borders.append(border + (mark[border] == character))
        self.size = size
        return None


class StopStrings:
    """The text before the first stop string; what may be the beginning of one is held back.

    The first is the one that ends first, and of those that end together the longest, so it doesn't depend on how the
    text comes in pieces.
    """

    def __init__(self, stop: str | Sequence[str]) -> None:
        self._searches = [_Search(each) for each in ([stop] if isinstance(stop, str) else stop)]
        self._held = ""
        self.matched: str | None = None
        """The one that has come."""

    @property
    def stopped(self) -> bool:
        """Whether one has come."""
        return self.matched is not None

    def push(self, piece: str) -> str:
        """Append to the text; returns what is certain by now."""
        if self.stopped:
            return ""
        text = self._held + piece
        ends = [(end, -len(search.mark), search.mark) for search in self._searches if (end := search.push(piece))]
        if ends:
            end, size, self.matched = min(ends)
            certain, self._held = len(self._held) + end + size, ""
            return text[:certain]
        certain = len(text) - max((search.size for search in self._searches), default=0)
        self._held = text[certain:]
        return text[:certain]

    def flush(self) -> str:
        """Return the text that was held back, at its end."""
        rest, self._held = self._held, ""
        return rest


def cut_at_stop(pieces: Iterable[str], stop: str | Sequence[str]) -> Iterator[str]:
    """The pieces before a stop string."""
    stops = StopStrings(stop)
    return _certain(stops, map(stops.push, pieces))


def _certain(text: StopStrings, pushed: Iterable[str]) -> Iterator[str]:
    """The text that is certain after each piece, up to a stop string."""
    for certain in pushed:
        if certain:
            yield certain
        if text.stopped:
            return
    if rest := text.flush():
        yield rest


class Detokenizer(StopStrings):
    """The text of new tokens after a prompt, in pieces, up to a stop string, which is no part of it."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Sequence[int] = (),
        stop: str | Sequence[str] = (),
        skip_special: bool = True,
    ) -> None:
        super().__init__(stop)
        prompt = prompt[-_CONTEXT:]
        self._decoder = StreamDecoder(tokenizer, skip_special=skip_special)
        self._pending = len(tokenizer.decode(prompt, skip_special)) - len(self._decoder.push(*prompt)) if prompt else 0
        """Characters of the prompt that the decoder holds back."""

    def push_token(self, token: int) -> str:
        """Append a token; returns the text that is certain by now."""
        return self._push_new(self._decoder.push(token))

    @override
    def flush(self) -> str:
        return self._push_new(self._decoder.flush()) + super().flush()

    def _push_new(self, piece: str) -> str:
        new = piece[self._pending :]
        self._pending = max(0, self._pending - len(piece))
        return self.push(new)


def stream_text(text: Detokenizer, tokens: Iterable[int | Tensor], eos: Sequence[int] = ()) -> Iterator[str]:
    """The text of tokens in pieces, as soon as they are certain, up to a stop string."""
    return _certain(text, (text.push_token(token) for token in map(int, tokens) if token not in eos))


def continuation(
    tokenizer: Tokenizer, prompt: Sequence[int], new: Iterable[int], stop: str | Sequence[str], eos: Sequence[int]
) -> str:
    """The text of new tokens after a prompt, up to an end-of-text token or a stop string, all at once."""
    prompt = list(prompt[-_CONTEXT:])
    before = tokenizer.decode(prompt) if prompt else ""
    ids = [*prompt, *takewhile(lambda token: token not in eos, new)]
    return "".join(cut_at_stop([tokenizer.decode(ids)[len(before) :]], stop))
