"""The files in which sentence-transformers says how a text becomes one vector."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from anyformer.config import PoolingConfig
from anyformer.errors import UserError, located, quote
from anyformer.limits import path_inside, read_json, read_object
from anyformer.schema import change, fits

_FLAGS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "first",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_max_tokens": "max",
}
"""Fields of 1_Pooling/config.json, one of which is true."""
_KINDS = {"mean": "mean", "cls": "first", "lasttoken": "last", "max": "max", **_FLAGS}
"""Also values of its field `pooling_mode`, which sentence-transformers writes from version 6 on."""
_ACTIVATIONS = {"Identity": None, "Tanh": "tanh", "ReLU": "relu", "GELU": "gelu", "SiLU": "silu"}
"""Classes of torch in the config.json of a Dense module."""
_ENDLESS = 10**6
"""Tokens from which on a tokenizer's limit only says that there is none."""
_DENSE, _WEIGHTS = "{}_Dense", "model.safetensors"
"""The folder of a Dense module, which is the second module or a later one, and its weights."""
_PROMPTS = "config_sentence_transformers.json"
"""The file of the words that may be put before a text."""
FILES = (
    *("modules.json", "1_Pooling/config.json", "sentence_bert_config.json", _PROMPTS),
    *(f"{_DENSE.format(place)}/{file}" for place in range(2, 10) for file in ("config.json", _WEIGHTS)),
)
"""All that is written for any pooling."""


def read(directory: Path) -> PoolingConfig:
    """The pooling of a model directory, plain means by default. Raises UserError for one that is not supported."""
    pooling = PoolingConfig()
    for name, folder in _modules(directory):
        if name == "Transformer":
            lengths = folder / "sentence_bert_config.json"
            limit = read_object(lengths).get("max_seq_length") if lengths.is_file() else None
            pooling = replace(pooling, max_tokens=_model_max_length(directory) if limit is None else limit)
        elif name == "Pooling":
            pooling = replace(pooling, kind=_kind(folder / "config.json"))
        elif name == "Dense":
            pooling = _with_dense(pooling, folder / "config.json")
        elif name == "Normalize":
            pooling = replace(pooling, normalize=True)
        else:
            raise UserError(f"{directory / 'modules.json'} asks for a module {quote(name)}, which is not supported.")
    return _with_prompts(pooling, directory)


def weight_files(directory: Path) -> list[Path]:
    """The files of the weights of a directory's Dense modules, in their order."""
    return [folder / _WEIGHTS for name, folder in _modules(directory) if name == "Dense"]


def _modules(directory: Path) -> Iterator[tuple[str, Path]]:
    """Class and folder of each module."""
    path = directory / "modules.json"
    chain = read_json(path) if path.is_file() else []
    if not isinstance(chain, list) or not all(isinstance(module, dict) for module in cast("list[Any]", chain)):
        raise UserError(f"{path} should hold a list of modules, each a JSON object.")
    for module in cast("list[dict[str, Any]]", chain):
        folder = str(module.get("path", ""))
        for name in ("config.json", "sentence_bert_config.json", _WEIGHTS):
            path_inside(directory, f"{folder}/{name}".lstrip("/"))
        yield str(module.get("type", "")).rsplit(".", 1)[-1], directory / folder


def _with_prompts(pooling: PoolingConfig, directory: Path) -> PoolingConfig:
    """The pooling with the words that a directory has for texts; sentence-transformers writes empty ones, too."""
    path = path_inside(directory, _PROMPTS)
    settings = read_object(path) if path.is_file() else {}
    prompts = settings.get("prompts") or {}
    if not isinstance(prompts, dict):
        raise UserError(f"{path}: prompts wants an object, not {quote(prompts)}.")
    known = dict(sorted(cast("dict[str, Any]", prompts).items()))
    if not any(known.values()):
        return pooling
    default = settings.get("default_prompt_name")
    with located(path):
        return change(pooling, {"prompt_names": [*known], "prompts": [*known.values()], "default_prompt": default})


def _with_dense(pooling: PoolingConfig, path: Path) -> PoolingConfig:
    """The pooling with one more layer, as the config.json of a Dense module describes it."""
    settings = read_object(path)
    activation = str(settings.get("activation_function", "Tanh")).rsplit(".", 1)[-1]
    vector = (None, "sentence_embedding")
    others = {"use_residual": (None, False), "module_input_name": vector, "module_output_name": vector}
    changed = [name for name, usual in others.items() if settings.get(name) not in usual]
    if pooling.normalize or changed or activation not in _ACTIVATIONS:
        what = "that comes after Normalize" if pooling.normalize else f"with {changed[0] if changed else activation}"
        raise UserError(f"{path} describes a layer {what[:80]}, which is not supported.")
    layer = {"dense_bias": settings.get("bias", True), "dense_activation": _ACTIVATIONS[activation]}
    if pooling.dense and layer != {name: getattr(pooling, name) for name in layer}:
        raise UserError(f"{path} differs from the layer before it in its bias or activation, which is not supported.")
    with located(path):
        return change(pooling, {"dense": [*pooling.dense, settings.get("out_features")], **layer})


def _kind(path: Path) -> Any:
    settings = read_object(path)
    if settings.get("include_prompt", True) is not True:
        raise UserError(f"{path} leaves prompts out of the mean (include_prompt), which is not supported.")
    mode: Any = settings.get("pooling_mode")
    if mode is None:
        mode = [name for name, value in settings.items() if name.startswith("pooling_mode_") and value is True]
    modes = [str(each) for each in (mode if isinstance(mode, list) else [mode])]
    if len(modes) != 1 or modes[0] not in _KINDS:
        named = " and ".join(modes)[:80] or "of nothing"
        raise UserError(f"{path} asks for the pooling {named}, which is not supported.")
    return _KINDS[modes[0]]


def _model_max_length(directory: Path) -> int | None:
    """The tokenizer's own limit, which holds where sentence-transformers writes no other; None: there is none."""
    path = directory / "tokenizer_config.json"
    length: Any = read_object(path).get("model_max_length") if path.is_file() else None
    return length if fits(length, int) and 0 < length < _ENDLESS else None


def files(pooling: PoolingConfig, d_model: int) -> dict[str, Any]:
    """Files for this pooling: file name -> JSON value; none for plain means, which are the default."""
    if pooling == PoolingConfig():
        return {}
    names = ["Transformer", "Pooling", *("Dense" for _ in pooling.dense), *(["Normalize"] if pooling.normalize else [])]
    activation = next(name for name, ours in _ACTIVATIONS.items() if ours == pooling.dense_activation)
    room = "linear" if activation == "Identity" else "activation"
    layers = {
        f"{_DENSE.format(place)}/config.json": {
            "in_features": inputs,
            "out_features": outputs,
            "bias": pooling.dense_bias,
            "activation_function": f"torch.nn.modules.{room}.{activation}",
        }
        for place, (inputs, outputs) in enumerate(pairwise((d_model, *pooling.dense)), 2)
    }
    return {
        "modules.json": [
            {
                "idx": i,
                "name": str(i),
                "path": f"{i}_{name}" if i else "",
                "type": f"sentence_transformers.models.{name}",
            }
            for i, name in enumerate(names)
        ],
        "1_Pooling/config.json": {
            "word_embedding_dimension": d_model,
            **{name: kind == pooling.kind for name, kind in _FLAGS.items()},
        },
        **layers,
        "sentence_bert_config.json": {"max_seq_length": pooling.max_tokens, "do_lower_case": False},
        _PROMPTS: {
            "prompts": dict(zip(pooling.prompt_names, pooling.prompts, strict=True)),
            "default_prompt_name": pooling.default_prompt,
        },
    }


def stored_weights(weights: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Tensors by their names on disk in each file, of the weights of a `TextPooling`."""
    stored: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in weights.items():
        _, layer, part = name.split(".")
        stored[f"{_DENSE.format(2 + int(layer))}/{_WEIGHTS}"][f"linear.{part}"] = tensor
    return stored
