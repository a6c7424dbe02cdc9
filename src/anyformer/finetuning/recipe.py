"""Fine-tuning on examples as a recipe of the training loop: the model, its batches, and what it gained."""

import gc
import shlex
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from typing_extensions import override

from anyformer.blocks.dropout import Dropout
from anyformer.console import Console
from anyformer.data.disk_cache import Cache, key
from anyformer.data.examples import ClassifyExample, EmbedExample, Example, Task
from anyformer.data.examples.batches import ExampleBatches
from anyformer.data.examples.columns import as_columns
from anyformer.data.examples.datasets import Dataset, PreferenceDataset
from anyformer.data.examples.held_out import digest, duplicates, held_out, overlap
from anyformer.data.examples.loading import ExampleSet, find_task, load_examples
from anyformer.evaluation.result import EvaluatedRow
from anyformer.finetuning.base import BaseFinetuning
from anyformer.finetuning.check import Check
from anyformer.finetuning.config import FinetuneConfig, complete
from anyformer.finetuning.encoding import Encoding
from anyformer.finetuning.fit import embedding_loss, fitted, with_system_message
from anyformer.finetuning.preview import PreviewRow
from anyformer.finetuning.report import Report
from anyformer.finetuning.text import TextFinetuning
from anyformer.model import Transformer
from anyformer.training.batcher import Batcher
from anyformer.training.losses import EmbeddingLoss, LossModule, PreferenceLoss, answer_log_probabilities
from anyformer.training.precision import choose_precision
from anyformer.training.recipe import Recipe
from anyformer.training.sample import Passage, Sample
from anyformer.training.strategies.base import model_inputs

_SHOWN = 3


def finetuning(config: FinetuneConfig, console: Console) -> Recipe:
    """The recipe of a run: on plain text, or on examples.

    Raises:
        UserError: as `TextFinetuning` and `Finetuning`.
    """
    if config.task is None:
        task = find_task(config.data, columns=as_columns(config.roles), header=config.header, cache=Cache(config.cache))
        config = replace(config, task=task) if task == "text" else config
    return (TextFinetuning if config.task == "text" else Finetuning)(config, console)


class Finetuning(BaseFinetuning):
    """A model that somebody has trained, and examples of a task.

    Raises:
        UserError: no such model, one that can't do the task, examples that are faulty, or such that nothing can be
            learned from.
    """

    def __init__(self, config: FinetuneConfig, console: Console) -> None:
        super().__init__(config)
        base, tokenizer = self.base, self.tokenizer
        with console.status("reading the examples"), _without_garbage_collection():
            self.found = fitted(_read(config), base)
            training, validation = self._split(config)
            self.task: Task = self.found.task
            labels = self.found.labels or ()
            settled: dict[str, Any] = {"labels": labels, "label_kind": self.found.kind}
            if isinstance(training[0], EmbedExample):
                settled["loss"] = embedding_loss(config.loss, training[0])
            self._config = complete(config, base, self.task, examples=len(training), **settled)
            self.preview: list[PreviewRow] = []
            encoding = Encoding(
                tokenizer=tokenizer,
                model=base,
                context=self.config.context,
                labels=labels,
                kind=self.found.kind,
                learn_all=config.train_on == "all",
                packing=self.config.packing,
            )
            self.checks = {name: self._check() for name in ("training", "validation")}
            self.training, held = (
                encoding.encode(self.task, examples, check, self.preview)
                for examples, check in zip((training, validation), self.checks.values(), strict=True)
            )
        self.checks["training"].duplicates = duplicates(training)
        self.checks["validation"].overlap = overlap(training, validation)
        for name, check in self.checks.items():
            check.problems(training=name == "training")
        self._examples, self.validation = training, validation
        self._held = held
        self.batches = self._batcher(held)
        self._config = self._in_steps(self._config)
        self.fingerprint = key(
            self.batches.digest, tokenizer.fingerprint, tokenizer.chat_template, tokenizer.eos, self.task
        )
        self._report = Report(self.config, tokenizer, self.validation, self.checks)

    @override
    def build(self) -> Transformer:
        model = super().build()
        if isinstance(self.training, PreferenceDataset) and isinstance(self._held, PreferenceDataset):
            for part in model.modules():
                if isinstance(part, Dropout):  # the reference has none, and the two are compared
                    part.p = 0.0
            for dataset in (self.training, self._held):
                self._refer(model, dataset)
        return model

    @override
    def loss(self, model: Transformer) -> nn.Module:
        if self.task == "preference":
            return PreferenceLoss(model, self.config.beta)
        if self.task == "embed":
            return EmbeddingLoss(model, self.config.loss or "in_batch_negatives")
        return LossModule(model)

    @override
    def summary(self) -> Sequence[str]:
        lines = [f"data       {self.found.describe()}"]
        for name, check in self.checks.items():
            lines += [f"{name:<11}" if number == 0 else f"  {line}" for number, line in enumerate(["", *check.lines()])]
        return lines

    @override
    def sample(self, model: Transformer) -> Sample:
        rows = self._report.rows(model)[:_SHOWN]
        passages = [Passage(f"{row.text}\n    ", sample_answer(row)) for row in rows]
        return Sample(passages, self._commands())

    def _commands(self) -> list[tuple[str, str]]:
        """What can be asked of the model, each with its arguments."""
        match self.task:
            case "chat":
                system = self.config.system
                return [("chat", "" if system is None else f"--system {shlex.quote(system)}")]
            case "completion" | "seq2seq":
                return [("generate", "TEXT")]
            case "embed":
                return [("embed", "TEXT")]
            case "classify" | "tag":
                example = self._examples[0]
                pairs = isinstance(example, ClassifyExample) and example.second is not None
                texts = '"text" --second "text"' if pairs else '"text"'
                return [("classify", texts), ("evaluate", self._to_evaluate())]
            case _:
                return [("evaluate", self._to_evaluate())]

    def _to_evaluate(self) -> str:
        """The arguments of `anyformer evaluate`; on other data than those of training."""
        columns = (word for role, column in self.config.roles.items() for word in (f"--{role}", column))
        return f"--data {shlex.join(self.config.validation) or 'FILE'} {shlex.join(columns)}".rstrip()

    def _split(self, config: FinetuneConfig) -> tuple[Sequence[Example], Sequence[Example]]:
        if not config.validation:
            return held_out(self.found.examples, seed=config.seed)
        other = _read(config, self.found)
        return self.found.examples, other.examples

    def _check(self) -> Check:
        tokens = self.model_config.special_tokens
        stops = {*tokens.eos, *([] if self.tokenizer.eos is None else [self.tokenizer.eos])}
        return Check(self.task, self.tokenizer, context=self.config.context, stops=stops)

    def _batcher(self, held: Dataset) -> Batcher:
        config = self.config
        batches = ExampleBatches(
            self.training, self.training.lengths, config.batch_size, config.seed, by_length=not config.packing
        )
        validation = ExampleBatches(held, held.lengths, config.batch_size)
        return Batcher(
            batches.batch,
            partial(validation.validation, config.batch_tokens),
            steps_per_epoch=batches.steps_per_epoch,
            validation_batches=len(validation.validation_members(config.batch_tokens)),
            validation_size=None,
            digest=key(*(digest(example).hex() for example in (*self._examples, *self.validation))),
            summary="",
        )

    def _refer(self, model: Transformer, dataset: PreferenceDataset) -> None:
        """Compute the log-probabilities of all answers as the model gives them before training."""
        precision = choose_precision(self.config.device, self.config.dtype)
        model.eval().to(precision.device)
        order = np.argsort(dataset.lengths, kind="stable")
        for members in np.array_split(order, max(1, len(order) // self.config.batch_size)):
            inputs = model_inputs(dataset.collate(members.tolist()), precision.device)
            inputs.pop("reference")
            with torch.no_grad(), precision.autocast():
                found = answer_log_probabilities(model, **inputs)
            dataset.reference[members] = found.float().cpu().numpy().reshape(-1, 2)


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


def _read(config: FinetuneConfig, training: ExampleSet | None = None) -> ExampleSet:
    """The examples of the training data, or with them given those for validation."""
    task: Any = config.task if training is None else training.task
    labels = config.labels or None if training is None else training.labels
    kind: Any = config.label_kind if training is None else training.kind
    found = load_examples(
        config.data if training is None else config.validation,
        task=task,
        columns=as_columns(config.roles),
        header=config.header,
        labels=labels,
        kind=kind,
        training=training is None,
        skip_faulty=config.skip_faulty,
        max_record_bytes=config.max_record_bytes,
        cache=Cache(config.cache),
    )
    chats = config.system is not None and found.task in ("chat", "preference")
    return with_system_message(found, config.system or "") if chats else found


def sample_answer(row: EvaluatedRow) -> str:
    """The prediction of a row; of a tagged sentence its entities, since its prediction is a list of errors."""
    if row.spans is None:
        return row.prediction
    return ", ".join(f"{piece.text}: {piece.kind}" for piece in row.spans.said if piece.kind) or "no entities"
