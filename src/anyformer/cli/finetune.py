"""`anyformer finetune MODEL --data FILE ...`: a model that somebody has trained, on your own examples."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from anyformer.cli.options import Parser, Positional
from anyformer.cli.train import killed_run, launched, without_place
from anyformer.errors import UserError
from anyformer.finetuning.config import FinetuneConfig, configured, resumed
from anyformer.schema import hints
from anyformer.tasks import example_commands
from anyformer.training.strategies.launch import one_of_many


@dataclass(frozen=True)
class FinetuneOptions:
    """Go on training a model on your own examples.

    What is learned follows from the columns of the data: chats, prompts and completions, preferences, labels, tags,
    pairs of like texts, translations. Before it starts the command says what it found, and which tokens are learned;
    afterwards, what the model gained. With --lora an adapter is trained, and the model stays as it is.
    """

    model: Positional[str | None] = None
    """A model directory, a run directory, a GGUF file, or a hub id."""
    config: Path | None = None
    """Begin with the settings of a config.yaml; other flags override them."""
    resume: Annotated[Path | None, "RUN"] = None
    """Go on with the run in this directory, as if it had never stopped."""
    preview: Path | None = None
    """Write a page that shows the examples as the model will see them, and don't train."""
    quiet: bool = False
    """Print nothing but errors."""


def run(argv: list[str]) -> int:
    """Fine-tune a model; returns the exit status."""
    started = time.monotonic()
    examples = (*example_commands(), "anyformer finetune --resume runs/SmolLM2-135M-Instruct-1")
    parser = Parser("finetune", FinetuneOptions.__doc__ or "", examples)
    parser.add_fields(FinetuneOptions)
    parser.add_fields(FinetuneConfig, section=None)
    values = parser.values(argv)
    resume: Path | None = values.pop("resume", None)
    preview: Path | None = values.pop("preview", None)
    quiet: bool = values.pop("quiet", False)
    config = _read(values, resume)
    if preview is not None:
        return _preview(config, preview, quiet=quiet)

    if resume is None and (resume := killed_run(config)):
        config = _read(without_place(values), resume)
    if (status := launched(["finetune", *argv], config, resume)) is not None:
        return status
    with one_of_many():
        from anyformer.console import Console
        from anyformer.finetuning.recipe import finetuning
        from anyformer.training.run import run as train

        return train(config, finetuning, resume=resume, console=Console(quiet=quiet), started=started).status


def _read(values: Mapping[str, Any], resume: Path | None) -> FinetuneConfig:
    changes = {name: value for name, value in values.items() if name in hints(FinetuneConfig)}
    if "model" in values:
        changes["base"] = values["model"]
    if resume is not None:
        if "config" in values:
            raise UserError(f"--resume goes on in {resume}: leave out --config.")
        return resumed(resume, changes)
    if "config" in values:
        config = configured(values["config"], changes)
    elif "base" in changes:
        config = FinetuneConfig(**changes)
    else:
        raise UserError("Which model is to be fine-tuned? Give its directory, a GGUF file or a hub id.")
    if not config.data:
        raise UserError("What is it to learn? Give a file of examples with --data.")
    return config


def _preview(config: FinetuneConfig, path: Path, *, quiet: bool) -> int:
    from anyformer.console import Console
    from anyformer.finetuning.preview import write_preview
    from anyformer.finetuning.recipe import Finetuning, finetuning

    console = Console(quiet=quiet)
    recipe = finetuning(config, console)
    if not isinstance(recipe, Finetuning):
        raise UserError("--preview draws examples of a task, and this is plain text, all of which is learned.")
    for line in recipe.summary():
        console.say(line)
    written = write_preview(path, recipe.name, recipe.tokenizer, recipe.preview, recipe.checks)
    console.say(f"preview    {written}")
    return 0
