"""How examples are evaluated."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from anyformer.errors import UserError
from anyformer.evaluation.logits import Progress


@dataclass(frozen=True, kw_only=True)
class Options:
    """How examples are evaluated.

    Attributes:
        choices: chat, completion: The answers to choose from, by their log-probability. Empty: answers are generated.
        max_new_tokens: Of a generated answer; None: as many as the context has room for, at most 200.
        batch_size: Answers that are generated at a time.
        rouge: chat, completion: Compare answers by ROUGE.
        skip_missing: Leave out the metrics whose library isn't installed, and say so in a note.
        progress: Called after each batch with what is done, the number of its examples, and that of all examples.
    """

    choices: Sequence[str] = ()
    max_new_tokens: int | None = None
    batch_size: int = 16
    rouge: bool = True
    skip_missing: bool = False
    progress: Callable[[str, int, int], None] = field(default=lambda what, count, total: None)

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "batch_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"{name} is at least 1, not {value}.")
        if len(set(self.choices)) != len(self.choices) or len(self.choices) == 1:
            raise UserError("choices are at least two answers, each different from the others.")

    def counter(self, what: str, total: int) -> Progress:
        """A function to call with the number of examples that have been done, of `total`."""

        def advance(count: int) -> None:
            self.progress(what, count, total)

        return advance
