"""The request for a comparison, and its budget."""

import shlex
from dataclasses import dataclass, fields, replace
from typing import Annotated

from anyformer.errors import UserError, nearest
from anyformer.schema import flag

MEASURES = ("parameters", "flops", "none")
_LEAST_CONTEXT, _MOST = 16, 1 << 20
_BUDGETS = ("tokens", "flops", "minutes")


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


@dataclass(frozen=True, kw_only=True)
class Request:
    """Settings of the comparison.

    Raises:
        UserError: a value that makes no sense.
    """

    models: tuple[str, ...]
    """Presets, families (which are scaled down), config files, or finished runs, with fields changed after a colon."""
    vary: Annotated[tuple[str, ...], "FIELD=A,B"] = ()
    """Compare all combinations of these values of a single model's fields, and say what each change is worth."""
    data: Annotated[tuple[str, ...], "PATH"] = ()
    """Files, folders and globs of text (default: the standard library of the running Python)."""
    field: str = "text"
    """The field that holds the text, in records such as lines of jsonl."""
    tokenizer: str | None = None
    """Kind and size of the tokenizer that is trained for all, bpe:N or unigram:N (default: bpe, N to suit the text)."""
    match: Annotated[str, "{parameters,flops,none}"] = "parameters"
    """Size that is made equal: parameters outside embeddings, or FLOPs of training a token."""
    tokens: float | None = None
    """Budget of each model and seed: tokens of text to train on (default: half a million)."""
    flops: float | None = None
    """Budget in floating-point operations of training, such as 1e13."""
    minutes: float | None = None
    """Budget in minutes of training on one core of this machine, or on its accelerator."""
    seeds: Annotated[int, "N"] = 3
    """Runs of each, from different first weights: the differences between them are the noise."""
    tune: bool = False
    """Try three learning rates for each, within the budget."""
    context: Annotated[int, "N"] = 128
    """Tokens that a model reads at a time."""
    batch_size: Annotated[int, "N"] = 8
    """Texts in a batch."""
    tasks: bool = True
    """Do the tasks that every family can do; --no-tasks leaves them out."""
    classify: Annotated[tuple[str, ...], "PATH"] = ()
    """Texts with labels for the classifier among the tasks (default: which text a passage of the data is from)."""
    device: str | None = None
    """cpu, cuda, mps ... (default: an accelerator if there is one)."""
    dtype: Annotated[str | None, "{float32,bfloat16,float16,int8}"] = None
    """The dtype of matrix products in training (default: the fastest here)."""

    def __post_init__(self) -> None:
        if self.match not in MEASURES:
            raise UserError(f"--match {self.match}: there is no such measure ({nearest(self.match, MEASURES)}).")
        kinds = [kind for kind in _BUDGETS if getattr(self, kind) is not None]
        if len(kinds) > 1:
            raise UserError(f"A budget is of one kind: give --{kinds[0]} or --{kinds[1]}, not both.")
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

    @property
    def budget(self) -> Budget:
        """The budget that is given; half a million tokens without any."""
        given = (Budget(kind, amount) for kind in _BUDGETS if (amount := getattr(self, kind)) is not None)
        return next(given, Budget("tokens", 500_000))

    def command(self, out: str) -> str:
        """The command that asks for the comparison, for a shell."""
        words = ["anyformer compare", shlex.join([*self.models, "--out", out])]
        words.append(flag(self.budget.kind, f"{self.budget.amount:.17g}"))
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name not in ("models", "tasks", *_BUDGETS) and value != each.default:
                words.append(flag(each.name, value))
        return " ".join([*words, *(["--no-tasks"] if not self.tasks else [])])
