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
    return max((size for mark in marks for size in range(1, len(mark)) if text.endswith(mark[:size])), default=0)


class StopStrings:
    """The text before the first stop string; what may be the beginning of one is held back.

    The first is the one that ends first, and of those that end together the longest, so it doesn't depend on how the
    text comes in pieces.
    """

    def __init__(self, stop: str | Sequence[str]) -> None:
        self._stop = [stop] if isinstance(stop, str) else list(stop)
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
        if ends := [(begin + len(stop), begin, stop) for stop in self._stop if (begin := text.find(stop)) >= 0]:
            _, begin, self.matched = min(ends)
            self._held = ""
            return text[:begin]
        certain = len(text) - begun(text, self._stop)
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
