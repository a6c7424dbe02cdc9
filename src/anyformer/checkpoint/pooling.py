"""The files in which sentence-transformers says how a text becomes one vector."""

from pathlib import Path
from typing import Any, cast

from anyformer.config import PoolingConfig
from anyformer.errors import UserError
from anyformer.limits import path_inside, read_json, read_object

_MODES = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "first",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_max_tokens": "max",
}
FILES = ("modules.json", "1_Pooling/config.json", "sentence_bert_config.json")
"""All that is written for any pooling."""


def read(directory: Path) -> PoolingConfig:
    """The pooling of a model directory; plain means where it says nothing. Raises UserError for one we do not know."""
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
        if name == "Transformer" and lengths.is_file():
            max_tokens = read_object(lengths).get("max_seq_length")
        elif name == "Pooling":
            kind = _kind(path_inside(directory, f"{path}/config.json"))
        elif name == "Normalize":
            normalize = True
        elif name != "Transformer":
            raise UserError(f"{modules} asks for a module {name!r:.60}, which is not supported.")
    return PoolingConfig(kind=kind, normalize=normalize, max_tokens=max_tokens)


def _kind(path: Path) -> Any:
    settings = read_object(path)
    modes = [name for name, value in settings.items() if name.startswith("pooling_mode_") and value is True]
    if len(modes) != 1 or modes[0] not in _MODES:
        raise UserError(f"{path} asks for the pooling {' and '.join(modes) or 'of nothing'}, which is not supported.")
    return _MODES[modes[0]]


def files(pooling: PoolingConfig, d_model: int) -> dict[str, Any]:
    """What to write for this pooling: file name -> JSON value; nothing for plain means, which need no saying."""
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
            **{name: kind == pooling.kind for name, kind in _MODES.items()},
        },
        "sentence_bert_config.json": {"max_seq_length": pooling.max_tokens, "do_lower_case": False},
    }
