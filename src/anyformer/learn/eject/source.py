"""A config, folded into the source of one file."""

import difflib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from anyformer.config import ModelConfig
from anyformer.errors import UserError
from anyformer.learn.eject.architecture import ACTIVATIONS, INITIALIZERS, NORMS, POSITIONS, architecture
from anyformer.learn.eject.program import program
from anyformer.learn.known_blocks import require_known
from anyformer.spec import read_config


def eject(spec: str) -> str:
    """An architecture as one Python file that needs torch and safetensors alone: its config folded to constants.

    The file has ``class Model``, ``load(directory) -> Model`` for the weights of a directory in Hugging Face's format,
    and functions that sample and train; ``model(tokens)``, or ``model(source, tokens)`` of an encoder-decoder, gives
    logits. It is the same for the same config.

    Args:
        spec: A preset, a config file, a model or run directory, perhaps with fields changed (see `read_config`).

    Returns:
        Its source.

    Raises:
        UserError: there is no such model; it has a block of somebody's own, or one that a file can't show.
    """
    contender = read_config(spec)
    return _render("program.py.jinja", _values(contender.config, Path(contender.name).name or contender.name))


def architecture_diff(a: str, b: str) -> str:
    """Difference of two architectures, as a diff of their files without the code that loads, samples and trains.

    Args:
        a, b: As of `eject`.

    Raises:
        UserError: as `eject`.
    """
    sides = [_values(read_config(spec).config, spec)["architecture"].strip().splitlines() for spec in (a, b)]
    return "\n".join(difflib.unified_diff(sides[0], sides[1], a, b, n=1, lineterm=""))


def _render(template: str, values: Mapping[str, Any]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (files(__package__ or "") / name).read_text(encoding="utf-8")),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(**values)


def _values(config: ModelConfig, name: str) -> dict[str, Any]:
    """Values of the templates for a model."""
    _check(config)
    values = architecture(config)
    values["architecture"] = _render("architecture.py.jinja", values)
    return values | program(config, name)


def _check(config: ModelConfig) -> None:
    """Raise UserError for what a file can't show."""
    known = {"activation": ACTIVATIONS, "norm": NORMS, "position": POSITIONS, "init": INITIALIZERS}
    require_known(config, known, "a file can't be made of")
    if config.embedding.ngrams > 1 and config.position.skip_padding:
        raise UserError(
            "embedding.ngrams and position.skip_padding together have no standalone file: drop one of them."
        )
