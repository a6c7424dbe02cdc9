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
    """The budget of each model and seed.

    Attributes:
        kind: tokens of text, flops (floating-point operations) of training, or minutes of it.
        amount: so many.
    """

    kind: str
    amount: float

    def __str__(self) -> str:
        """For people."""
        return f"{self.amount:,.6g} {'FLOPs' if self.kind == 'flops' else self.kind}"

    def share(self, share: float) -> "Budget":
        """A part of it."""
        return replace(self, amount=self.amount * share)


BUDGET = Budget("tokens", 500_000)


@dataclass(frozen=True, kw_only=True)
class Request:
    """The models that are to be compared, and what they share.

    Attributes:
        models: as `read_config` takes them; with `vary` a single one.
        vary: fields and their values, such as norm.kind=layer,rms.
        data, field: the text; empty: the standard library of Python.
        tokenizer: kind and size of the one that is trained; None: bpe, of a size that suits the text.
        match: parameters, flops or none.
        budget: what each model may spend on each seed.
        seeds: how many.
        tune: whether three learning rates are tried, within the budget.
        context, batch_size: of each batch, in tokens and in rows.
        tasks: whether the common tasks are done.
        classify: texts with labels for the classifier among them; empty: the text itself.
        device, dtype: of training; None: the fastest.

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

    def arguments(self, out: str) -> list[str]:
        """The arguments of the command that asks for the same."""
        arguments = [*self.models, "--out", out]
        for name in ("vary", "data", "classify"):
            if values := getattr(self, name):
                arguments += [f"--{name}", *values]
        arguments += [f"--{self.budget.kind}", f"{self.budget.amount:.17g}"]
        defaults = {each.name: each.default for each in fields(Request)}
        for name in ("field", "tokenizer", "match", "seeds", "context", "batch_size", "device", "dtype"):
            if (value := getattr(self, name)) != defaults[name]:
                arguments += [flag(name), str(value)]
        return arguments + ["--tune"] * self.tune + ["--no-tasks"] * (not self.tasks)

    def command(self, out: str) -> str:
        """The command that asks for the comparison, for a shell."""
        return f"anyformer compare {shlex.join(self.arguments(out))}"


def budget_of(amounts: Mapping[str, float | None]) -> Budget:
    """The one budget that is given; half a million tokens without any. Raises UserError for two."""
    budgets = [Budget(kind, amount) for kind, amount in amounts.items() if amount is not None]
    if len(budgets) > 1:
        raise UserError(f"A budget is of one kind: give --{budgets[0].kind} or --{budgets[1].kind}, not both.")
    return budgets[0] if budgets else BUDGET
