"""The result of a comparison: compare.json, and the objects that it is read into.

::

    version       2
    title         the models, for people
    repeat        the command that repeats it
    setup         what all models have in common, see `Setup`
    models        one object each, see `ComparedModel`: config, size, costs, curves, samples
    groups        numbers that may stand beside each other, see `Panel`
    tasks         likewise, of tasks that every family can do; `chance` is the score of guessing
    verdicts      one object for each two members of a panel, see `Verdict`; a is the one whose number is the better
    ablation      what each change is worth, see `Ablation`; null unless fields were varied

Numbers of different panels do not compare. Losses are in nats, intervals cover 95%, seconds are of the training loop,
FLOPs count a multiply-add as two. A name in `a`, `b` and `model` is the `name` of one of the models.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

from anyformer import atomic
from anyformer.errors import UserError
from anyformer.limits import read_object
from anyformer.one_line import OneLine
from anyformer.schema import make, to_plain
from anyformer.spec import SpecifiedModel

VERSION = 2
BETTER = "better"
WORSE = "worse"
UNDECIDED = "not distinguishable at this budget"
NO_VERDICT = "no verdict"
ONE_SEED = "One seed: the noise of training is not in the intervals, so they name no winner. Give --seeds 3."


@dataclass(frozen=True, kw_only=True)
class Point:
    """A moment of a run.

    Attributes:
        tokens: of text that were read, the same for every family at the same step.
        flops, seconds: of training until then, without evaluations and checkpoints.
        training_loss: mean since the point before; None at step 0.
        validation_loss: in nats a prediction.
        bits_per_byte: of the validation text; None unless the model predicts every byte.
    """

    step: int
    tokens: int
    flops: float
    seconds: float
    training_loss: float | None = None
    validation_loss: float | None = None
    bits_per_byte: float | None = None


@dataclass(frozen=True, kw_only=True, repr=False)
class Curve(OneLine):
    """A run, from its first step to its last."""

    seed: int
    points: tuple[Point, ...]

    def __post_init__(self) -> None:
        if any(before.step >= after.step for before, after in pairwise(self.points)):
            raise UserError("points: each wants a later step than the one before.")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A text of the held-out share, and what a model wrote after its beginning."""

    prompt: str
    written: str


@dataclass(frozen=True, kw_only=True)
class Guess:
    """A model's guess for a blank."""

    text: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class Blank:
    """A held-out text with a word left out, and a model's guesses, the likeliest first."""

    before: str
    answer: str
    after: str
    guesses: tuple[Guess, ...]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A learning rate that was tried, and the validation loss that it led to; None: training diverged."""

    learning_rate: float
    validation_loss: float | None


@dataclass(frozen=True, kw_only=True, repr=False)
class ComparedModel(OneLine, SpecifiedModel):
    """One of the models of a comparison: first its plan, and, once it is trained, what came out.

    Attributes:
        directory: of a model that was there already; None: it is trained.
        name: short, and of no other model.
        objective: what it is trained to do, for people.
        notes: what was changed to match sizes, and what else is to be known.
        parameters_outside_embeddings: without the tables of tokens and positions, and without an output matrix of the
            size of the vocabulary.
        flops_per_token: of a training step, for each token of text.
        memory_bytes: of weights, gradients and the optimizer's state.
        cache_bytes_per_token: keys and values of a token while text is generated, at two bytes a number; 0: none.
        seconds_per_step: of training on this machine, where the budget is in minutes.
        learning_rate: the peak; 0 of a model that was there already.
        trials: the learning rates that were tried before.
        steps, tokens, flops, bytes: of one run; tokens and bytes (in UTF-8) are those of the text that it read.
        order_digest: SHA-256 of the token ids of all batches in order, by seed.
        seconds, tokens_per_second: of training, the mean over seeds. Runs do not take turns, so other programs on the
            machine can make one model look slower than another.
        runs: run directories, by seed, relative to compare.json.
    """

    shown: ClassVar = ("name", "objective", "parameters", "steps", "learning_rate")

    name: str
    objective: str = ""
    notes: tuple[str, ...] = ()
    parameters: int = 0
    parameters_outside_embeddings: int = 0
    flops_per_token: float = 0.0
    memory_bytes: int = 0
    cache_bytes_per_token: int = 0
    seconds_per_step: float | None = None
    learning_rate: float = 0.0
    trials: tuple[Trial, ...] = ()
    steps: int = 0
    tokens: int = 0
    flops: float = 0.0
    bytes: int = 0
    order_digest: tuple[str, ...] = ()
    seconds: float = 0.0
    tokens_per_second: float = 0.0
    runs: tuple[str, ...] = ()
    curves: tuple[Curve, ...] = ()
    samples: tuple[Sample, ...] = ()
    blanks: tuple[Blank, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Score:
    """The number of a model in a panel.

    Attributes:
        value: the mean over seeds.
        interval: the noise band: what the mean could be with other seeds and other held-out pieces.
        seeds: the number of each seed.
        parts: the same by kind of item, where there are kinds.
        controls: what simpler models reach, by name.
    """

    model: str
    value: float
    interval: tuple[float, float]
    seeds: tuple[float, ...]
    parts: dict[str, float] = field(default_factory=dict[str, float])
    controls: dict[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, kw_only=True, repr=False)
class Panel(OneLine):
    """Numbers of the same thing, which compare.

    Attributes:
        name, title: such as next_byte, and for people.
        measure: what the numbers are, such as bits per byte.
        note: what is to be known when it is read.
        pieces: held-out pieces, or items, that each number is of.
        chance: what guessing reaches, of tasks.
        left_out: why a model is not in it, by its name.
        no_verdict: why its differences have no verdict, a clause; None: they have.
    """

    name: str
    title: str
    measure: str
    lower_is_better: bool
    note: str = ""
    pieces: int = 0
    chance: float | None = None
    scores: tuple[Score, ...] = ()
    left_out: dict[str, str] = field(default_factory=dict[str, str])
    no_verdict: str | None = None


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A difference of two numbers of a panel, and whether it is more than noise.

    Attributes:
        panel: the name of the group or task.
        difference: the first number less the second.
        interval: of this difference alone.
        p: the share of resamples in which the difference has another sign, twice.
        p_corrected: the same after Holm's correction for the number of differences of the panel.
        verdict: "better" or "worse", that is the first than the second, or "not distinguishable at this budget"; "no
            verdict" for what the panel says in `no_verdict`.
    """

    panel: str
    measure: str
    difference: float
    interval: tuple[float, float]
    p: float
    p_corrected: float
    verdict: str


@dataclass(frozen=True, kw_only=True)
class Verdict(Difference):
    """Whether one model is better than another.

    Attributes:
        a: the one whose number is the better, so that the verdict is never "worse".
    """

    a: str
    b: str

    @property
    def pair(self) -> str:
        """The two, as they are read with the verdict."""
        return f"{self.a} {'than' if self.verdict == BETTER else 'and'} {self.b}"


@dataclass(frozen=True, kw_only=True)
class Effect(Difference):
    """The main effect of a change of a field from `baseline` to `value`: the mean over all values of other fields."""

    field: str
    value: str
    baseline: str


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """A grid of changes to one model.

    Attributes:
        base: the model that is changed, as it was given.
        factors: the values of each field, the baseline first.
        grid: the values of each model, by its name.
        effects: one for each value but the baseline.
    """

    base: str
    factors: dict[str, list[str]]
    grid: dict[str, dict[str, str]]
    effects: tuple[Effect, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Settings that all models have in common.

    Attributes:
        data: as it was given; empty: the standard library of Python.
        training_bytes, held_out_bytes: of text in UTF-8.
        data_digest: SHA-256 of the token ids of the training share.
        tokenizer: its kind and size.
        context: tokens that a model reads at a time, those around a text among them.
        window: tokens of text in a row of a batch.
        match, matched: parameters, flops or none, and what each model has of that.
        budget, amount: tokens, flops or minutes, and so many of these for each model and seed.
        tuned: whether learning rates were tried.
        machine: processor, number of cores and version of torch.
        seconds: of the whole comparison, so far as it was run at once.
    """

    data: tuple[str, ...]
    training_bytes: int
    held_out_bytes: int
    training_tokens: int
    held_out_tokens: int
    data_digest: str
    tokenizer: str
    vocab_size: int
    context: int
    window: int
    batch_size: int
    match: str
    matched: dict[str, float]
    budget: str
    amount: float
    seeds: int
    tuned: bool = False
    machine: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True, repr=False)
class Comparison(OneLine):
    """The result of a comparison."""

    shown: ClassVar = ("title", "models", "groups", "tasks", "verdicts")

    title: str
    repeat: str
    setup: Setup
    models: tuple[ComparedModel, ...]
    groups: tuple[Panel, ...]
    tasks: tuple[Panel, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    ablation: Ablation | None = None
    version: int = VERSION

    @property
    def panels(self) -> tuple[Panel, ...]:
        """Groups and tasks."""
        return self.groups + self.tasks

    def verdicts_of(self, panel: Panel) -> list[Verdict]:
        """The verdicts on each two members of a panel."""
        return [each for each in self.verdicts if each.panel == panel.name]

    def to_json(self) -> str:
        """The content of compare.json. A number that is not finite becomes null."""
        return json.dumps(to_plain(self), indent=1, ensure_ascii=False, allow_nan=False, default=str) + "\n"

    def write(self, path: Path) -> None:
        """Write compare.json. Raises UserError where the disk refuses."""
        atomic.write(path, self.to_json())

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: object = "compare.json") -> "Comparison":
        """The inverse of `to_json`. Raises UserError for another version, or anything missing or misshapen."""
        if values.get("version") != VERSION:
            raise UserError(f"{source} is not of this version of anyformer: run the comparison again.")
        return make(cls, values, f"{source}: ", nulls=True)

    @classmethod
    def read(cls, path: Path) -> "Comparison":
        """Read compare.json. Raises UserError as `from_dict`, and where it can't be read."""
        return cls.from_dict(read_object(path), path)
