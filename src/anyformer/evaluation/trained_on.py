"""Whether a model was trained on the data that it is evaluated on."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast

from anyformer import limits
from anyformer.data.examples.tables import KEPT, Table
from anyformer.data.materialize import HUB
from anyformer.errors import UserError
from anyformer.model import Transformer
from anyformer.runs.directory import CONFIG, MODEL


def trained_on(model: Transformer, data: Iterable[str | Path] | Table) -> str | None:
    """A sentence on the data if a model was trained on it, as its run says; else None.

    The names in a run are compared with the data and neither read nor looked for: a run may come from anyone.

    Args:
        data: Files and data sets of the hub; or rows.
    """
    for path in model.origin.paths:
        settings = _settings(path)
        trained = [_absolute(each) for each in _texts(settings.get("data"))]
        if isinstance(data, Table):
            rows = [Path(entry) for entry in trained if Path(entry).parent.name == KEPT]
            names = ["these rows"] * any(entry.name == data.file[0] for entry in rows)
        else:
            found = [str(each) for each in data if any(_covers(entry, _absolute(each)) for entry in trained)]
            names = [path if path.startswith(HUB) else Path(path).name for path in found]
        if names:
            rest = "" if _texts(settings.get("validation")) else ", but for the tenth that was held out"
            return (
                f"This model was trained on {names[0]}{rest}: the figures say how much it remembers, and not how good "
                "it is at what it has not seen."
            )
    return None


def _settings(path: Path) -> dict[str, Any]:
    """The config of the run that a model belongs to; nothing where there is none that can be read."""
    for run in (path, path.parent) if path.name == MODEL else (path,):
        try:
            if (run / CONFIG).is_file():
                values: object = limits.read_yaml(limits.path_inside(run, CONFIG))
                return cast("dict[str, Any]", values) if isinstance(values, dict) else {}
        except (UserError, OSError, ValueError):
            pass  # whoever goes on with the run is told
    return {}


def _texts(values: object) -> list[str]:
    listed = cast("list[object]", values) if isinstance(values, list) else [values]
    return [each for each in listed if isinstance(each, str)]


def _absolute(path: str | Path) -> str:
    return str(path) if str(path).startswith(HUB) else str(Path(path).absolute())


def _covers(entry: str, file: str) -> bool:
    """Whether a file is what a run names: itself, one in a folder, or one that a pattern matches."""
    return file == entry or Path(entry) in Path(file).parents or ("*" in entry and fnmatchcase(file, entry))
