"""The check of examples before training on them: what there is, what is cut off, and what can't work."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence

from anyformer.data.examples import Example
from anyformer.data.examples.held_out import Twice
from anyformer.data.formats import Location
from anyformer.errors import UserError, quote
from anyformer.tasks.task import Encoded, EncodedText, Task
from anyformer.terminal import shorten
from anyformer.tokenizer import Tokenizer

_FEW, _PAIRS = 8, 4
"""Labels that a line names, and pairs of them that are spelled alike."""
_SHOWN = 80
"""Characters of a system prompt that a line repeats."""


class Check:
    """Counts over the encoded examples of a task, added one after the other.

    Args:
        task: What is learned from them.
        tokenizer: What encoded them.
        context: Tokens that a row has at most; None: any number.
        stops: Ids at which generation ends a text; none: it isn't known.

    Attributes:
        examples, rows, tokens, learned: How many there are, after rows were cut; a row is a text that the model reads.
        cut: The rows that were longer than the context, by what they lost: ``rows``, ``tokens``, ``learned``,
            ``ends`` of answers, and rows that have lost ``all`` of their learned tokens.
        unlearned: Rows without a learned token.
        mismatches: Borders between prompt and answer across which the tokenizer would merge characters.
        duplicates: Examples that say the same as one before, as `held_out.duplicates` finds them.
        overlap: Examples that ask the same as one for training, as `held_out.overlap` finds them.
        labels: How often each is there.
        entities: How often each kind of entity is there.
        system_prompt: What the chat template adds to conversations without one; None: nothing.
        system_prompts: The number of conversations that it was added to.
    """

    def __init__(
        self, task: Task, tokenizer: Tokenizer, *, context: int | None = None, stops: Collection[int] = ()
    ) -> None:
        self.task = task
        self.context = context
        self.examples = self.rows = self.tokens = self.learned = 0
        self.cut: Counter[str] = Counter()
        self.unlearned = self.mismatches = self.system_prompts = 0
        self.duplicates: Sequence[Twice] = ()
        self.overlap: Sequence[Twice] = ()
        self.labels: Counter[str] = Counter()
        self.entities: Counter[str] = Counter()
        self.system_prompt: str | None = None
        self._numbers: list[float] = []
        self._tokenizer = tokenizer
        self._stops = frozenset(stops)
        self._ends: Counter[int] = Counter()
        self._doubled = self._with_learned = 0
        self._mismatch: str | None = None
        self._unlearned_at: Location | None = None

    def add(self, encoded: Encoded) -> None:
        """Count an example."""
        self.examples += 1
        for text in encoded.texts:
            self._add_text(encoded.example, text)
        for label in encoded.labels:
            if isinstance(label, str):
                self.labels[label] += 1
            else:
                self._numbers.append(label)
        self.entities.update(encoded.entities)
        self._mismatch = self._mismatch or encoded.mismatch
        if encoded.system_prompt is not None:
            self.system_prompt = encoded.system_prompt
            self.system_prompts += 1

    def _add_text(self, example: Example, text: EncodedText) -> None:
        tokens, cut = text.tokens, text.cut
        self.rows += 1
        self.tokens += len(tokens)
        counted = {"tokens": cut.tokens, "learned": cut.targets, "ends": cut.lost_end, "all": cut.lost_all}
        self.cut.update({"rows": int(cut.tokens > 0), **{name: int(count) for name, count in counted.items()}})
        bos = self._tokenizer.bos
        self._doubled += bos is not None and list(tokens[:2]) == [bos, bos]
        if text.learned is None or text.asks:
            return
        self._with_learned += 1
        count = sum(text.learned)
        self.learned += count
        self.mismatches += text.mismatches
        if count == 0:
            self.unlearned += 1
            self._unlearned_at = self._unlearned_at or example.location
        else:
            # The token at the end of each stretch that is learned.
            borders = zip(text.learned, [*text.learned[1:], False], strict=True)
            self._ends.update(tokens[k] for k, (here, after) in enumerate(borders) if here and not after)

    def facts(self) -> list[tuple[str, str]]:
        """Facts on the data, as names and texts."""
        rows = "" if self.rows == self.examples else f" in {_count(self.rows, 'row')}"
        found = [("examples", f"{self.examples:,}{rows}"), ("tokens", f"{self.tokens:,}{self._share()}")]
        if self._numbers:
            low, high = min(self._numbers), max(self._numbers)
            mean = sum(self._numbers) / len(self._numbers)
            found.append(("labels", f"numbers from {low:g} to {high:g}, {mean:.3g} on average"))
        if self.labels:
            shown = ", ".join(f"{shorten(name, 40)} {count:,}" for name, count in self.labels.most_common(_FEW))
            more = f", and {len(self.labels) - _FEW:,} more" if len(self.labels) > _FEW else ""
            found.append(("labels", f"{len(self.labels):,}: {shown}{more}"))
        return found

    def warnings(self) -> list[tuple[str, str]]:
        """Warnings before training, as names and texts."""
        found: list[tuple[str, str]] = []
        if alike := look_alikes(self.labels):
            pairs = [
                " is nearly ".join(f"{shorten(name, 40)!r} ({self.labels[name]:,})" for name in each) for each in alike
            ]
            more = f", and {len(alike) - _PAIRS:,} more" if len(alike) > _PAIRS else ""
            found.append(("spelling", f"{', '.join(pairs[:_PAIRS])}{more}: each counts as a label of its own"))
        if self.cut["rows"]:
            parts = [f"{_count(self.cut['rows'], 'row')} longer than {self.context:,} tokens"]
            parts.append(f"{_count(self.cut['tokens'], 'token')} left out")
            if self.cut["learned"]:
                parts[-1] += f", {self.cut['learned']:,} of them to be learned"
            if self.cut["ends"]:
                parts.append(f"{_count(self.cut['ends'], 'row')} without the end of the answer")
            if self.cut["all"]:
                parts.append(f"{self.cut['all']:,} without any of it")
            found.append(("cut", "; ".join(parts)))
        if self.unlearned:
            text = f"{_count(self.unlearned, 'row')} without a token to be learned, the first {self._unlearned_at}"
            found.append(("unlearned", text))
        if self.system_prompt is not None:
            text, where = (
                shorten(" ".join(self.system_prompt.split()), _SHOWN),
                _count(self.system_prompts, "conversation"),
            )
            found.append(("template", f"adds a system prompt to {where}: {quote(text)}"))
        if self.task.add_system is not None and "strftime_now" in (self._tokenizer.chat_template or ""):
            found.append(("date", "the chat template writes today's, which is another one when the model is used"))
        found += self._ends_warning()
        if self.mismatches:
            text = f"at {self.mismatches:,} the tokenizer would merge prompt and answer: each is encoded alone"
            found.append(("borders", text))
        if self._doubled:
            token = self._tokenizer.token(self._tokenizer.bos or 0)
            found.append(("doubled", f"{_count(self._doubled, 'row')} with {quote(token)} twice at the beginning"))
        if self.duplicates:
            before, where = self.duplicates[0]
            text = f"{_count(len(self.duplicates), 'example')} there already, the first {where} (as {before})"
            found.append(("duplicates", text))
        if self.overlap:
            before, where = self.overlap[0]
            text = f"{_count(len(self.overlap), 'example')} for training as well, the first {where} (as {before})"
            found.append(("overlap", text))
        return found

    def lines(self) -> list[str]:
        """`facts` and `warnings`, for people."""
        return [f"{name:<11}{text}" for name, text in (*self.facts(), *self.warnings())]

    def problems(self, *, training: bool = True) -> None:
        """Raise UserError if training on these examples can't work: nothing is learned, or not what is used later.

        Args:
            training: Whether they are for training; examples for validation may all have one label.
        """
        if not self.examples:
            raise UserError("There is no example to train on.")
        if self._mismatch is not None:
            raise UserError(self._mismatch)
        if self._with_learned and not self.learned:
            raise UserError(self._nothing_learned())
        if not training:
            return
        if (sentence := self.task.nothing_to_learn(self.labels, self.examples)) is not None:
            raise UserError(sentence)

    def _nothing_learned(self) -> str:
        if self.cut["all"]:
            return (
                f"No token is left to be learned: the prompts alone are longer than the context of {self.context:,} "
                "tokens. Give --context more, or shorten them."
            )
        return f"No token is to be learned, as in {self._unlearned_at}: there is no answer."

    def _share(self) -> str:
        if not self._with_learned:
            return ""
        return f", {self.learned:,} of them learned ({self.learned / max(1, self.tokens):.0%})"

    def _ends_warning(self) -> list[tuple[str, str]]:
        others = {token: count for token, count in self._ends.items() if token not in self._stops}
        # Location a row was cut, it ends somewhere.
        missing = sum(others.values()) - self.cut["ends"]
        if not self._stops or missing <= 0 or not self.task.checks_ends:
            return []
        token = max(others, key=lambda token: others[token])
        stops = " or ".join(sorted(repr(self._tokenizer.token(stop)) for stop in self._stops))
        what = "1 answer ends" if missing == 1 else f"{missing:,} answers end"
        end = quote(self._tokenizer.token(token))
        text = f"{what} with {end}, at which generation doesn't stop: it does at {stops}"
        return [("ends", text)]


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


_PREFIX = re.compile(r"([BIESUL]-)?(.*)", re.DOTALL)
"""Beginning and inside of an entity are two labels of one name."""
_SEPARATORS = re.compile(r"[\s_-]+")
_DIGITS = re.compile(r"\d")
_LETTERS = 4, 24
"""Letters of a name that is likely to be misspelt by one: shorter ones differ by that, longer ones are sentences."""
_RARE = 50
"""How many times as often as a misspelling its label occurs, at least, unless it occurs once."""


def look_alikes(counts: Mapping[str, int]) -> list[tuple[str, str]]:
    """Pairs of a label and a more frequent one that differ in case, in spaces, or in about a letter.

    Those that differ in a letter are pairs if the first one is rare. It takes time in proportion to the labels.

    Args:
        counts: How often each label occurs.
    """
    groups = defaultdict[str, list[str]](list)
    ranked = sorted(counts, key=lambda label: -counts[label])
    for label in ranked:
        for key in _keys(label):
            groups[key].append(label)
    found = dict[str, str]()
    for label in ranked:
        same, *near = _keys(label)
        candidates = [groups[same][0], *(other for key in (same, *near) for other in groups[key][:1])]
        for other in candidates:
            if label != other and label not in found and _is_misspelt(label, other, counts):
                found[label] = other
    return list(found.items())


def _is_misspelt(label: str, other: str, counts: Mapping[str, int]) -> bool:
    if _plain(label) == _plain(other):
        return True
    if _DIGITS.sub("", label) == _DIGITS.sub("", other):  # numbers of something
        return False
    return counts[label] < counts[other] and counts[label] <= max(1, counts[other] // _RARE)


def _plain(label: str) -> str:
    """A label without what is easily written otherwise."""
    found = _PREFIX.fullmatch(label.strip())
    assert found is not None
    return f"{found[1] or ''}{_SEPARATORS.sub('', found[2]).casefold()}"


def _keys(label: str) -> Iterator[str]:
    """The plain label, and what is left of it without each of its letters: labels that differ by one share a key."""
    plain = _plain(label)
    yield plain
    found = _PREFIX.fullmatch(plain)
    assert found is not None
    prefix, name = found[1] or "", found[2]
    fewest, most = _LETTERS
    if fewest <= len(name) <= most:
        yield from (f"{prefix}{name[:place]}{name[place + 1 :]}" for place in range(len(name)))
