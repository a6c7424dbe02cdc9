"""The training loop: evaluate, train, evaluate, save, sample."""

import dataclasses
import math
import os
import shlex
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, Self

import torch
from rich.text import Text
from torch import Tensor

from anyformer.analysis import part_costs, training_flops
from anyformer.console import Console
from anyformer.dtensor import local_tensor
from anyformer.errors import UserError
from anyformer.kernels.threads import AdaptiveThreads, adaptive_threads
from anyformer.model import Transformer
from anyformer.runs.directory import RunDirectory
from anyformer.runs.metrics import Evaluation, Meter, TrainingProgress, evaluate
from anyformer.runs.report import write_report
from anyformer.runs.tracking import Trackers
from anyformer.training.checkpoints import Checkpoints
from anyformer.training.config import defaults
from anyformer.training.config_file import settings
from anyformer.training.memory import explain_out_of_memory, keep_freed_memory, return_freed_memory
from anyformer.training.precision import peak_flops_per_second
from anyformer.training.recipe import ResolvedRun
from anyformer.training.sample import Sample
from anyformer.training.schedule import StepBudget, TimeBudget, learning_rate_factor
from anyformer.training.strategies.base import Strategy
from anyformer.training.strategies.launch import interruptible

_SAVE_EVERY = 300.0
"""Seconds between two checkpoints, unless they are counted in steps."""

_SHORT, _POINTS, _MOST_VALIDATION = 200, 4, 0.05
"""A run of at most `_SHORT` steps is evaluated `_POINTS` times, the last time at its end, to have a curve; less often
where that, at a third of a step a batch, would take more than this share of its time."""

_EVALUATION_SHARE = 0.05
_SAMPLE_SHARE = 0.03
"""Largest share of an evaluation, and of the end, in a run that ends by the clock."""


class DivergedError(UserError):
    """The loss or the gradient is no longer a number, so training on makes no sense."""

    @classmethod
    def after(cls, step: int, what: str) -> Self:
        """Say what went wrong, and what to try."""
        return cls(f"Training diverged: after step {step} {what}. Try a smaller --learning-rate or a longer --warmup.")


class Trainer:
    """A model that is being trained, its data, and the directory that it is saved to.

    Args:
        trackers: those of the metrics; none in processes other than the first.
        console: shows progress; a quiet one in those.
        resumed: facts of the checkpoint whose state the strategy has loaded; None for a new run.
        trained_parameters: number of weights that are trained; None: all.
    """

    def __init__(
        self,
        run: ResolvedRun,
        directory: RunDirectory,
        strategy: Strategy,
        trackers: Trackers,
        console: Console,
        resumed: Mapping[str, Any] | None = None,
        trained_parameters: int | None = None,
    ) -> None:
        facts, recipe = resumed or {}, run.recipe
        self.recipe, self.config, self.batches = recipe, recipe.config, recipe.batches
        self.precision = run.plan.precision
        self.directory, self.strategy, self.group = directory, strategy, strategy.group
        self.trackers, self.console, self._say = trackers, console, console.say
        self.checkpoints = Checkpoints(directory.checkpoints, self.config.keep)
        self.trained_parameters = trained_parameters
        self.resumed = resumed is not None
        self.flops = training_flops(recipe.model_config, self.config.context)
        self.meter = Meter(self.flops, facts.get("meter"))
        self.start: int = facts.get("step", 0)
        self.threads: int = facts.get("threads", torch.get_num_threads())
        self._on_cpu = self.precision.device.type == "cpu"
        self.step = self._saved = self.start
        self._progress = 1.0
        self._unread: list[Tensor] = []
        self._saved_at = 0.0
        self._every: int = facts.get("every", 1)
        self._latest: tuple[int, Evaluation] | None = None
        self._stored = ""
        self._measuring = 0.0

    def run(self, started: float) -> int:
        """Evaluate, train, save and sample, in a run that began at `started`, and return the exit status.

        Raises:
            UserError: the loss is no longer a number, or the disk is full; it says which model was saved last.
        """
        with interruptible() as self._interrupt:
            if not self.resumed and not self._begin():
                return self._interrupt.exit_status
            budget = self._budget(started)
            self._saved_at = time.monotonic()
            return_freed_memory()
            self.meter.start()
            # What ends by the clock depends on the machine's load anyway; else the same steps lead to the same weights.
            most = torch.get_num_threads() if self._on_cpu and self.config.steps is None else 1
            with self._failure_logged(), self._recorded_threads():
                threads = adaptive_threads(most, self.strategy.use_threads)
                with explain_out_of_memory(), TrainingProgress(self.console) as bar, threads as adapted:
                    self._train(budget, bar, adapted)
                stopped = self.step > self.start and self._interrupted()
                if self.step == self.start:
                    self._say(f"This run had ended after step {self.start:,}: give more --steps or --minutes.")
                    if self.group.broadcast(self.directory.finished()):
                        self._finish()
                        return 0
                    # It was killed between its last checkpoint and its last words.
                elif not stopped:
                    stopped = not self._say_result()
                self._save()
                self.checkpoints.wait()
            if stopped:
                return self._stopped()
        with suppress(KeyboardInterrupt):
            self._conclude()
            return 0
        return self._stopped()

    @contextmanager
    def _recorded_threads(self) -> Generator[None]:
        """Context with as many threads as the run began with, of which rounding in torch's libraries depends."""
        own = torch.get_num_threads()
        if self.threads != own and self._on_cpu:
            if "OMP_NUM_THREADS" in os.environ or self.threads > (os.cpu_count() or 1):
                self._say(
                    f"threads    {own}; the steps before were computed with {self.threads}, so the weights will differ "
                    "by rounding from those of a run that was not stopped"
                )
                self.threads = own
            torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            torch.set_num_threads(own)

    def _train(self, budget: StepBudget | TimeBudget, bar: TrainingProgress, threads: AdaptiveThreads) -> None:
        config = self.config
        while (progress := budget.progress(self.step)) <= 1:
            tokens = self.meter.tokens
            threads.begin()
            self._take_step(progress)
            if self.step == self.start + 1:
                keep_freed_memory()  # what stays of a run's first step now lies below the tensors of all others
            logs = self.step % config.log_interval == 0
            evaluates = config.evaluate_every is not None and self.step % config.evaluate_every == 0
            snaps = config.save_every is not None and self.step % config.save_every == 0
            late = config.save_every is None and time.monotonic() - self._saved_at > _SAVE_EVERY
            saves = self.group.broadcast(evaluates or snaps or late)
            # Reading waits for an accelerator, and the CPU has done its work anyway.
            if logs or saves or self._on_cpu:
                self._read()
            threads.end(self.meter.tokens - tokens)
            bar.show(self.step, progress, self.meter)
            if logs:
                self._log(self.meter.line(self.step))
            if evaluates or self._is_point():
                self._say(f"step {self.step:<5} {self._summary(self._evaluate())}")
                self.meter.resume()
            if evaluates:
                self._sample()
            if saves:
                if snaps:
                    self.strategy.snapshot()
                self._save()
                self.meter.resume()
            if self._interrupted():
                break
        self._read()
        if self.step > self.start and self.step % config.log_interval:
            self._log(self.meter.line(self.step))

    def _is_point(self) -> bool:
        """Whether the model is evaluated after this step for the curve alone, without being saved."""
        steps, batches = self.config.steps, self.batches.validation_batches
        if steps is None or self.config.evaluate_every is not None or steps > _SHORT:
            return False
        points = min(_POINTS, 1 + int(3 * _MOST_VALIDATION * steps / max(1, batches)))
        return self.step < steps and self.step % math.ceil(steps / points) == 0

    def _take_step(self, progress: float) -> None:
        config, batch = self.config, self.batches.batch(self.step)
        factor = learning_rate_factor(config.schedule, progress, warmup=config.warmup, decay=config.decay)
        rate = config.learning_rate * factor
        self._unread.append(self.strategy.step(self.step, batch, rate))
        self.meter.add(rate, batch.tokens.size, 0 if batch.source is None else batch.source.size)
        self.step += 1
        self._progress = progress

    def _say_result(self) -> bool:
        """Evaluate once more and print the result; returns False where somebody interrupts."""
        speed = self.meter.tokens / self.meter.elapsed
        after = self._evaluate()
        if self._interrupted():
            return False
        self._say(f"after      {self._summary(after)}; {self.step:,} steps, {speed:,.0f} tokens/s")
        return True

    def _begin(self) -> bool:
        """Evaluate and save the first weights; returns whether to train them."""
        self._thin_validation()
        parameters = sum(part.parameters for part in part_costs(self.recipe.model_config, self.config.context))
        self._log(
            {
                "step": 0,
                "started": datetime.now(UTC).isoformat(timespec="seconds"),
                "parameters": parameters,
                "trained_parameters": parameters if self.trained_parameters is None else self.trained_parameters,
                "head_is_new": self.recipe.head_is_new,
                "flops_per_token": self.flops.token,
                "peak_flops_per_second": peak_flops_per_second(self.precision),
                "device": str(self.precision.device),
                "dtype": self.precision.name,
                "engine": str(self.strategy),
            }
        )
        before = self._evaluate()
        if self._interrupted():
            self._say("Stopped before training began; nothing was saved.")
            return False
        if not self.recipe.head_is_new:
            self._say(f"before     {self._summary(before)}")
        self._save_model()
        self._measure()
        return True

    def _read(self) -> None:
        """Wait for the steps that were not read yet. Raises DivergedError after the first that is not finite."""
        if not self._unread:
            return
        results: list[list[float]] = torch.stack(self._unread).tolist()
        self._unread.clear()
        for step, figures in enumerate(results, self.step - len(results)):
            for name, value in zip(("loss", "gradient"), figures, strict=True):
                if not math.isfinite(value):
                    raise DivergedError.after(step, f"the {name} is {value}")
        self.meter.read(results)

    @contextmanager
    def _failure_logged(self) -> Generator[None]:
        """Context that logs why training ends early, and names the model that is left."""
        try:
            yield
        except UserError as error:
            with suppress(UserError):  # the last checkpoint is good
                self.checkpoints.wait()
            state = "diverged" if isinstance(error, DivergedError) else "stopped"
            with suppress(UserError):  # a disk that is full for the model is full for them, too
                self._log({"step": self._saved, "state": state, "reason": str(error)})
                self._report()
            raise UserError(f"{error} The model in {self.directory.model} is that of step {self._saved}.") from error

    def _budget(self, started: float) -> StepBudget | TimeBudget:
        config = self.config
        if config.steps is not None:
            return StepBudget(config.steps)
        if config.minutes is None:
            raise ValueError("a complete config has steps or minutes")
        seconds = 60 * config.minutes
        elapsed = self.meter.elapsed if self.resumed else 0.0
        evaluating = self._measuring + (0.0 if self._latest is None else self._latest[1].seconds)
        left = started + seconds - time.monotonic() - evaluating - _SAMPLE_SHARE * seconds
        return TimeBudget(max(left, seconds / 2), elapsed, broadcast=self.group.broadcast)

    def _thin_validation(self) -> None:
        """Where time is short, evaluate one batch in every few."""
        if self.config.minutes is None:
            return
        batches = self.batches.validation_batches
        once = min(self._evaluation(batches, lambda: False).seconds for _ in range(2))
        share = once * batches / (_EVALUATION_SHARE * 60 * self.config.minutes)
        self._every = self.group.broadcast(math.ceil(max(1.0, share)))
        if self._every > 1:
            self._say(f"           time is short: one in {self._every} batches of the validation text is evaluated")

    def _evaluation(self, every: int, stop: Callable[[], bool]) -> Evaluation:
        with self.strategy.averaged():
            return evaluate(self.strategy.evaluate, self.batches.validation(every), stop)

    def _evaluate(self) -> Evaluation:
        """Evaluate and log, once a step. Raises DivergedError where the model answers with NaN."""
        if self._latest is not None and self._latest[0] == self.step:
            return self._latest[1]
        evaluation = self._evaluation(self._every, self._interrupted)
        if not math.isfinite(evaluation.loss):
            raise DivergedError.after(self.step, f"the validation loss is {evaluation.loss}")
        if not self._interrupted():
            self._latest = self.step, evaluation
            elapsed = self.meter.elapsed if self.step else 0.0
            self._log({"step": self.step, **self._scores(evaluation), "elapsed": elapsed})
        return evaluation

    def _scores(self, evaluation: Evaluation) -> dict[str, float]:
        scores = {"validation_loss": evaluation.loss}
        if (size := self.batches.validation_size) is not None:
            scores["bits_per_byte"] = evaluation.bits_per_byte(*size)
        return scores

    def _summary(self, evaluation: Evaluation) -> str:
        return ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in self._scores(evaluation).items())

    def _save(self) -> None:
        self._save_model()
        facts = {"meter": self.meter.state(), "every": self._every, "threads": self.threads, **self.recipe.fingerprints}
        self.checkpoints.save(self.strategy, self.step, {**facts, "config": settings(self.config)})
        self._report()
        self._saved_at = time.monotonic()

    def _save_model(self) -> None:
        """Write model/, unless its weights are no longer numbers."""
        with self.strategy.saved() as model:
            weights = [] if model is None else [each for each in model.parameters() if not each.is_meta]
            if self.group.any(not all(bool(local_tensor(weight).isfinite().all()) for weight in weights)):
                raise DivergedError.after(self.step, "the weights are no longer finite")
            if model is not None:
                self._stored = self.recipe.save(model, self.directory.model)
        self._saved = self.step

    @contextmanager
    def _whole_model(self) -> Generator[Transformer | None]:
        """The model in process 0, None in the others. One that no process holds is read from model/."""
        if not self.strategy.is_spread:
            with self.strategy.gathered() as model:
                yield model
            return
        if self._saved != self.step:
            self._save_model()
        yield self.recipe.load(self.directory.model) if self.group.is_main else None

    def _measure(self) -> None:
        """Log the recipe's figures on the model, before training and after it."""
        begin = time.monotonic()
        with self._whole_model() as model:
            figures = {} if model is None else self.recipe.measure(model, self.directory.path, self.step)
        self._measuring = time.monotonic() - begin
        if figures:
            self._log({"step": self.step, **figures})

    def _sample(self, *then: Mapping[str, Any]) -> Sample | None:
        """Sample from the model, and log; None on the processes that don't print."""
        with self._whole_model() as model:
            if model is None:
                return None
            training = model.training
            sample = self.recipe.sample(model)
            model.train(training)
        self._log({"step": self.step, "sample": [dataclasses.asdict(passage) for passage in sample.passages]}, *then)
        return sample

    def _log(self, *records: Mapping[str, Any]) -> None:
        self.directory.log(*records)
        for record in records:
            self.trackers.log(record)

    def _report(self) -> None:
        if self.group.is_main:
            write_report(self.directory.path, defaults(self.recipe.config_type), terms=self.recipe.terms)

    def _interrupted(self) -> bool:
        return self.group.any(self._interrupt.signal is not None)

    def _stopped(self) -> int:
        self._log({"step": self.step, "state": "stopped"})
        self._report()
        done = f"Stopped after step {self.step:,}, {self._progress:.0%} of the way."
        self._say(f"{done} The model is in {self.directory.model}.")
        self._say(f"next       anyformer {self.recipe.command} --resume {shlex.quote(str(self.directory.path))}")
        return self._interrupt.exit_status

    def _conclude(self) -> None:
        self._measure()
        sample = self._sample({"step": self.step, "state": "finished"})
        self._report()
        self._finish()
        if sample is None:
            return
        for line in (*self.recipe.report(self.directory.path), "sample"):
            self._say(line)
        for part in sample.passages:
            passage = Text.assemble(part.before, (part.written, "bold green"), part.after)
            self.console.print(passage, soft_wrap=True)
        self._say(f"model      {self.directory.model}, {self._stored}")
        self._say(f"report     {self.directory.path / 'report.html'}")
        path = shlex.quote(str(self.directory.path))
        for number, (command, arguments) in enumerate(sample.commands):
            self._say(f"{'' if number else 'next':<11}anyformer {command} {path} {arguments}")

    def _finish(self) -> None:
        """Remove the state that only further steps would need."""
        if not self.config.keep_optimizer:
            self.checkpoints.finish(self.group)
