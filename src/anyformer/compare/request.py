"""The request for a comparison, and its budget."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from anyformer.compare.matching import MEASURES
from anyformer.errors import UserError, nearest
from anyformer.schema import flag

CONTEXT, BATCH_SIZE, SEEDS = 128, 8, 3
_LEAST_CONTEXT, _MOST = 16, 1 << 20


@dataclass(frozen=True)
class Budget:
    """The budget of each model and seed: an amount of tokens of text, or of flops or minutes of training."""

    kind: str
    amount: float

    def __str__(self) -> str:
        return f"{self.amount:,.6g} {'FLOPs' if self.kind == 'flops' else self.kind}"

    def share(self, share: float) -> "Budget":
        """A part of it."""
        return replace(self, amount=self.amount * share)


BUDGET = Budget("tokens", 500_000)


@dataclass(frozen=True, kw_only=True)
class Request:
    """The models that are to be compared, as `read_config` takes them, and what they share: see `compare`.

    Raises:
        UserError: a value that makes no sense.
    """

    models: tuple[str, ...]
    vary: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    field: str = "text"
    tokenizer: str | None = None
    match: str = "parameters"
    budget: Budget = BUDGET
    seeds: int = SEEDS
    tune: bool = False
    context: int = CONTEXT
    batch_size: int = BATCH_SIZE
    tasks: bool = True
    classify: tuple[str, ...] = ()
    device: str | None = None
    dtype: str | None = None

    def __post_init__(self) -> None:
        if self.match not in MEASURES:
            raise UserError(f"--match {self.match}: there is no such measure ({nearest(self.match, MEASURES)}).")
        if not 0 < self.budget.amount < float("inf"):
            raise UserError(f"--{self.budget.kind} must be positive, and not infinite: it is {self.budget.amount:g}.")
        for name, least in (("seeds", 1), ("batch_size", 1), ("context", _LEAST_CONTEXT)):
            value = getattr(self, name)
            if not least <= value <= _MOST:
                raise UserError(f"{flag(name)} {value} must lie between {least} and {_MOST:,}.")
        if not self.models:
            raise UserError("There is nothing to compare: name two models, such as gpt2 and llama.")
        if self.classify and not self.tasks:
            raise UserError("--classify is for the tasks, and --no-tasks leaves them out: give one of them.")
        if self.vary and len(self.models) > 1:
            raise UserError(f"--vary changes one model, and there are {len(self.models)}: name one of them.")
        if len(self.models) == 1 and not self.vary:
            raise UserError(
                f"There is nothing to compare {self.models[0]} with: name another model, or --vary one of its fields."
            )

    def command(self, out: str) -> str:
        """The command that asks for the comparison, for a shell."""
        words = ["anyformer compare", shlex.join([*self.models, "--out", out])]
        words.append(flag(self.budget.kind, f"{self.budget.amount:.17g}"))
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name not in ("models", "budget", "tasks") and value != each.default:
                words.append(flag(each.name, value))
        return " ".join([*words, *(["--no-tasks"] if not self.tasks else [])])


def budget_of(amounts: Mapping[str, float | None]) -> Budget:
    """The one budget that is given; half a million tokens without any. Raises UserError for two."""
    budgets = [Budget(kind, amount) for kind, amount in amounts.items() if amount is not None]
    if len(budgets) > 1:
        raise UserError(f"A budget is of one kind: give --{budgets[0].kind} or --{budgets[1].kind}, not both.")
    return budgets[0] if budgets else BUDGET
