"""Evaluate, train, evaluate, save, sample."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from itertools import islice

import torch
from rich.console import Console
from rich.text import Text

from anyformer.checkpoint import save
from anyformer.data.batches import Batches, validation_batches
from anyformer.data.objectives import Batch
from anyformer.errors import UserError
from anyformer.families.own import FAMILY as OWN_FAMILY
from anyformer.model import build
from anyformer.training.evaluate import Evaluation, evaluate
from anyformer.training.interrupt import Interrupt, interruptible
from anyformer.training.loop import DivergedError, StepReport, train_steps
from anyformer.training.metrics import Meter
from anyformer.training.optimiser import adamw
from anyformer.training.precision import Precision
from anyformer.training.prepare import Prepared
from anyformer.training.progress import TrainingProgress, say
from anyformer.training.run_directory import RunDirectory
from anyformer.training.sample import take_sample
from anyformer.training.schedule import Clock, Horizon, Steps

_SAVE_EVERY = 300.0
"""Seconds between two saves of the model."""

_EVALUATION_SHARE = 0.05
_SAMPLE_SHARE = 0.03
"""Of the time of a run that ends by the clock: what an evaluation, and the end, may take."""


class Trainer:
    """A model, its data, and the directory that it is saved to.

    Args:
        prepared: the data, and the run's config.
        directory: the run's own.
        precision: where and how to compute.
        console: where to show progress.
    """

    def __init__(self, prepared: Prepared, directory: RunDirectory, precision: Precision, console: Console) -> None:
        """Build the model, with the weights that the seed gives. Raises UserError for data that is too short."""
        config = prepared.config
        self.config, self.prepared = config, prepared
        self.directory, self.precision, self.console = directory, precision, console
        self.batches = Batches(
            prepared.training.ids, config.context, config.batch_size, config.seed, prepared.objective
        )
        torch.manual_seed(config.seed)
        self.model = build(config.model).to(precision.device)
        self._every = 1
        self._saved = 0
        self._model_type = ""

    def run(self, started: float) -> int:
        """Do all of it.

        Args:
            started: when the run began, on the monotonic clock.

        Returns:
            The exit status.

        Raises:
            UserError: the loss is no longer a number, or the disk is full; it says which model was saved last.
        """
        self._introduce()
        self._thin_validation()
        with interruptible() as interrupt:
            before = self._evaluate(0, 0.0, interrupt.asked)
            if interrupt.asked():
                self._say("Stopped before training began; nothing was saved.")
                return interrupt.exit_status
            self._say(f"before     {self._in_words(before)}")
            self._save(0)
            try:
                last, meter = self._train(self._horizon(before.seconds, started), interrupt)
                if not interrupt.asked():
                    after = self._evaluate(last.step, meter.elapsed, interrupt.asked)
                    if not interrupt.asked():
                        speed = meter.tokens / meter.elapsed
                        self._say(f"after      {self._in_words(after)}; {last.step:,} steps, {speed:,.0f} tokens/s")
                self._save(last.step)
            except UserError as error:
                raise UserError(
                    f"{error} The model in {self.directory.model} is that of step {self._saved}."
                ) from error
            if interrupt.asked():
                return self._stopped(last, interrupt)
        try:
            self._conclude()
        except KeyboardInterrupt:
            return self._stopped(last, interrupt)
        return 0

    def _introduce(self) -> None:
        config, prepared = self.config, self.prepared
        size = sum(parameter.numel() for parameter in self.model.parameters())
        files = f"{prepared.files:,} file" + "s" * (prepared.files != 1)
        training, validation = len(prepared.training), len(prepared.validation)
        length = f"{config.steps:,} steps" if config.steps is not None else f"{config.minutes:g} minutes in all"
        self._say(f"model      {config.preset}, {size:,} parameters; {self.precision}")
        self._say(f"data       {prepared.characters:,} characters in {files}")
        self._say(f"tokens     {training:,} to train on, {validation:,} to validate on ({config.tokenizer})")
        self._say(f"run        {self.directory.path}: {length}, {config.batch_size} x {config.context} tokens a step")

    def _train(self, horizon: Horizon, interrupt: Interrupt) -> tuple[StepReport, Meter]:
        config, meter = self.config, Meter()
        optimiser = adamw(self.model, config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, config.beta2))
        steps = train_steps(
            self.model,
            self.batches.batch,
            optimiser,
            horizon,
            self.precision,
            learning_rate=config.learning_rate,
            warmup=config.warmup,
            clip=config.clip,
        )
        report, logged, saved = None, 0, time.monotonic()
        with TrainingProgress(self.console) as progress:
            for report in steps:
                meter.add(report)
                progress.show(report, meter)
                if report.step % config.log_every == 0:
                    self.directory.log(meter.line(report))
                    logged = report.step
                if config.evaluate_every is not None and report.step % config.evaluate_every == 0:
                    found = self._evaluate(report.step, meter.elapsed, interrupt.asked)
                    self._say(f"step {report.step:<5} {self._in_words(found)}")
                    saved = -math.inf
                if time.monotonic() - saved > _SAVE_EVERY:
                    self._save(report.step)
                    saved = time.monotonic()
                    meter.resume()
                if interrupt.asked():
                    break
        if report is None:
            raise ValueError("a run has at least one step")
        if logged < report.step:
            self.directory.log(meter.line(report))
        return report, meter

    def _horizon(self, evaluation_seconds: float, started: float) -> Horizon:
        if self.config.steps is not None:
            return Steps(self.config.steps)
        if self.config.minutes is None:
            raise ValueError("a complete config has steps or minutes")
        seconds = 60 * self.config.minutes
        left = started + seconds - time.monotonic() - evaluation_seconds - _SAMPLE_SHARE * seconds
        return Clock(max(left, seconds / 2))

    def _validation(self) -> Iterator[Batch]:
        config, prepared = self.config, self.prepared
        ids, objective = prepared.validation.ids, prepared.objective
        return islice(
            validation_batches(ids, config.context, config.batch_size, objective, config.seed), 0, None, self._every
        )

    def _thin_validation(self) -> None:
        """Where time is short, evaluate only every so many-th batch."""
        if self.config.minutes is None:
            return
        once = [evaluate(self.model, islice(self._validation(), 1), self.precision).seconds for _ in range(2)]
        batches = len(self.prepared.validation) / (self.config.context * self.config.batch_size)
        self._every = math.ceil(max(1.0, min(once) * batches / (_EVALUATION_SHARE * 60 * self.config.minutes)))
        if self._every > 1:
            self._say(f"           time is short: one in {self._every} batches of the validation text is evaluated")

    def _evaluate(self, step: int, elapsed: float, stop: Callable[[], bool]) -> Evaluation:
        """Evaluate and log. Raises DivergedError where the model answers with NaN."""
        evaluation = evaluate(self.model, self._validation(), self.precision, stop)
        if not math.isfinite(evaluation.loss):
            raise DivergedError.after(step, f"the validation loss is {evaluation.loss}")
        if not stop():
            self.directory.log({"step": step, **self._scores(evaluation), "elapsed": elapsed})
        return evaluation

    def _scores(self, evaluation: Evaluation) -> dict[str, float]:
        scores = {"validation_loss": evaluation.loss}
        if self.config.model.is_decoder_only:
            header = self.prepared.validation.header
            scores["bits_per_byte"] = evaluation.bits_per_byte(header.tokens, header.bytes)
        return scores

    def _in_words(self, evaluation: Evaluation) -> str:
        return ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in self._scores(evaluation).items())

    def _save(self, step: int) -> None:
        """Write model/, unless its weights are no longer numbers."""
        if not all(bool(parameter.isfinite().all()) for parameter in self.model.parameters()):
            raise DivergedError.after(step, "the weights are no longer finite")
        self._model_type = save(self.model, self.directory.model, tokenizer=self.prepared.tokenizer)
        self._saved = step

    def _stopped(self, last: StepReport, interrupt: Interrupt) -> int:
        self._say(
            f"Stopped after step {last.step:,}, {last.progress:.0%} of the way. The model is in {self.directory.model}."
        )
        return interrupt.exit_status

    def _conclude(self) -> None:
        sample = take_sample(self.model, self.prepared)
        self._say("sample")
        for part in sample.passages:
            passage = Text.assemble(part.before, (part.written, "bold green"), part.after)
            self.console.print(passage, soft_wrap=True)
        own = self._model_type == OWN_FAMILY.model_type
        self._say(f"model      {self.directory.model}, {'in our own format' if own else 'a Hugging Face directory'}")
        self._say(f"next       anyformer {sample.command} {self.directory.path} {sample.arguments}")

    def _say(self, text: str) -> None:
        say(self.console, text)
