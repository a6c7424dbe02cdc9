"""Finds a model: a directory, a GGUF file, or a repository on the Hugging Face hub that becomes a directory."""

import re
from pathlib import Path

from anyformer.errors import UserError, quote
from anyformer.families import ALIASES, PRESETS
from anyformer.limits import can_be_path, path_inside

GGUF = ".gguf"
_PATTERNS = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.spm", "*.txt"]
_OTHERS = ["original/*", "consolidated*", "metal/*", "onnx/*", "openvino/*", "*.fp16.*", "*.bf16.*"]
"""Copies of a repository's weights for other programs, and in other dtypes."""
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def check_named(path_or_hub_id: object) -> None:
    """Raise UserError for what names no model."""
    if not isinstance(path_or_hub_id, str | Path) or not str(path_or_hub_id).strip():
        given = "an empty name" if isinstance(path_or_hub_id, str) else f"a {type(path_or_hub_id).__name__}"
        raise UserError(f"A model is named by its directory, a GGUF file or a hub id, not by {given}.")


def find(path_or_hub_id: str | Path, *, allow_pickle: bool = False) -> Path:
    """The directory of a model, that of a training run's model, or a repository downloaded into the hub's cache.

    A .gguf file is a whole model, and a directory without a config.json may stand for the one that it has.

    Raises UserError for neither a directory nor a hub id, several GGUF files, no such repository, or no network.
    """
    check_named(path_or_hub_id)
    path, name = Path(path_or_hub_id).expanduser(), str(path_or_hub_id)
    if not can_be_path(path):
        raise UserError(f"There is no directory {quote(name)}, and no file can be called so.")
    if path.is_dir():
        for directory in (path, path / "model"):  # where a training run keeps its model
            if (directory / "config.json").is_file():
                return path_inside(path, directory.name) if directory is not path else path
        files = sorted(path.glob(f"*{GGUF}"))
        if len(files) > 1:
            raise UserError(f"{path} has {len(files)} GGUF files: name one of them, such as {files[0]}.")
        return path_inside(path, files[0].name) if files else path
    if path.is_file() and path.suffix == GGUF:
        return path
    if path.exists():
        raise UserError(f"{name} is a file, but neither a model directory nor a {GGUF} file.")
    if path.suffix == GGUF:
        raise UserError(f"There is no file {name}.")
    if not _HUB_ID.fullmatch(name) or name.startswith("."):
        raise UserError(f"There is no directory {name}.")
    return _download(name, [*_PATTERNS, "*.bin"] if allow_pickle else _PATTERNS)


def is_cached(name: str) -> bool:
    """Whether the repository of this name was downloaded before."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return isinstance(try_to_load_from_cache(name, "config.json"), str)
    except HFValidationError:
        return False


def _download(name: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=patterns, ignore_patterns=_OTHERS))
    except GatedRepoError as error:
        reason = f"The model {name} on the hub is gated: ask for access there, then log in with `hf auth login`."
        raise UserError(reason) from error
    except (HFValidationError, HfHubHTTPError, OSError) as error:
        if isinstance(error, RepositoryNotFoundError):
            reason = "no model of that name on the hub"
        elif isinstance(error, HFValidationError):
            reason = "it can't be the name of a model on the hub"
        else:
            reason = "the hub can't be reached to look for a model of that name; check the path, or the network"
        if name in PRESETS or name in ALIASES:
            made = f"`anyformer train {name}` trains it, and af.build(af.preset({name!r})) builds it"
            reason = f"{reason.partition(';')[0]}; it is a preset without weights: {made}"
        raise UserError(f"There is no directory {name}, and {reason}.") from error
