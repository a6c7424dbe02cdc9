"""A directory that holds an adapter and says which model it belongs to, as a fine-tuning run leaves it."""

import os
from pathlib import Path
from typing import Any, cast

from anyformer import limits
from anyformer.checkpoint import hub, peft
from anyformer.config import HeadConfig
from anyformer.errors import UserError, quote
from anyformer.schema import fits, fits_each

HEAD = "head_config.json"
"""The labels of a head that was trained with an adapter: config.json's, for the base has another head, or none."""


def find_adapter(path: str | Path) -> Path | None:
    """The directory of an adapter without a model beside it: the path, or model/ of a run; None where it is none."""
    for directory in (Path(path), Path(path) / "model") if limits.can_be_path(path) else ():
        if (directory / "config.json").exists():
            return None
        if (directory / peft.CONFIG).is_file():
            return directory if directory == Path(path) else limits.path_inside(Path(path), "model")
    return None


def read_base(directory: Path) -> str:
    """The model that an adapter's directory names.

    Raises:
        UserError: it names no base on this machine, as a file or in the hub's cache; or it belongs to another user,
            who may not choose what is read.
    """
    raw = limits.read_object(limits.path_inside(directory, peft.CONFIG))
    base = raw.get("base_model_name_or_path")
    advice = f"load the model that it belongs to, with --adapter {directory}"
    if not isinstance(base, str) or not base or not (Path(base).exists() or hub.is_cached(base)):
        named = f", and its base {quote(base)} is not on this machine" if isinstance(base, str) and base else ""
        raise UserError(f"{directory} holds an adapter alone{named}: {advice}.")
    if os.name == "posix" and (directory / peft.CONFIG).stat().st_uid not in (0, os.geteuid()):
        raise UserError(f"{directory} belongs to another user, and asks for the model {quote(base)}: {advice}.")
    return base


def head_json(head: HeadConfig) -> dict[str, Any]:
    """The head of an adapter as JSON."""
    return {"kind": head.kind, "labels": list(head.label_names) or head.labels, "problem_type": head.problem_type}


def read_head(path: Path) -> HeadConfig | None:
    """Kind, labels and problem type of the classifier that was trained with an adapter; None: it keeps its base's head.

    An adapter for PEFT's task FEATURE_EXTRACTION was trained without a head, whatever its base has.

    Raises:
        UserError: they are not what a head could have.
    """
    directory = find_adapter(path) or path
    if not (directory / HEAD).exists():
        config = directory / peft.CONFIG
        raw = limits.read_object(limits.path_inside(directory, peft.CONFIG)) if config.is_file() else {}
        return HeadConfig(kind="none") if raw.get("task_type") == peft.FEATURE_EXTRACTION else None
    raw = limits.read_object(limits.path_inside(directory, HEAD))
    kind, labels, problem = raw.get("kind"), raw.get("labels"), raw.get("problem_type")
    names: tuple[str, ...] = tuple(labels) if isinstance(labels, list) and fits_each(labels, str) else ()
    count: Any = len(names) or labels
    if kind not in ("classification", "token_classification") or not (fits(count, int) and 1 <= count < 2**20):
        raise UserError(f"{directory / HEAD} should have the kind and the labels of a classifier.")
    return HeadConfig(kind=kind, labels=count, label_names=names, problem_type=cast("Any", problem))
