"""Files that a command writes."""

from pathlib import Path

from anyformer.errors import UserError


def check_new(path: Path) -> None:
    """Raise UserError for a file that is there already, or has no folder, before anything is computed."""
    try:
        if path.is_symlink() or path.exists():
            raise UserError(f"{path} is there already: name another file, or remove it.")
        if not path.parent.is_dir():
            raise UserError(f"{path} can't be written: there is no folder {path.parent}.")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be written: {getattr(error, 'strerror', None) or error}.") from error
