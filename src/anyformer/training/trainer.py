"""Evaluate, train, evaluate, save, sample."""

from __future__ import annotations

import dataclasses
import math
import shlex
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.text import Text

from anyformer.analysis import part_costs, training_flops
from anyformer.checkpoint import save
from anyformer.errors import UserError
from anyformer.families.own import FAMILY as OWN_FAMILY
from anyformer.runs.directory import RunDirectory
from anyformer.runs.metrics import Meter, StepReport
from anyformer.runs.report import write_report
from anyformer.runs.tracking import Trackers
from anyformer.training.checkpoints import Checkpoints
from anyformer.training.config import DEFAULTS
from anyformer.training.config_file import settings
from anyformer.training.evaluate import Evaluation, evaluate
from anyformer.training.interrupt import Interrupt, interruptible
from anyformer.training.loop import DivergedError, train_steps
from anyformer.training.memory import explain_out_of_memory
from anyformer.training.precision import Precision, peak_flops_per_second
from anyformer.training.prepare import Prepared
from anyformer.training.progress import TrainingProgress, say
from anyformer.training.sample import Sample, take_sample
from anyformer.training.schedule import Budget, StepBudget, SyncedBudget, TimeBudget, learning_rate_factor
from anyformer.training.strategies.base import Strategy

_SAVE_EVERY = 300.0
"""Seconds between two checkpoints, unless they are counted in steps."""

_EVALUATION_SHARE = 0.05
_SAMPLE_SHARE = 0.03
"""Of the time of a run that ends by the clock: what an evaluation, and the end, may take."""


class Trainer:
    """A model that is being trained, its data, and the directory that it is saved to.

    Args:
        prepared: the data, and the run's config.
        directory: the run's own.
        strategy: has the model.
        precision: where and how it computes.
        trackers: who else wants the metrics.
        console: where to show progress.
        resumed: what the checkpoint says whose state the strategy has loaded; None for a new run.
    """

    def __init__(
        self,
        prepared: Prepared,
        directory: RunDirectory,
        strategy: Strategy,
        precision: Precision,
        trackers: Trackers,
        console: Console,
        resumed: Mapping[str, Any] | None = None,
    ) -> None:
        self.prepared, self.config = prepared, prepared.config
        self.directory, self.strategy, self.precision = directory, strategy, precision
        self.trackers, self.console = trackers, console
        self.checkpoints = Checkpoints(directory.checkpoints, self.config.keep)
        self.flops = training_flops(self.config.model, self.config.context)
        self.parameters = sum(part.parameters for part in part_costs(self.config.model, self.config.context))
        facts = resumed or {}
        self.resumed = resumed is not None
        self.meter = Meter(self.flops, facts.get("meter"))
        self.start: int = facts.get("step", 0)
        self._saved = self.start
        self._every: int = facts.get("every", 1)
        self._latest: tuple[int, Evaluation] | None = None
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
        if not self.resumed:
            self._thin_validation()
        with interruptible() as interrupt:
            evaluation_seconds = 0.0
            if not self.resumed:
                self._log(self._about())
                before = self._evaluate(0, interrupt.asked)
                evaluation_seconds = before.seconds
                if self._asked(interrupt):
                    self._say("Stopped before training began; nothing was saved.")
                    return interrupt.exit_status
                self._say(f"before     {self._in_words(before)}")
                self._save_model(0)
            try:
                with explain_out_of_memory():
                    last = self._train(self._budget(evaluation_seconds, started), interrupt)
                stopped = last is not None and self._asked(interrupt)
                if last is None:
                    self._say(f"This run had ended after step {self.start:,}: give more --steps or --minutes.")
                    if self.strategy.group.broadcast(self.directory.finished()):
                        return 0
                    # It was killed between its last checkpoint and its last words.
                    step, progress = self.start, 1.0
                else:
                    step, progress = last.step, last.progress
                    if not stopped:
                        after = self._evaluate(step, interrupt.asked)
                        stopped = self._asked(interrupt)
                        if not stopped:
                            speed = self.meter.tokens / self.meter.elapsed
                            self._say(f"after      {self._in_words(after)}; {step:,} steps, {speed:,.0f} tokens/s")
                    self._save(step)
            except UserError as error:
                state = "diverged" if isinstance(error, DivergedError) else "stopped"
                with suppress(UserError):  # a disk that is full for the model is full for them, too
                    self._log({"step": self._saved, "state": state, "reason": str(error)})
                    self._report()
                raise UserError(
                    f"{error} The model in {self.directory.model} is that of step {self._saved}."
                ) from error
            if stopped:
                return self._stopped(step, progress, interrupt)
        try:
            self._conclude(step)
        except KeyboardInterrupt:
            return self._stopped(step, progress, interrupt)
        return 0

    def _train(self, budget: Budget, interrupt: Interrupt) -> StepReport | None:
        config, meter = self.config, self.meter

        def rate(progress: float) -> float:
            factor = learning_rate_factor(config.schedule, progress, warmup=config.warmup, decay=config.decay)
            return config.learning_rate * factor

        report, logged, saved = None, self.start, time.monotonic()
        with TrainingProgress(self.console) as progress:
            for report in train_steps(self.strategy, self.prepared.batch, budget, rate, start=self.start):
                step = report.step
                meter.add(report)
                progress.show(report, meter)
                if step % config.log_every == 0:
                    self._log(meter.line(report))
                    logged = step
                evaluates = config.evaluate_every is not None and step % config.evaluate_every == 0
                if evaluates:
                    found = self._evaluate(step, interrupt.asked)
                    self._say(f"step {step:<5} {self._in_words(found)}")
                    self._sample(step)
                if config.save_every is not None:
                    due = step % config.save_every == 0
                    if due:
                        self.strategy.snapshot()
                else:
                    due = time.monotonic() - saved > _SAVE_EVERY
                if self.strategy.group.broadcast(evaluates or due):
                    self._save(step)
                    saved = time.monotonic()
                if evaluates or due:
                    meter.resume()
                if self._asked(interrupt):
                    break
        if report is not None and logged < report.step:
            self._log(meter.line(report))
        return report

    def _budget(self, evaluation_seconds: float, started: float) -> Budget:
        config = self.config
        if config.steps is not None:
            return StepBudget(config.steps)
        if config.minutes is None:
            raise ValueError("a complete config has steps or minutes")
        seconds = 60 * config.minutes
        elapsed = self.meter.elapsed if self.resumed else 0.0
        left = started + seconds - time.monotonic() - evaluation_seconds - _SAMPLE_SHARE * seconds
        return SyncedBudget(TimeBudget(max(left, seconds / 2), elapsed), self.strategy.group.broadcast)

    def _thin_validation(self) -> None:
        """Where time is short, evaluate only every so many-th batch."""
        if self.config.minutes is None:
            return
        once = [self._evaluation(lambda: False, self.prepared.validation_batches).seconds for _ in range(2)]
        batches = self.prepared.validation_batches
        wanted = math.ceil(max(1.0, min(once) * batches / (_EVALUATION_SHARE * 60 * self.config.minutes)))
        self._every = self.strategy.group.broadcast(wanted)
        if self._every > 1:
            self._say(f"           time is short: one in {self._every} batches of the validation text is evaluated")

    def _evaluation(self, stop: Callable[[], bool], every: int) -> Evaluation:
        group = self.strategy.group
        with self.strategy.averaged():
            return evaluate(self.strategy.evaluate, self.prepared.validation(every), lambda: group.any(stop()))

    def _evaluate(self, step: int, stop: Callable[[], bool]) -> Evaluation:
        """Evaluate and log, once a step. Raises DivergedError where the model answers with NaN."""
        if self._latest is not None and self._latest[0] == step:
            return self._latest[1]
        evaluation = self._evaluation(stop, self._every)
        if not math.isfinite(evaluation.loss):
            raise DivergedError.after(step, f"the validation loss is {evaluation.loss}")
        if not stop():
            self._latest = step, evaluation
            self._log({"step": step, **self._scores(evaluation), "elapsed": self.meter.elapsed if step else 0.0})
        return evaluation

    def _scores(self, evaluation: Evaluation) -> dict[str, float]:
        scores = {"validation_loss": evaluation.loss}
        tokens, size = self.prepared.validation_tokens, self.prepared.validation_bytes
        if tokens is not None and size is not None:
            scores["bits_per_byte"] = evaluation.bits_per_byte(tokens, size)
        return scores

    def _in_words(self, evaluation: Evaluation) -> str:
        return ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in self._scores(evaluation).items())

    def _save(self, step: int) -> None:
        """Write model/ and a checkpoint."""
        self._save_model(step)
        facts = {
            "meter": self.meter.state(),
            "every": self._every,
            "fingerprint": self.prepared.fingerprint,
            "config": settings(self.config),
        }
        self.checkpoints.save(self.strategy, step, facts)
        self._report()

    def _save_model(self, step: int) -> None:
        """Write model/, unless its weights are no longer numbers."""
        finite = True
        with self.strategy.gathered() as model:
            if model is not None:
                finite = all(bool(parameter.isfinite().all()) for parameter in model.parameters())
                if finite:
                    self._model_type = save(model, self.directory.model, tokenizer=self.prepared.tokenizer)
        if self.strategy.group.any(not finite):
            raise DivergedError.after(step, "the weights are no longer finite")
        self._saved = step

    def _sample(self, step: int, *then: Mapping[str, Any]) -> Sample | None:
        """What the model has learnt, and what to log after it; None on the processes that don't speak."""
        with self.strategy.gathered() as model:
            if model is None:
                return None
            training = model.training
            sample = take_sample(model, self.prepared)
            model.train(training)
        self._log({"step": step, "sample": [dataclasses.asdict(passage) for passage in sample.passages]}, *then)
        return sample

    def _about(self) -> dict[str, Any]:
        """The first line of metrics.jsonl."""
        return {
            "step": 0,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "parameters": self.parameters,
            "flops_per_token": self.flops.token,
            "peak_flops_per_second": peak_flops_per_second(self.precision),
            "device": str(self.precision.device),
            "dtype": self.precision.name,
            "engine": str(self.strategy),
        }

    def _log(self, *records: Mapping[str, Any]) -> None:
        self.directory.log(*records)
        if self.strategy.group.is_main:
            for record in records:
                self.trackers.log(record)

    def _report(self) -> None:
        if self.strategy.group.is_main:
            write_report(self.directory.path, DEFAULTS)

    def _asked(self, interrupt: Interrupt) -> bool:
        return self.strategy.group.any(interrupt.asked())

    def _stopped(self, step: int, progress: float, interrupt: Interrupt) -> int:
        self._log({"step": step, "state": "stopped"})
        self._report()
        done = f"Stopped after step {step:,}, {progress:.0%} of the way."
        self._say(f"{done} The model is in {self.directory.model}.")
        self._say(f"next       anyformer train --resume {shlex.quote(str(self.directory.path))}")
        return interrupt.exit_status

    def _conclude(self, step: int) -> None:
        sample = self._sample(step, {"step": step, "state": "finished"})
        self._report()
        if sample is None:
            return
        self._say("sample")
        for part in sample.passages:
            passage = Text.assemble(part.before, (part.written, "bold green"), part.after)
            self.console.print(passage, soft_wrap=True)
        own = self._model_type == OWN_FAMILY.model_type
        self._say(f"model      {self.directory.model}, {'in our own format' if own else 'a Hugging Face directory'}")
        self._say(f"report     {self.directory.path / 'report.html'}")
        path = shlex.quote(str(self.directory.path))
        self._say(f"next       anyformer {sample.command} {path} {sample.arguments}")

    def _say(self, text: str) -> None:
        if self.strategy.group.is_main:
            say(self.console, text)
