"""The recipe of a run: where its model comes from, on which batches it trains, how it is saved and shown."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from anyformer.config import ModelConfig
from anyformer.model import Transformer
from anyformer.runs.listing import Terms
from anyformer.training.batcher import Batcher
from anyformer.training.losses import LossModule
from anyformer.training.run_config import CompleteRunConfig, RunConfig
from anyformer.training.sample import Sample


class Recipe(ABC):
    """All that the training loop does not know about what it trains.

    Attributes:
        command: the subcommand that starts and resumes such runs.
        config_type: the kind of config that describes one.
        name: of the model, for people.
        model_config: of the model that is trained.
        batches: for training and for validation.
        fingerprint: of all that decides the batches: a run can be resumed only on the same.
        head_is_new: whether a head was drawn for a model that had been trained: what it says before training is noise.
        base_fingerprint: of the model that it begins with, likewise; None: it begins with weights that are drawn.
    """

    command: ClassVar[str]
    config_type: ClassVar[type[RunConfig]]
    name: str
    model_config: ModelConfig
    batches: Batcher
    fingerprint: str
    base_fingerprint: str | None = None
    head_is_new: bool = False

    @property
    @abstractmethod
    def config(self) -> CompleteRunConfig:
        """The config of the run, which leaves nothing open: what config.yaml repeats."""

    @property
    def fingerprints(self) -> dict[str, str | None]:
        """The fingerprints by name, as checkpoints have them."""
        return {"fingerprint": self.fingerprint, "base_fingerprint": self.base_fingerprint}

    @property
    def terms(self) -> Terms:
        """How pages speak of the run."""
        return Terms()

    @abstractmethod
    def build(self) -> Transformer:
        """The model with its first weights, the same on all processes."""

    def loss(self, model: Transformer) -> nn.Module:
        """The module that computes the loss of a batch."""
        return LossModule(model)

    @abstractmethod
    def summary(self) -> Sequence[str]:
        """Lines on the data, for people."""

    @abstractmethod
    def save(self, model: Transformer, directory: Path) -> str:
        """Write the model; returns what the directory is, for people. Raises UserError where the disk refuses."""

    def measure(self, model: Transformer, directory: Path, step: int) -> Mapping[str, Any]:
        """Measure the model before training, at step 0, and after it, in the first process only.

        Returns:
            What to log beside its validation loss. More may be written into the run directory.
        """
        del model, directory, step
        return {}

    @abstractmethod
    def sample(self, model: Transformer) -> Sample:
        """Generate samples that show what the model has learned."""

    def report(self, directory: Path) -> Sequence[str]:
        """Write what is to be said when the run has finished, and return lines for people."""
        del directory
        return ()
