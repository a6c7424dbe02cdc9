"""Low-rank adapters on disk: loaded from everybody's formats, saved in PEFT's.

A directory that a fine-tuning run leaves holds an adapter alone, and says which model it belongs to.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

from safetensors import SafetensorError
from torch import Tensor, nn

from anyformer import atomic, limits
from anyformer.adapters import DEFAULT
from anyformer.adapters.attach import make_dense
from anyformer.adapters.modules import (
    Matrices,
    Target,
    base_parameters,
    family_of,
    parameters,
    prefix_of,
    targets,
    wrapped_names,
)
from anyformer.blocks.embedding import TokenEmbedding
from anyformer.checkpoint import hub
from anyformer.checkpoint.adapter_formats import (
    CONFIG,
    FEATURE_EXTRACTION,
    MLX_FIELDS,
    MLX_WEIGHTS,
    PEFT_WEIGHTS,
    SEQ2SEQ,
    StoredAdapter,
    mlx_files,
    peft_files,
    read_mlx,
    read_peft,
    saves_classifier,
)
from anyformer.checkpoint.gguf.write import save_gguf_adapter
from anyformer.checkpoint.sources import check_dtype, write_tensors
from anyformer.config import HeadConfig, HeadKind
from anyformer.errors import UserError, cut, quote
from anyformer.families.base import CLASSIFIERS
from anyformer.model import Transformer
from anyformer.schema import fits, fits_each

HEAD = "head_config.json"
"""The labels of a head that was trained with an adapter: config.json's, for the base has another head, or none."""


def find_adapter(path: str | Path) -> Path | None:
    """The directory of an adapter without a model beside it: the path, or model/ of a run; None where it is none."""
    for directory in (Path(path), Path(path) / "model") if limits.can_be_path(path) else ():
        if (directory / "config.json").exists():
            return None
        if (directory / CONFIG).is_file():
            return directory if directory == Path(path) else limits.path_inside(Path(path), "model")
    return None


def path_and_weight(directory: str | Path) -> tuple[Path, float]:
    """A path, and the number behind a colon at its end, where there is no such path as a whole."""
    match = re.fullmatch(r"(.+):(-?\d*\.?\d+)", str(directory))
    return (Path(directory), 1.0) if match is None or Path(directory).exists() else (Path(match[1]), float(match[2]))


def read_base(directory: Path) -> str:
    """The model that an adapter's directory names.

    Raises UserError where it names no base on this machine, as a file or in the hub's cache; or belongs to another
    user, who may not choose what is read.
    """
    base = limits.read_object(limits.path_inside(directory, CONFIG)).get("base_model_name_or_path")
    advice = f"load the model that it belongs to, with --adapter {directory}"
    if not isinstance(base, str) or not base or not (Path(base).exists() or hub.is_cached(base)):
        missing = f", and its base {quote(base)} is not on this machine" if isinstance(base, str) and base else ""
        raise UserError(f"{directory} holds an adapter alone{missing}: {advice}.")
    if os.name == "posix" and (directory / CONFIG).stat().st_uid not in (0, os.geteuid()):
        raise UserError(f"{directory} belongs to another user, and asks for the model {quote(base)}: {advice}.")
    return base


def read_head(path: Path) -> HeadConfig | None:
    """Kind, labels and problem type of the classifier that was trained with an adapter; None: it keeps its base's head.

    An adapter for PEFT's task FEATURE_EXTRACTION was trained without a head, whatever its base has, and one for
    SEQ_2_SEQ_LM with one, which files of a BART may lack.

    Raises UserError where they are not what a head could have.
    """
    directory = find_adapter(path) or path
    if not (directory / HEAD).exists():
        has_config = (directory / CONFIG).is_file()
        raw = limits.read_object(limits.path_inside(directory, CONFIG)) if has_config else {}
        kinds: Mapping[Any, HeadKind] = {FEATURE_EXTRACTION: "none", SEQ2SEQ: "language_model"}
        task = raw.get("task_type")
        return HeadConfig(kind=kinds[task]) if isinstance(task, str) and task in kinds else None
    raw = limits.read_object(limits.path_inside(directory, HEAD))
    kind, labels, problem = raw.get("kind"), raw.get("labels"), raw.get("problem_type")
    names: tuple[str, ...] = tuple(labels) if isinstance(labels, list) and fits_each(labels, str) else ()
    count: Any = len(names) or labels
    if kind not in CLASSIFIERS or not (fits(count, int) and 1 <= count < 2**20):
        raise UserError(f"{directory / HEAD} should have the kind and the labels of a classifier.")
    return HeadConfig(kind=kind, labels=count, label_names=names, problem_type=cast("Any", problem))


def replaces_weights(directory: str | Path) -> bool:
    """Whether an adapter says that it replaces weights of its model: biases, or modules that were trained whole."""
    path, _ = path_and_weight(directory)
    path = find_adapter(path) or path
    raw = limits.read_object(path / CONFIG) if (path / CONFIG).is_file() else {}
    head = read_head(path)
    has_head = head is not None and head.kind != "language_model"
    return raw.get("bias", "none") != "none" or bool(raw.get("modules_to_save")) or has_head


def load_adapter(
    model: Transformer, directory: str | Path, name: str | None = None, *, beside: bool = False
) -> Transformer:
    """Give a model the adapter of a directory, in PEFT's format or in mlx-lm's.

    Args:
        model: The model that the adapter was trained on.
        directory: With adapter_config.json and the weights; ``DIR:0.5`` lets it count half.
        name: Tells it from the model's other adapters; None: "default", or one with a number.
        beside: Refuse one that replaces weights of the model, so that the model without it stays as it is.

    Returns:
        The same model.

    Raises:
        UserError: there is no adapter, it is damaged, of a kind that is not supported, or made for another model.
    """
    path, weight = path_and_weight(directory)
    path = find_adapter(path) or path
    if not (path / CONFIG).is_file():
        raise UserError(f"There is no adapter in {path}: it has no {CONFIG}.")
    limits.check_files(path, (CONFIG, PEFT_WEIGHTS, MLX_WEIGHTS))
    if name is None:
        number = len({each for each in model.adapter_configs if each.startswith(DEFAULT)})
        name = DEFAULT if number == 0 else f"{DEFAULT}-{number + 1}"
    if name in model.adapter_configs:
        raise UserError(f"The model has an adapter {name!r} already.")
    raw = limits.read_object(path / CONFIG)
    stored = read_mlx(path) if raw.keys() & MLX_FIELDS and "peft_type" not in raw else read_peft(path)
    config, layers = stored.config, targets(model)
    chosen = {name: target for name, target in parameters(model).items() if config.selects_parameter(name)}
    names = {stored_name: name for name, stored_name in wrapped_names(chosen).items()}
    layers |= {stored_name: chosen[name] for stored_name, name in names.items()}
    if weight != 1.0:
        if config.use_dora or stored.others:
            raise UserError(f"{path} can't be weighted: DoRA and whole modules count once or not at all.")
        config = config.weighted(weight)
    if stored.others and not all(each.is_low_rank_only for each in model.adapter_configs.values()):
        raise UserError(f"{path}: another adapter has replaced biases or whole modules already: give one of the two.")
    if stored.others and beside:
        raise UserError(f"{path} replaces biases or whole modules, so its model can't be used without it as well.")
    if config.target_parameters and beside:
        raise UserError(
            f"{path} adapts experts, which sort the tokens of all texts: merge it, and serve what that makes."
        )
    # All is checked before anything is changed.
    fitting = [
        (names.get(module, module), *_fit(path, model, stored, module, layers.get(module), names.get(module, module)))
        for module in stored.layers
    ]
    tables = {part.table for part in model.modules() if isinstance(part, TokenEmbedding)}
    for module, target, _ in fitting:
        if beside and target.is_embedding and tables.isdisjoint(target.modules):
            raise UserError(f"{path} adapts {module}, which all texts share: merge it, and serve what that makes.")
    make_dense(model, config)
    replaced = _replacements(model, path, stored)
    for module, target, matrices in fitting:
        target.attach(name, matrices, config.scale_of(module, len(matrices.a) // target.count), config.dropout)
    for parameter, value in replaced:
        parameter.data.copy_(value)
    model.adapter_configs[name] = config
    return model


def _fit(
    path: Path, model: Transformer, stored: StoredAdapter, module: str, target: Target | None, name: str
) -> tuple[Target, Matrices]:
    """The matrices of a layer. Raises UserError where there is no such layer, or they are incomplete or don't fit."""
    of, parts = "" if stored.base is None else f" ({cut(stored.base)})", stored.layers[module]
    if target is None:
        other = f"the adapter was made for another model{of}"
        raise UserError(f"{path}: this model has no layer {cut(module)}: {other}.")
    if target.is_embedding and model.config.is_encoder_decoder:
        raise UserError(f"{path}: an adapter of {module}, which encoder and decoder share, is not supported.")
    (outputs, inputs), rank = target.shape, target.count * stored.config.rank_of(name)
    shapes: dict[str, tuple[int, ...]] = {"a": (rank, inputs), "b": (outputs, rank)}
    if stored.config.use_dora and not target.is_embedding:
        shapes["magnitude"] = (outputs,)
    if parts.keys() != shapes.keys():
        raise UserError(f"{path}: the adapter of {module} has a part too few or too many: {', '.join(sorted(parts))}.")
    for part, tensor in parts.items():
        check_dtype(path, f"{part} of {module}", tensor)
        if tensor.shape != shapes[part]:
            reason = f"{part} has shape {list(tensor.shape)}, and {list(shapes[part])} would fit"
            raise UserError(f"{path}: the adapter of {module} does not fit this model{of}: {reason}.")
    return target, Matrices(**{part: tensor.to(model.device) for part, tensor in parts.items()})


def _replacements(model: Transformer, path: Path, stored: StoredAdapter) -> list[tuple[nn.Parameter, Tensor]]:
    """Parameters of the model, and the biases and modules trained whole that are put in their place."""
    own, prefix = base_parameters(model), prefix_of(model)
    table = family_of(model).table(model.config, own)
    pairs: list[tuple[nn.Parameter, Tensor]] = []
    for name, tensor in stored.others.items():
        row = table.get(prefix + name)
        if row is None or row.part is not None:  # one of several experts that we have in one weight
            raise UserError(f"{path}: this model has no weight {cut(name)}: the adapter was made for another model.")
        shape = row.write({ours: own[ours].to("meta") for ours in row.ours}).shape
        check_dtype(path, name, tensor)
        if tensor.shape != shape:
            raise UserError(f"{path}: {name} has shape {list(tensor.shape)}, which does not fit {list(shape)}.")
        pairs += zip((own[ours] for ours in row.ours), row.operation.read(tensor, len(row.ours)), strict=True)
    return pairs


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
        directory: Where; made if there is none. A name that ends in .gguf is that of a file for llama.cpp.
        name: Which, if the model has several; None: its only one.
        base: The model that it belongs to, a path or a hub id, which PEFT looks up.
        library: Whose format: "peft" for adapter_config.json and adapter_model.safetensors, "mlx" for mlx-lm's files.

    Raises:
        UserError: the model has no adapter, or several and no name is given; the files can't be written.
    """
    names, directory = list(model.adapter_configs), Path(directory)
    if name is None and len(names) != 1:
        present = f"several ({', '.join(names)}): give the name of one" if names else "none"
        raise UserError(f"save_adapter writes the adapter of a model, and this model has {present}.")
    name = names[0] if name is None else name
    if name not in model.adapter_configs:
        raise UserError(f"The model has no adapter {name!r}.")
    config, head = model.adapter_configs[name], model.config.head
    if directory.suffix == ".gguf":
        save_gguf_adapter(model, directory, name)
    elif library == "mlx":
        _write(directory, MLX_WEIGHTS, *mlx_files(model, config, name))
    else:
        _write(directory, PEFT_WEIGHTS, *peft_files(model, config, name, base))
        if saves_classifier(model, config):
            labels = list(head.label_names) or head.labels
            raw = {"kind": head.kind, "labels": labels, "problem_type": head.problem_type}
            atomic.write(directory / HEAD, json.dumps(raw, indent=2) + "\n")


def _write(directory: Path, weights: str, raw: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write the two files of an adapter. Raises UserError where the disk refuses."""
    whole = {key: tensor.cpu().contiguous().clone() for key, tensor in tensors.items()}
    with atomic.writing(directory, SafetensorError):
        directory.mkdir(parents=True, exist_ok=True)
        with atomic.temporary_folder(directory / weights) as folder:
            write_tensors(folder / weights, whole, {"format": "pt"})
            (folder / weights).replace(directory / weights)
        atomic.write(directory / CONFIG, json.dumps(raw, indent=2, sort_keys=True) + "\n")
