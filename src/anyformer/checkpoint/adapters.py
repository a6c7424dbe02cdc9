"""Low-rank adapters on disk: loaded from everybody's formats, saved in PEFT's."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from torch import Tensor, nn

from anyformer import atomic, limits
from anyformer.adapters import DEFAULT
from anyformer.adapters.attach import make_dense
from anyformer.adapters.modules import Matrices, Target, attach, base_parameters, family_of, prefix_of, targets
from anyformer.checkpoint import mlx, peft
from anyformer.checkpoint.adapter_directory import HEAD, find_adapter, head_json
from anyformer.checkpoint.gguf.write import save_gguf_adapter
from anyformer.checkpoint.peft import StoredAdapter
from anyformer.checkpoint.tensors import FLOATS, write_tensors
from anyformer.errors import UserError, cut
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
    path, weight = weighted(directory)
    path = find_adapter(path) or path
    if not (path / peft.CONFIG).is_file():
        raise UserError(f"There is no adapter in {path}: it has no {peft.CONFIG}.")
    limits.check_files(path, (peft.CONFIG, peft.WEIGHTS, mlx.WEIGHTS))
    if name is None:
        number = len({each for each in model.adapter_configs if each.startswith(DEFAULT)})
        name = DEFAULT if number == 0 else f"{DEFAULT}-{number + 1}"
    if name in model.adapter_configs:
        raise UserError(f"The model has an adapter {name!r} already.")
    raw = limits.read_object(path / peft.CONFIG)
    stored = mlx.read(path) if mlx.is_mlx(raw) and "peft_type" not in raw else peft.read(path)
    config, known = stored.config, targets(model)
    if weight != 1.0:
        if config.use_dora or stored.others:
            raise UserError(f"{path} can't be weighted: DoRA and whole modules count once or not at all.")
        config = config.weighted(weight)
    if stored.others and not all(each.is_low_rank_only for each in model.adapter_configs.values()):
        raise UserError(f"{path}: another adapter has replaced biases or whole modules already: give one of the two.")
    # All is checked before anything is changed.
    fitting = [_fit(path, model, stored, module, known.get(module)) for module in stored.layers]
    make_dense(model, config)
    replaced = _replacements(model, path, stored)
    for module, target, found in fitting:
        attach(target, name, found, config.scale_of(module, len(found.a)), config.dropout)
    for parameter, value in replaced:
        parameter.data.copy_(value)
    model.adapter_configs[name] = config
    return model


def _fit(
    path: Path, model: Transformer, stored: StoredAdapter, module: str, target: Target | None
) -> tuple[str, Target, Matrices]:
    """The matrices of a layer. Raises UserError where there is no such layer, or they are incomplete or don't fit."""
    of, parts = "" if stored.base is None else f" ({cut(stored.base)})", stored.layers[module]
    if target is None:
        other = f"the adapter was made for another model{of}"
        raise UserError(f"{path}: this model has no layer {cut(module)}: {other}.")
    if target.is_embedding and model.config.is_encoder_decoder:
        raise UserError(f"{path}: an adapter of {module}, which encoder and decoder share, is not supported.")
    dora = stored.config.use_dora and not target.is_embedding
    if set(parts) != {"a", "b", *(["magnitude"] if dora else [])}:
        raise UserError(f"{path}: the adapter of {module} has a part too few or too many: {', '.join(sorted(parts))}.")
    (outputs, inputs), rank = target.shape, stored.config.rank_of(module)
    wanted = {"a": (rank, inputs), "b": (outputs, rank), "magnitude": (outputs,)}
    for part, tensor in parts.items():
        _check_dtype(path, f"{part} of {module}", tensor)
        if tensor.shape != wanted[part]:
            shapes = f"shape {list(tensor.shape)}, and {list(wanted[part])} would fit"
            raise UserError(f"{path}: the adapter of {module} does not fit this model{of}: {part} has {shapes}.")
    return module, target, Matrices(**{part: tensor.to(model.device) for part, tensor in parts.items()})


def _replacements(model: Transformer, path: Path, stored: StoredAdapter) -> list[tuple[nn.Parameter, Tensor]]:
    """Biases and modules that were trained whole, and the parameters of the model in whose place they are put."""
    own, prefix = base_parameters(model), prefix_of(model)
    table = family_of(model).table(own)
    found: list[tuple[nn.Parameter, Tensor]] = []
    for name, tensor in stored.others.items():
        row = table.get(prefix + name)
        if row is None:
            raise UserError(f"{path}: this model has no weight {cut(name)}: the adapter was made for another model.")
        wanted = row.operation.write([own[ours].to("meta") for ours in row.ours]).shape
        _check_dtype(path, name, tensor)
        if tensor.shape != wanted:
            raise UserError(f"{path}: {name} has shape {list(tensor.shape)}, which does not fit {list(wanted)}.")
        found += zip((own[ours] for ours in row.ours), row.operation.read(tensor, len(row.ours)), strict=True)
    return found


def _check_dtype(path: Path, name: str, tensor: Tensor) -> None:
    if tensor.dtype not in FLOATS:
        stored = str(tensor.dtype).removeprefix("torch.")
        raise UserError(f"{path}: {name} is stored as {stored}: it should be floating point of 16 bits or more.")


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
    config = model.adapter_configs[chosen]
    if str(directory).endswith(".gguf"):
        save_gguf_adapter(model, Path(directory), chosen)
    elif library == "mlx":
        _write(Path(directory), mlx.WEIGHTS, *mlx.files(model, config, chosen))
    else:
        _write(Path(directory), peft.WEIGHTS, *peft.files(model, config, chosen, base))
        if peft.saves_classifier(model, config):
            atomic.write(Path(directory) / HEAD, json.dumps(head_json(model.config.head), indent=2) + "\n")


def _write(directory: Path, weights: str, raw: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write the two files of an adapter. Raises UserError where the disk refuses."""
    whole = {key: tensor.cpu().contiguous().clone() for key, tensor in tensors.items()}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with atomic.temporary_folder(directory / weights) as made:
            write_tensors(made / weights, whole, {"format": "pt"})
            (made / weights).replace(directory / weights)
        atomic.write(directory / peft.CONFIG, json.dumps(raw, indent=2, sort_keys=True) + "\n")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{directory} can't be written: {getattr(error, 'strerror', None) or error}.") from error


def weighted(directory: str | Path) -> tuple[Path, float]:
    """A path, and the number behind a colon at its end, where there is no such path as a whole."""
    found = re.fullmatch(r"(.+):(-?\d*\.?\d+)", str(directory))
    if found is None or Path(directory).exists():
        return Path(directory), 1.0
    return Path(found[1]), float(found[2])
