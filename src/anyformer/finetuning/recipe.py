"""Fine-tuning on examples as a recipe of the training loop: the model, its batches, and what it gained."""

import gc
import math
import shlex
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import cached_property, partial
from itertools import chain
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import nn
from typing_extensions import override

from anyformer.blocks.initialization import Cut
from anyformer.checkpoint import inspect, load, weights_fingerprint
from anyformer.config import ModelConfig
from anyformer.console import Console
from anyformer.data.disk_cache import Cache, key
from anyformer.data.examples import Example, digest, duplicates, held_out, overlap
from anyformer.data.examples.columns import as_columns
from anyformer.data.examples.datasets import Dataset, ExampleBatches
from anyformer.data.examples.labels import check_learnable
from anyformer.data.token_files import TokenFile
from anyformer.errors import UserError
from anyformer.evaluation.perplexity import Text
from anyformer.evaluation.result import EvaluatedRow
from anyformer.families import with_head
from anyformer.finetuning.check import Check
from anyformer.finetuning.config import CompleteFinetuneConfig, FinetuneConfig, complete
from anyformer.finetuning.model import build_model, is_bare_seq2seq, load_options, save_model, with_head_of_task
from anyformer.finetuning.preview import ROWS
from anyformer.finetuning.report import Report
from anyformer.model import Transformer
from anyformer.runs.directory import base_name
from anyformer.runs.listing import Terms
from anyformer.tasks import TASKS
from anyformer.tasks.loading import ExampleSet, find_task, load_examples
from anyformer.tasks.task import Encoded, Encoding
from anyformer.terminal import shorten
from anyformer.tokenizer import Tokenizer
from anyformer.tokenizer.prompt import with_plain_template
from anyformer.training.batcher import Batcher
from anyformer.training.config import RunConfig, TrainConfig
from anyformer.training.losses import ClassWeightedLoss
from anyformer.training.prepare import prepare
from anyformer.training.recipe import Recipe
from anyformer.training.sample import Passage, Sample, take_sample
from anyformer.training.strategies.base import Strategy

_SHOWN = 3
_UNEQUAL = 1.5
"""Least ratio of the examples of two classes that makes their weights differ."""
_MEASURED = 1 << 14
"""Tokens whose perplexity is measured before and after training, at most."""


def finetuning(config: FinetuneConfig, console: Console) -> Recipe[CompleteFinetuneConfig]:
    """The recipe of a run, on plain text or on examples. Raises UserError as the two classes below."""
    task, columns = config.task, as_columns(config.roles)
    if task is None:
        task = find_task(
            config.data,
            columns=columns,
            header=config.header,
            cache=Cache(config.cache),
            encoding=config.encoding,
            model=lambda: inspect(config.base, allow_pickle=config.allow_pickle)[0],
        )
    if task is not None and TASKS[task].is_stream:
        return TextFinetuning(replace(config, task=task), console)
    return Finetuning(config, console)


class BaseFinetuning(Recipe[CompleteFinetuneConfig]):
    """A trained model to go on with. Raises UserError if there is none, or one without a tokenizer."""

    command = "finetune"
    config_type = FinetuneConfig
    validation: Sequence[Example] = ()
    checks: Mapping[str, Check] = MappingProxyType({})
    _text: Text | None = None

    def __init__(self, config: FinetuneConfig) -> None:
        base, tokenizer = inspect(config.base, allow_pickle=config.allow_pickle)
        if tokenizer is None:
            raise UserError(f"{config.base} has no tokenizer: put its tokenizer.json beside it.")
        self.name = base_name(config.base)
        self.base: ModelConfig = base
        self._stored = base
        self.model_config = base
        self.tokenizer: Tokenizer = tokenizer
        weights = weights_fingerprint(config.base, allow_pickle=config.allow_pickle)
        self.base_fingerprint = key(weights, base.to_dict())

    @property
    @override
    def terms(self) -> Terms:
        return TASKS[self.config.task].terms(vars(self.config))

    @override
    def build(self, cut: Cut | None = None) -> Transformer:
        model = build_model(self.config, self._stored, self.tokenizer, cut)
        self.model_config = model.config
        self.head_is_new = any(name.startswith("head.") for name in model.origin.drawn)
        return model

    @override
    def save(self, model: Transformer, directory: Path) -> str:
        return save_model(model, directory, self.tokenizer, self.config)

    @override
    def load(self, directory: Path) -> Transformer:
        return load(directory, tokenizer=self.tokenizer, **load_options(self.config))[0]

    @override
    def measure(self, model: Transformer, directory: Path, step: int) -> Mapping[str, Any]:
        if self.head_is_new and not step:
            return {}
        return self._report.measure(model, directory, step)

    @override
    def report(self, directory: Path) -> Sequence[str]:
        return self._report.conclude(directory, first_loss=not self.head_is_new)

    @cached_property
    def _report(self) -> Report:
        return Report(self.config, self.tokenizer, self.validation, self.checks, self._text)

    def _in_steps(self, config: CompleteFinetuneConfig) -> CompleteFinetuneConfig:
        """The config with its length in steps, where that was given in epochs."""
        if config.epochs is None:
            return config
        return replace(config, steps=max(1, math.ceil(config.epochs * self.batches.steps_per_epoch)), epochs=None)


class TextFinetuning(BaseFinetuning):
    """Fine-tuning on text: a decoder predicts it, an encoder fills in masked tokens, an encoder-decoder restores
    corrupted spans.

    Raises:
        UserError: no such model, one without a language-model head or a tokenizer, or text that can't be read.
    """

    def __init__(self, config: FinetuneConfig, console: Console) -> None:
        super().__init__(config)
        base = self.base
        task = TASKS[str(config.task)]
        task.check_model(base, config.base)
        complete_config = complete(config, base, task.name)
        shared = {field.name: getattr(complete_config, field.name) for field in fields(RunConfig)}
        shared |= {"steps": None, "minutes": None}
        train = TrainConfig(
            preset=config.label,
            model=base,
            tokenizer=self.name,
            field=config.roles.get("text", "text"),
            vocab_size=base.vocab_size,
            max_length=base.max_length,
            document_masking=complete_config.packing and base.is_decoder_only,
            **shared,
        )
        self._data = prepare(train.complete(), console, self.tokenizer)
        self.batches, self.fingerprint = self._data.batches, self._data.fingerprint
        self.config = self._in_steps(complete_config)
        self._text = self._held_out()

    def _held_out(self) -> Text | None:
        """The beginning of the text to validate on, for a model whose loss is that of the next token."""
        held = self._data.held_out
        if not (isinstance(held, TokenFile) and self.base.is_decoder_only):
            return None
        ids = held.ids[:_MEASURED].tolist()
        return Text(ids, round(held.header.bytes * len(ids) / len(held)), start=None)

    @override
    def summary(self) -> Sequence[str]:
        first, *others = self._data.summary
        return [first.replace("data       ", "data       text, ", 1), *others]

    @override
    def sample(self, model: Transformer) -> Sample:
        return take_sample(model, self.tokenizer, self.config, self.batches)


class Finetuning(BaseFinetuning):
    """Fine-tuning on examples of a task.

    Raises:
        UserError: no such model, one that can't do the task, examples that are faulty, or such that nothing can be
            learned from.
    """

    def __init__(self, config: FinetuneConfig, console: Console) -> None:
        super().__init__(config)
        base, tokenizer = self.base, self.tokenizer
        with console.status("reading the examples"), _without_garbage_collection():
            self.example_set = self._read(config)
            self.task = TASKS[self.example_set.task]
            if self.task.head == "language_model" and is_bare_seq2seq(base):
                self.base = self.model_config = base = with_head(base, "language_model")
            self.task.check_model(base, self.name)
            training = self.example_set.examples
            balances = config.balance is not False and self.example_set.kind == "single"
            if config.validation:
                validation = self._read(config, self.example_set).examples
            else:
                label = attrgetter("label") if balances else None
                training, validation = held_out(training, seed=config.seed, label=label)
            labels, kind = self.example_set.labels or (), self.example_set.kind
            if labels and (classes := self.task.classes) is not None:  # few may all have been held out
                check_learnable([each for example in training for each in classes(example)], training[0].location)
            resolved: dict[str, Any] = {"labels": labels, "label_kind": kind}
            if self.task.choose_loss is not None:
                resolved["loss"] = self.task.choose_loss(config.loss, training[0])
            self.config = complete(config, base, self.task.name, examples=len(training), **resolved)
            self.preview: list[Encoded] = []
            encoding = Encoding(
                tokenizer=tokenizer,
                model=base,
                context=self.config.context,
                labels=labels,
                kind=kind,
                learn_all=config.train_on == "all",
                packing=self.config.packing,
            )
            stops = {*base.special_tokens.eos, *([] if tokenizer.eos is None else [tokenizer.eos])}
            self.checks = {
                name: Check(self.task, tokenizer, context=self.config.context, stops=stops)
                for name in ("training", "validation")
            }
            self.training, self._held_out = (
                self._encode(encoding, examples, check)
                for examples, check in zip((training, validation), self.checks.values(), strict=True)
            )
        self.checks["training"].duplicates = duplicates(training)
        self.checks["validation"].overlap = overlap(training, validation)
        for check in self.checks.values():
            check.problems()
        self._class_weights = class_weights(self.checks["training"].labels, labels) if balances else None
        self._examples, self.validation = training, validation
        self.batches = self._batcher()
        self.config = self._in_steps(self.config)
        self.fingerprint = key(
            self.batches.digest, tokenizer.fingerprint, tokenizer.chat_template, tokenizer.eos, self.task.name
        )
        self.model_config = with_head_of_task(base, self.config)

    @override
    def prepare(self, strategy: Strategy) -> None:
        if self.task.prepare is not None:
            self.task.prepare(strategy, (self.training, self._held_out), self.config)

    @override
    def loss(self, model: Transformer) -> nn.Module:
        if self._class_weights is not None:
            return ClassWeightedLoss(model, self._class_weights)
        return self.task.loss(model, self.config)

    @override
    def summary(self) -> Sequence[str]:
        checks = ((name, *(f"  {line}" for line in check.lines())) for name, check in self.checks.items())
        weights = self._class_weights or ()
        named = ", ".join(
            f"{shorten(name, 40)} {each:.2g}" for name, each in zip(self.config.labels, weights, strict=False)
        )
        said = [f"balance    rows count in the loss by their class: {shorten(named, 200)}"] if weights else []
        return [f"data       {self.example_set.describe()}", *chain.from_iterable(checks), *said]

    @override
    def save(self, model: Transformer, directory: Path) -> str:
        # The run itself goes on with the base's tokenizer, whose template is part of its fingerprint.
        converses = self.task.converses(self._examples[0])
        tokenizer = with_plain_template(self.tokenizer) if converses else self.tokenizer
        return save_model(model, directory, tokenizer, self.config)

    @override
    def sample(self, model: Transformer) -> Sample:
        rows = self._report.rows(model)[:_SHOWN]
        answers = [f"{sample_answer(row)}{self._wrong(row)}" for row in rows]
        passages = [Passage(f"{row.text}\n    ", answer) for row, answer in zip(rows, answers, strict=True)]
        # The arguments of `anyformer evaluate`; on other data than those of training.
        columns = (word for role, column in self.config.roles.items() for word in (f"--{role}", column))
        to_evaluate = f"--data {shlex.join(self.config.validation) or 'FILE'} {shlex.join(columns)}".rstrip()
        return Sample(passages, self.task.commands(self.config, self._examples[0], to_evaluate))

    def _wrong(self, row: EvaluatedRow) -> str:
        """The mark of a label that is not the right one."""
        if row.right is not False or self.task.generates:
            return ""
        return "  (wrong)" if row.spans is not None else f"  (wrong: {row.reference or self.task.nothing})"

    def _read(self, config: FinetuneConfig, training: ExampleSet | None = None) -> ExampleSet:
        """The examples of the training data, or with them given those for validation, as the model learns them."""
        if training is not None:
            names = training.labels or ()
            config = replace(config, data=config.validation, task=training.task, labels=names, label_kind=training.kind)
        kind: Any = config.label_kind
        examples = load_examples(
            config.data,
            task=config.task,
            columns=as_columns(config.roles),
            header=config.header,
            labels=config.labels or None,
            kind=kind,
            training=training is None,
            skip_faulty=config.skip_faulty,
            max_record_bytes=config.max_record_bytes,
            cache=Cache(config.cache),
            encoding=config.encoding,
        )
        add_system = TASKS[examples.task].add_system
        if config.system is not None and add_system is not None:
            changed, counts = zip(*(add_system(each, config.system) for each in examples.examples), strict=True)
            note = f"--system added to {sum(counts):,} conversation{'s' * (sum(counts) != 1)}"
            examples = replace(examples, examples=changed, notes=[*examples.notes, note])
        instead = TASKS[examples.task].instead(self.base)
        if instead is None:
            return examples
        task, change = instead
        return replace(examples, task=task.name, examples=[change(each) for each in examples.examples])

    def _encode(self, encoding: Encoding, examples: Sequence[Example], check: Check) -> Dataset:
        """The examples as a dataset; counts them, and keeps the first ones to be drawn."""
        assert self.task.encode is not None
        assert self.task.dataset is not None
        encoded = list(self.task.encode(encoding, examples))
        for each in encoded:
            check.add(each)
        self.preview += encoded[: max(0, ROWS - len(self.preview))]
        return self.task.dataset(encoding, encoded)

    def _batcher(self) -> Batcher:
        config, training, held = self.config, self.training, self._held_out
        batches = ExampleBatches(training, config.batch_size, config.seed, by_length=not config.packing)
        validation = ExampleBatches(held, config.batch_size)
        return Batcher(
            batches.batch,
            partial(validation.validation, config.batch_tokens),
            steps_per_epoch=batches.steps_per_epoch,
            validation_batches=len(validation.validation_members(config.batch_tokens)),
            validation_size=None,
            digest=key(*(digest(example).hex() for example in (*self._examples, *self.validation))),
            summary="",
        )


@contextmanager
def _without_garbage_collection() -> Generator[None]:
    """The collector would visit all examples again and again while they are made, and find nothing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def class_weights(counts: Mapping[str, int], labels: Sequence[str]) -> list[float] | None:
    """The weight of each class in the loss, 1 for the mean example: in inverse proportion to its examples.

    None where the most frequent class has less than one and a half times the examples of the rarest.
    """
    known = [counts[label] for label in labels if label in counts]
    if max(known) < _UNEQUAL * min(known):
        return None
    mean = sum(known) / len(known)
    return [mean / counts[label] if label in counts else 1.0 for label in labels]


def sample_answer(row: EvaluatedRow) -> str:
    """The prediction of a row; of a tagged sentence its entities, since its prediction is a list of errors."""
    if row.spans is None:
        return row.prediction
    return ", ".join(f"{piece.text}: {piece.kind}" for piece in row.spans.predicted if piece.kind) or "no entities"
