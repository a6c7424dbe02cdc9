"""The check of examples before training on them: their counts, the tokens cut off, and what can't work."""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence

from anyformer.data.examples import Example, Twice
from anyformer.data.formats import Location
from anyformer.errors import UserError, quote
from anyformer.tasks.task import Encoded, EncodedText, Task
from anyformer.terminal import shorten
from anyformer.tokenizer import Tokenizer

_FEW, _PAIRS = 8, 4
"""Labels that a line names, and pairs of them that are spelled alike."""
_SHOWN = 80
"""Characters of a system prompt that a line repeats."""

Lines = Iterator[tuple[str, str]]
"""Names and texts, for people."""


class Check:
    """Counts over the encoded examples of a task, added one after the other.

    Args:
        context: Tokens that a row has at most; None: any number.
        stops: Ids at which generation ends a text; none: they aren't known.

    Attributes:
        examples, rows, tokens, learned: Numbers of each, after rows were cut; a row is a text that the model reads.
        cut: The rows that were longer than the context, by what they lost: ``rows``, ``tokens``, ``learned``,
            ``ends`` of answers, and rows that have lost ``all`` of their learned tokens.
        unlearned: Rows without a learned token.
        mismatches: Borders between prompt and answer across which the tokenizer would merge characters.
        duplicates, overlap: Examples that repeat others, as the functions of these names in `held_out` find them.
        system_prompt, system_prompts: The one that the chat template adds, and how many conversations get it.
    """

    def __init__(
        self, task: Task, tokenizer: Tokenizer, *, context: int | None = None, stops: Collection[int] = ()
    ) -> None:
        self.task = task
        self.context = context
        self.examples = self.rows = self.tokens = self.learned = 0
        self.unlearned = self.mismatches = self.system_prompts = 0
        self.cut, self.labels, self.entities = Counter[str](), Counter[str](), Counter[str]()
        self.duplicates: Sequence[Twice] = ()
        self.overlap: Sequence[Twice] = ()
        self.system_prompt: str | None = None
        self._numbers: list[float] = []
        self._tokenizer = tokenizer
        self._stops = frozenset(stops)
        self._ends = Counter[int]()
        self._doubled = self._with_learned = 0
        self._mismatch: str | None = None
        self._unlearned_at: Location | None = None

    def add(self, encoded: Encoded) -> None:
        """Count an example."""
        self.examples += 1
        for text in encoded.texts:
            self._add_text(encoded.example, text)
        self.labels.update(label for label in encoded.labels if isinstance(label, str))
        self._numbers += [label for label in encoded.labels if not isinstance(label, str)]
        self.entities.update(encoded.entities)
        self._mismatch = self._mismatch or encoded.mismatch
        if encoded.system_prompt is not None:
            self.system_prompt = encoded.system_prompt
            self.system_prompts += 1

    def _add_text(self, example: Example, text: EncodedText) -> None:
        tokens, cut, loss_mask = text.tokens, text.cut, text.loss_mask
        self.rows += 1
        self.tokens += len(tokens)
        if cut.tokens:
            self.cut.update(rows=1, tokens=cut.tokens, learned=cut.targets, ends=cut.lost_end, all=cut.lost_all)
        bos = self._tokenizer.bos
        self._doubled += bos is not None and list(tokens[:2]) == [bos, bos]
        if loss_mask is None or text.asks:
            return
        self._with_learned += 1
        self.learned += sum(loss_mask)
        self.mismatches += text.mismatches
        if not any(loss_mask):
            self.unlearned += 1
            self._unlearned_at = self._unlearned_at or example.location
        # The token at the end of each stretch that is learned.
        borders = zip(loss_mask, [*loss_mask[1:], False], strict=True)
        self._ends.update(tokens[index] for index, (here, after) in enumerate(borders) if here and not after)

    def facts(self) -> Lines:
        """Facts on the data."""
        rows = "" if self.rows == self.examples else f" in {_count(self.rows, 'row')}"
        yield "examples", f"{self.examples:,}{rows}"
        share = f", {self.learned:,} of them learned ({self.learned / max(1, self.tokens):.0%})"
        yield "tokens", f"{self.tokens:,}{share if self._with_learned else ''}"
        if self._numbers:
            low, high = min(self._numbers), max(self._numbers)
            mean = sum(self._numbers) / len(self._numbers)
            yield "labels", f"numbers from {low:g} to {high:g}, {mean:.3g} on average"
        if self.labels:
            shown = ", ".join(f"{shorten(name, 40)} {count:,}" for name, count in self.labels.most_common(_FEW))
            yield "labels", f"{len(self.labels):,}: {shown}{_more(len(self.labels) - _FEW)}"

    def warnings(self) -> Lines:
        """Warnings before training."""
        if alike := look_alikes(self.labels):
            pairs = [
                " is nearly ".join(f"{shorten(name, 40)!r} ({self.labels[name]:,})" for name in pair)
                for pair in alike[:_PAIRS]
            ]
            yield "spelling", f"{', '.join(pairs)}{_more(len(alike) - _PAIRS)}: each counts as a label of its own"
        if cut := self.cut:
            learned = f", {cut['learned']:,} of them to be learned" if cut["learned"] else ""
            parts = [
                f"{_count(cut['rows'], 'row')} longer than {self.context:,} tokens",
                f"{_count(cut['tokens'], 'token')} left out{learned}",
                *([f"{_count(cut['ends'], 'row')} without the end of the answer"] if cut["ends"] else []),
                *([f"{cut['all']:,} without any of it"] if cut["all"] else []),
            ]
            yield "cut", "; ".join(parts)
        if self.unlearned:
            rows = _count(self.unlearned, "row")
            yield "unlearned", f"{rows} without a token to be learned, the first {self._unlearned_at}"
        if self.system_prompt is not None:
            prompt = quote(shorten(" ".join(self.system_prompt.split()), _SHOWN))
            yield "template", f"adds a system prompt to {_count(self.system_prompts, 'conversation')}: {prompt}"
        if self.task.add_system is not None and "strftime_now" in (self._tokenizer.chat_template or ""):
            yield "date", "the chat template writes today's, which is another one when the model is used"
        yield from self._ends_warning()
        if self.mismatches:
            yield (
                "borders",
                f"at {self.mismatches:,} the tokenizer would merge prompt and answer: each is encoded alone",
            )
        if self._doubled:
            token = quote(self._tokenizer.token(self._tokenizer.bos or 0))
            yield "doubled", f"{_count(self._doubled, 'row')} with {token} twice at the beginning"
        repeated = {"duplicates": ("there already", self.duplicates), "overlap": ("for training as well", self.overlap)}
        for name, (reason, pairs) in repeated.items():
            if pairs:
                before, location = pairs[0]
                yield name, f"{_count(len(pairs), 'example')} {reason}, the first {location} (as {before})"

    def lines(self) -> list[str]:
        """`facts` and `warnings`, for people."""
        return [f"{name:<11}{text}" for name, text in (*self.facts(), *self.warnings())]

    def problems(self) -> None:
        """Raise UserError if training on these examples can't work: nothing is learned, or not what is used later."""
        if not self.examples:
            raise UserError("There is no example to train on.")
        if self._mismatch is not None:
            raise UserError(self._mismatch)
        if self._with_learned and not self.learned and self.cut["all"]:
            raise UserError(
                f"No token is left to be learned: the prompts alone are longer than the context of {self.context:,} "
                "tokens. Give --context more, or shorten them."
            )
        if self._with_learned and not self.learned:
            raise UserError(f"No token is to be learned, as in {self._unlearned_at}: there is no answer.")

    def _ends_warning(self) -> Lines:
        others = Counter({token: count for token, count in self._ends.items() if token not in self._stops})
        # Where a row was cut, it ends somewhere.
        missing = others.total() - self.cut["ends"]
        if self._stops and missing > 0 and self.task.checks_ends:
            answers = "1 answer ends" if missing == 1 else f"{missing:,} answers end"
            end = quote(self._tokenizer.token(others.most_common(1)[0][0]))
            stops = " or ".join(sorted(repr(self._tokenizer.token(stop)) for stop in self._stops))
            yield "ends", f"{answers} with {end}, at which generation doesn't stop: it does at {stops}"


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"


def _more(count: int) -> str:
    return f", and {count:,} more" if count > 0 else ""


_PREFIX = re.compile(r"[BIESUL]-|")
"""Beginning and inside of an entity are two labels of one name."""
_SEPARATORS = re.compile(r"[\s_-]+")
_DIGITS = re.compile(r"\d")
_LETTERS = range(4, 25)
"""Letters of a name that is likely to be misspelt by one: shorter ones differ by that, longer ones are sentences."""
_RARE = 50
"""Least ratio of the occurrences of a label and of its misspelling, unless that occurs once."""


def look_alikes(counts: Mapping[str, int]) -> list[tuple[str, str]]:
    """Pairs of a label and a more frequent one that differ in case, in spaces, or, if it is rare, in about a letter.

    It takes time in proportion to the labels, given with the number of their occurrences.
    """
    ranked = sorted(counts, key=lambda label: -counts[label])
    groups = defaultdict[str, list[str]](list)
    for label in ranked:
        for key in _keys(label):
            groups[key].append(label)
    pairs = dict[str, str]()
    for label in ranked:
        for other in (groups[key][0] for key in _keys(label)):
            if label != other and label not in pairs and _is_misspelt(label, other, counts):
                pairs[label] = other
    return list(pairs.items())


def _is_misspelt(label: str, other: str, counts: Mapping[str, int]) -> bool:
    if _plain(label) == _plain(other):
        return True
    if _DIGITS.sub("", label) == _DIGITS.sub("", other):  # numbers of something
        return False
    return counts[label] < counts[other] and counts[label] <= max(1, counts[other] // _RARE)


def _split(label: str) -> tuple[str, str]:
    """The prefix of a tag, and its name."""
    match = _PREFIX.match(label)
    end = match.end() if match else 0
    return label[:end], label[end:]


def _plain(label: str) -> str:
    """A label without what is easily written otherwise."""
    prefix, name = _split(label.strip())
    return f"{prefix}{_SEPARATORS.sub('', name).casefold()}"


def _keys(label: str) -> Iterator[str]:
    """The plain label, and what is left of it without each of its letters: labels that differ by one share a key."""
    plain = _plain(label)
    yield plain
    prefix, name = _split(plain)
    if len(name) in _LETTERS:
        yield from (f"{prefix}{name[:index]}{name[index + 1 :]}" for index in range(len(name)))
