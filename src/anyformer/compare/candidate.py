"""A model of a comparison."""

from dataclasses import dataclass
from pathlib import Path

from anyformer.config import ModelConfig
from anyformer.errors import UserError

_LEAST, _MOST = 1e-5, 1e9
"""Seconds of a step; a learning rate is at most as large."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model that is to be trained for a comparison, or was trained already.

    Attributes:
        name: Short, and of no other candidate.
        spec: Its specification, as it was given (see `anyformer.spec`).
        config: Config of the model.
        learning_rate: The default for it.
        directory: Directory of a model that is there already; None: it is trained.
        objective: Training objective of that one; None: not known.
        seconds: Duration of a step on this machine, where the budget is in minutes.
        notes: Changes that were made to match sizes, a sentence each.
    """

    name: str
    spec: str
    config: ModelConfig
    learning_rate: float
    directory: Path | None = None
    objective: str | None = None
    seconds: float | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not (0 < self.learning_rate <= _MOST and (self.seconds is None or _LEAST < self.seconds <= _MOST)):
            raise UserError("learning_rate and seconds want positive numbers.")
