"""The record of a task of fine-tuning, and its parts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from anyformer.config import HeadKind, ModelConfig
from anyformer.data.batch import Batch, Int64, Rng
from anyformer.data.examples import Example
from anyformer.data.examples.columns import Names
from anyformer.data.examples.datasets import Dataset
from anyformer.data.examples.encoded import EncodedRow, Truncation, truncate
from anyformer.data.examples.labels import LabelKind, Labels
from anyformer.data.examples.parts import Parts
from anyformer.errors import UserError
from anyformer.evaluation.result import Evaluation, Options
from anyformer.model import Transformer
from anyformer.runs.listing import PER_TOKEN, Terms
from anyformer.tokenizer import Tokenizer
from anyformer.training.config import CompleteRunConfig
from anyformer.training.losses import LossModule
from anyformer.training.strategies.base import Strategy

_WHOLE = Truncation()


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSchema:
    """Columns that make up an example.

    Attributes:
        build: Makes an example of a row; None for a row that says nothing.
        required: For each part of an example the names that its column may have.
        optional: Parts that a row may lack.
        explicit: Whether the task has to be named for its rows to be read so.
        rank: Where the columns of a row fit several schemas, the lowest rank is meant.
        fits: Whether the values of the required parts suit the schema.
        gather: Makes examples of all rows together, and a note for people, where a row alone is none.
        suggested: Whether it is suggested for columns of unknown names before others (1), or after them (-1).
    """

    build: Callable[[Parts], Example | None]
    required: Mapping[str, Names]
    optional: Mapping[str, Names] = field(default_factory=dict[str, Names])
    explicit: bool = False
    rank: int = 0
    fits: Callable[[Mapping[str, Any]], bool] = lambda values: True
    gather: Callable[[Sequence[Parts]], tuple[Sequence[Example], str | None]] | None = None
    suggested: Literal[-1, 0, 1] = 0

    def has(self, parts: Iterable[str]) -> bool:
        """Whether these are parts of its examples."""
        return {*parts} <= {*self.required, *self.optional}


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """Settings by which examples are encoded.

    Attributes:
        context: Tokens that a text has at most.
        labels: The names of labels or tags, in the order of their numbers.
        kind: The answer on a text, where that may be one label, several, or a number.
        learn_all: Learn prompts as well as answers.
        packing: Put several texts into a row, which do not see each other.
    """

    tokenizer: Tokenizer
    model: ModelConfig
    context: int
    labels: Sequence[str] = ()
    kind: LabelKind | None = None
    learn_all: bool = False
    packing: bool = False

    @property
    def pad(self) -> int:
        """The id that fills rows up. Nothing attends to it and nothing is learned from it, so any will do."""
        candidates = (self.tokenizer.pad, self.model.special_tokens.pad, self.tokenizer.eos, 0)
        return next(token for token in candidates if token is not None)

    def numbers(self) -> dict[str, int]:
        """The number of each label."""
        return {name: number for number, name in enumerate(self.labels)}


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedText:
    """A text of an example, as the model reads it.

    Attributes:
        title: Its role among the texts of the example: chosen, rejected, source, target, ...
        loss_mask: Whether each token is learned; None: the task is not about tokens.
        tags: The tag of each token that begins a word; None of the others.
        grouped: Whether tags make up entities, and are not parts of speech, say.
        segments: The segment of each token; none where it is one text.
        asks: Whether it only asks, so that none of its tokens is to be learned.
    """

    tokens: Sequence[int]
    title: str = ""
    loss_mask: Sequence[bool] | None = None
    mismatches: int = 0
    tags: Sequence[str | None] | None = None
    grouped: bool = True
    cut: Truncation = _WHOLE
    segments: Sequence[int] = ()
    asks: bool = False

    @classmethod
    def of(cls, row: EncodedRow, context: int | None = None, title: str = "", *, asks: bool = False) -> EncodedText:
        """The text of a decoder's row, truncated to the context."""
        row, cut = truncate(row, context)
        return cls(
            tokens=row.tokens, title=title, loss_mask=row.loss_mask, mismatches=row.mismatches, cut=cut, asks=asks
        )

    @property
    def row(self) -> EncodedRow:
        """Its tokens, and those of them that are learned."""
        return EncodedRow(self.tokens, self.loss_mask or [False] * len(self.tokens), self.mismatches)


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """An example as the model reads it.

    Attributes:
        texts: One, or several side by side.
        label: The right answer for people, where it is a label.
        labels: The right answers to be counted: names, or numbers.
        entities: The kinds of the entities in the texts.
        mismatch: The difference between the tokens that are learned and those of generation, which stops the run.
        system_prompt: The message that the chat template adds to the conversation, if any.
    """

    example: Example
    texts: Sequence[EncodedText]
    label: str | None = None
    labels: Sequence[str | float] = ()
    entities: Sequence[str] = ()
    mismatch: str | None = None
    system_prompt: str | None = None


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task that a model learns from examples. Its fields are in the order in which a run needs them.

    Attributes:
        name: As `--task` says it; that of its file.
        learns: Description of what a model learns, in a line.
        finetune: The arguments of a command that trains it, for the help of `finetune`: a literal.

        schemas: The columns that it takes, and how rows become examples.
        by_order: The schema of a row whose columns have no usual name, and their parts, by the order of the columns.
        resolve_labels: Makes names and numbers of labels that are as the rows have them, given the examples, the kind
            of answer and the labels that there are (each None where it follows from the examples), and the names that
            files have for the numbers in each part's column.
        classes: The classes of an example: with one alone in all examples there is nothing to learn.
        converses: Whether an example is a conversation, so that the model becomes one for chat.
        add_system: Puts a system message into an example; returns it, and to how many conversations it was added.

        head: The head that the model has to have; another one is replaced unless it is a language model's.
        refusal: A sentence on why a model can't do it, given its config and name; None: it can.
        instead: For models that learn it as another task: that task, and its example of one of these.

        encode: Encodes examples, in order. None: they are texts of one stream, as in training from text.
        dataset: Makes batches of encoded examples.
        checks_ends: Whether an answer has to end with a token at which generation stops.
        prepare: Called with a strategy whose model has its first weights, all datasets and the config of the run.
        choose_loss: The loss that suits an example, given the one that was asked for, if any.
        loss: The module that computes the loss, given the model and the config of the run.
        loss_unit: The name of the loss and its unit, given the config of the run.

        settings: Settings of a run that only some tasks obey, this one among them; the others refuse them.
        generates: Whether its answers are texts.
        learning_rate: The default is so many times that of other tasks.
        fewest_steps: Steps of a run of default length at least, as far as a few times as many epochs have them.
        smallest_batch: Examples of a batch of default size at least, where fewer let few examples have these steps.

        evaluate: Measures a model on examples; of its metrics the first is the main one.
        lists_classes: Whether the score of each class is listed after a run.
        nothing: The words for an empty prediction.
        pipeline: The Hugging Face hub's name of it.
        auto_class: The class of `transformers` that loads such models.
        commands: The subcommands to try a model with, each with its arguments, given the config of the run, an example,
            and the arguments of `evaluate`.

        random_batch: A batch of random tokens in the shape of its batches, for `plan`; None: it is that of the
            objective that the model was trained for.
    """

    name: str
    learns: str
    finetune: str = ""

    example: type[Example]
    schemas: Sequence[RowSchema]
    by_order: Callable[[Mapping[str, Any]], tuple[RowSchema, dict[str, str]] | None] = lambda sample: None
    resolve_labels: (
        Callable[
            [Sequence[Any], LabelKind | None, Sequence[str] | None, Mapping[str, Sequence[str]]],
            tuple[Sequence[Example], Labels],
        ]
        | None
    ) = None
    classes: Callable[[Any], Sequence[object]] | None = None
    converses: Callable[[Any], bool] = lambda example: False
    add_system: Callable[[Any, str], tuple[Example, int]] | None = None

    head: HeadKind = "language_model"
    refusal: Callable[[ModelConfig, str], str | None] = lambda model, name: None
    instead: Callable[[ModelConfig], tuple[Task, Callable[[Any], Example]] | None] = lambda model: None

    encode: Callable[[Encoding, Sequence[Any]], Iterable[Encoded]] | None = None
    dataset: Callable[[Encoding, Sequence[Encoded]], Dataset] | None = None
    checks_ends: bool = True
    prepare: Callable[[Strategy, Sequence[Dataset], Any], None] | None = None
    choose_loss: Callable[[str | None, Any], str] | None = None
    loss: Callable[[Transformer, Any], nn.Module] = lambda model, config: LossModule(model)
    loss_unit: Callable[[Mapping[str, Any]], str] = lambda config: PER_TOKEN

    settings: Collection[str] = ()
    generates: bool = False
    learning_rate: float = 1.0
    fewest_steps: int = 0
    smallest_batch: int = 32

    evaluate: Callable[[Transformer, Tokenizer | None, Sequence[Any], Options], Evaluation]
    lists_classes: bool = False
    nothing: str = ""
    pipeline: str = "text-generation"
    auto_class: str = "AutoModelForCausalLM"
    commands: Callable[[Any, Any, str], Sequence[tuple[str, str]]] = lambda config, example, evaluate: [
        ("evaluate", evaluate)
    ]

    random_batch: Callable[[CompleteRunConfig, ModelConfig, Rng], Batch] | None = None

    @property
    def is_stream(self) -> bool:
        """Whether its examples are texts of one stream, which are cut into windows."""
        return self.encode is None

    @property
    def makes_vectors(self) -> bool:
        """Whether the model answers with vectors, and has no head."""
        return self.head == "none"

    @property
    def labels_texts(self) -> bool:
        """Whether the model has a classifier, of texts or of tokens."""
        return self.head in ("classification", "token_classification")

    def terms(self, config: Mapping[str, Any]) -> Terms:
        """The terms in which pages speak of a run, given its config."""
        return Terms(self.loss_unit(config), self.generates)

    def check_model(self, model: ModelConfig, name: str) -> None:
        """Raise UserError for a model that can't do it."""
        if (refusal := self.refusal(model, name)) is not None:
            raise UserError(refusal)


def decoders_only(task: str) -> Callable[[ModelConfig, str], str | None]:
    """The `refusal` of a task of decoders with the head of a language model."""

    def refusal(model: ModelConfig, name: str) -> str | None:
        if not model.is_decoder_only:
            kind = "reads a source first" if model.is_encoder_decoder else "is an encoder, which writes nothing"
            return f"The task {task} is for a decoder, and this model {kind}."
        return other_head(task, model)

    return refusal


def other_head(task: str, model: ModelConfig) -> str | None:
    """A sentence on a head that is not a language model's, or None."""
    if model.head.kind == "language_model":
        return None
    return f"The task {task} is for a language model, and this model's head is {model.head.kind}."


def random_ids(config: CompleteRunConfig, model: ModelConfig, rng: Rng, rows: int = 1) -> Int64:
    """Random tokens, so many rows of the context's length for each example of a batch."""
    return rng.integers(model.vocab_size, size=(rows * config.batch_size, config.context))
