"""The files in which sentence-transformers says how a text becomes one vector."""

from pathlib import Path
from typing import Any, cast

from anyformer.config import PoolingConfig
from anyformer.errors import UserError, quote
from anyformer.limits import path_inside, read_json, read_object
from anyformer.schema import fits

_FLAGS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "first",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_max_tokens": "max",
}
"""Fields of 1_Pooling/config.json, one of which is true."""
_KINDS = {"mean": "mean", "cls": "first", "lasttoken": "last", "max": "max", **_FLAGS}
"""Also values of its field `pooling_mode`, which sentence-transformers writes from version 6 on."""
_ENDLESS = 10**6
"""Tokens from which on a tokenizer's limit only says that there is none."""
FILES = ("modules.json", "1_Pooling/config.json", "sentence_bert_config.json")
"""All that is written for any pooling."""


def read(directory: Path) -> PoolingConfig:
    """The pooling of a model directory, plain means by default. Raises UserError for one that is not supported."""
    modules = directory / "modules.json"
    if not modules.is_file():
        return PoolingConfig()
    kind, normalize, max_tokens = "mean", False, None
    chain = read_json(modules)
    if not isinstance(chain, list) or not all(isinstance(module, dict) for module in cast("list[Any]", chain)):
        raise UserError(f"{modules} should hold a list of modules, each a JSON object.")
    for module in cast("list[dict[str, Any]]", chain):
        name = str(module.get("type", "")).rsplit(".", 1)[-1]
        path = str(module.get("path", ""))
        lengths = path_inside(directory, f"{path}/sentence_bert_config.json".lstrip("/"))
        if name == "Transformer":
            limit = read_object(lengths).get("max_seq_length") if lengths.is_file() else None
            max_tokens = _model_max_length(directory) if limit is None else limit
        elif name == "Pooling":
            kind = _kind(path_inside(directory, f"{path}/config.json"))
        elif name == "Normalize":
            normalize = True
        else:
            raise UserError(f"{modules} asks for a module {quote(name)}, which is not supported.")
    return PoolingConfig(kind=kind, normalize=normalize, max_tokens=max_tokens)


def _kind(path: Path) -> Any:
    settings = read_object(path)
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
    chain = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    return {
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
            for i, (path, name) in enumerate(chain[: 3 if pooling.normalize else 2])
        ],
        "1_Pooling/config.json": {
            "word_embedding_dimension": d_model,
            **{name: kind == pooling.kind for name, kind in _FLAGS.items()},
        },
        "sentence_bert_config.json": {"max_seq_length": pooling.max_tokens, "do_lower_case": False},
    }
