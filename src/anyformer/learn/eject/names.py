"""The names of a model's weights in the files of its family, a line for each module."""

import re
from dataclasses import dataclass

from anyformer.config import ModelConfig
from anyformer.families import own, to_huggingface
from anyformer.families.rows import TRANSPOSE
from anyformer.model import skeleton

_LAYER = re.compile(r"\.blocks\.(\d+)\.")


@dataclass(frozen=True)
class StoredNames:
    """How the files of a family name the weights of a model.

    Attributes:
        modules: our name of a module, and theirs; ``{i}`` stands for a layer. Empty: theirs are ours.
        tensors: the same for weights whose last part differs.
        prefix: before the names of models with a head.
        transposed: whether matrices of blocks are stored as [in, out], the queries', keys' and values' side by side.
    """

    modules: dict[str, str]
    tensors: dict[str, str]
    prefix: str
    transposed: bool


def stored_names(config: ModelConfig) -> StoredNames:
    """The names in the files that `save` writes for a model."""
    family, _ = to_huggingface(config)
    if family is own.FAMILY:
        return StoredNames({}, {}, "", transposed=False)
    names = skeleton(config).state_dict()
    table = family.table(names)
    modules: dict[str, str] = {}
    tensors: dict[str, str] = {}
    transposed = False
    for theirs, row in table.items():
        if row.alias:
            continue
        transposed = transposed or row.operation is TRANSPOSE
        for ours in row.ours:
            pattern, layer = _LAYER.sub(".blocks.{i}.", ours), _LAYER.search(ours)
            # Of the numbers in their name the first is the layer's.
            stored = theirs if layer is None else theirs.replace(f".{layer[1]}.", ".{i}.", 1)
            stored = stored.removeprefix(family.prefix)
            (our_module, our_end), (their_module, their_end) = pattern.rpartition(".")[::2], stored.rpartition(".")[::2]
            if our_end == their_end:
                modules[our_module] = their_module
            else:
                tensors[pattern] = stored
    order = {name: place for place, name in enumerate(_LAYER.sub(".blocks.{i}.", name) for name in names)}
    first = {name.rpartition(".")[0]: place for name, place in reversed(order.items())}
    modules = dict(sorted(modules.items(), key=lambda item: first[item[0]]))
    return StoredNames(modules, tensors, family.prefix, transposed)
