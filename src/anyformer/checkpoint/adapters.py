"""Low-rank adapters on disk: loaded from everybody's formats, saved in PEFT's."""

import re
from pathlib import Path
from typing import Literal

from anyformer import limits
from anyformer.adapters import DEFAULT
from anyformer.checkpoint import mlx, peft
from anyformer.checkpoint.gguf.adapter import save_gguf_adapter
from anyformer.errors import UserError
from anyformer.model import Transformer


def load_adapter(model: Transformer, directory: str | Path, name: str | None = None) -> Transformer:
    """Give a model the adapter of a directory, in PEFT's format or in mlx-lm's.

    Args:
        model: The model that the adapter was trained on.
        directory: With adapter_config.json and the weights; ``DIR:0.5`` lets it count half.
        name: Tells it from the model's other adapters; None: "default", or one with a number.

    Returns:
        The same model.

    Raises:
        UserError: there is no adapter, it is damaged, of a kind that is not supported, or made for another model.
    """
    path, weight = _weighted(directory)
    if not (path / peft.CONFIG).is_file():
        raise UserError(f"There is no adapter in {path}: it has no {peft.CONFIG}.")
    limits.check_files(path, (peft.CONFIG, peft.WEIGHTS, mlx.WEIGHTS))
    if name is None:
        number = len({each for each in model.adapter_configs if each.startswith(DEFAULT)})
        name = DEFAULT if number == 0 else f"{DEFAULT}-{number + 1}"
    if name in model.adapter_configs:
        raise UserError(f"The model has an adapter {name!r} already.")
    raw = limits.read_object(path / peft.CONFIG)
    read = peft if "peft_type" in raw or not mlx.is_mlx(raw) else mlx
    model.adapter_configs[name] = read.load(model, path, name, weight)
    return model


def save_adapter(
    model: Transformer,
    directory: str | Path,
    *,
    name: str | None = None,
    base: str | None = None,
    library: Literal["peft", "mlx"] = "peft",
) -> None:
    """Write an adapter in PEFT's format, or in another's.

    Args:
        model: A model with an adapter.
        directory: Where; made if there is none. A name that ends in .gguf is that of a file for llama.cpp.
        name: Which, if the model has several; None: its only one.
        base: The model that it belongs to, a path or a hub id, which PEFT looks up.
        library: Whose format: "peft" for adapter_config.json and adapter_model.safetensors, "mlx" for mlx-lm's files.

    Raises:
        UserError: the model has no adapter, or several and no name is given; the files can't be written.
    """
    names = list(model.adapter_configs)
    if name is None and len(names) != 1:
        known = f"several ({', '.join(names)}): give the name of one" if names else "none"
        raise UserError(f"save_adapter writes the adapter of a model, and this model has {known}.")
    chosen = names[0] if name is None else name
    if chosen not in model.adapter_configs:
        raise UserError(f"The model has no adapter {chosen!r}.")
    if str(directory).endswith(".gguf"):
        save_gguf_adapter(model, Path(directory), chosen)
    elif library == "mlx":
        mlx.save(model, Path(directory), model.adapter_configs[chosen], chosen)
    else:
        peft.save(model, Path(directory), model.adapter_configs[chosen], chosen, base)


def _weighted(directory: str | Path) -> tuple[Path, float]:
    """A path, and the number behind a colon at its end, where there is no such path as a whole."""
    found = re.fullmatch(r"(.+):(-?\d*\.?\d+)", str(directory))
    if found is None or Path(directory).exists():
        return Path(directory), 1.0
    return Path(found[1]), float(found[2])
