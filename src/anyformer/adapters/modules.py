"""The layers of a model that can have an adapter, by the names that Hugging Face's class has for them."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from anyformer.blocks.experts import Experts
from anyformer.blocks.head import Classifier
from anyformer.blocks.linear import Embedding, GroupedAdapter, GroupedLinear, Linear, LowRankAdapter, dense
from anyformer.dtensor import full_tensor
from anyformer.families import FAMILIES, own, to_huggingface
from anyformer.families.base import Family
from anyformer.families.rows import TRANSPOSE, Operation, Row, stacked
from anyformer.model import Transformer, skeleton

_ADAPTERS = ".adapters."
"""In the name of each weight of an adapter."""


@dataclass(frozen=True)
class Matrices:
    """The adapter of a layer of Hugging Face's."""

    a: Tensor
    """[rank, inputs]"""
    b: Tensor
    """[outputs, rank]"""
    magnitude: Tensor | None = None
    """[outputs]; None: no DoRA."""


@dataclass(frozen=True)
class Target:
    """A layer of Hugging Face's, and the modules of ours that it holds side by side."""

    modules: Sequence[Linear | Embedding]
    row: Row

    @property
    def count(self) -> int:
        """Matrices of each module, one below another: those of experts."""
        return self.modules[0].groups if isinstance(self.modules[0], GroupedLinear) else 1

    @property
    def is_embedding(self) -> bool:
        """Whether the layer is a table of rows."""
        return isinstance(self.modules[0], Embedding)

    @property
    def fan_in_fan_out(self) -> bool:
        """Whether the weight is stored as [inputs, outputs]."""
        return self.row.operation is TRANSPOSE

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs of an adapter: the inputs of an embedding are its rows."""
        rows = sum(part.weight.shape[0] for part in self.modules) // self.count
        columns = self.modules[0].weight.shape[1]
        return (columns, rows) if self.is_embedding else (rows, columns)

    def matrices(self, name: str) -> Matrices | None:
        """The layer's adapter of this name, if it has one."""
        parts = [adapter for module in self.modules if (adapter := adapter_of(module, name)) is not None]
        if not parts:
            return None
        b = parts[0].b.detach() if self.is_embedding else self.join([part.b.detach() for part in parts])
        lengths = [part.magnitude.detach()[:, None] for part in parts if part.magnitude is not None]
        return Matrices(parts[0].a.detach(), b, self.join(lengths).flatten() if lengths else None)

    def split(self, b: Tensor) -> Sequence[Tensor]:
        """The rows of each module, from those of the layer, [outputs, ...], or of experts: [outputs, rank * count]."""
        if self.count > 1:
            b = b.unflatten(1, (-1, self.count)).permute(2, 0, 1)
            return self._stack.read(b.mT if self._stack.by_columns else b, len(self.modules))
        return self.row.operation.read(b.t() if self.fan_in_fan_out else b, len(self.modules))

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The rows of the layer, from those of each module."""
        if self.count > 1:
            b = self._stack.write(parts)
            return (b.mT if self._stack.by_columns else b).permute(1, 2, 0).flatten(1)
        joined = self.row.operation.write(parts)
        return joined.t().contiguous() if self.fan_in_fan_out else joined

    @property
    def _stack(self) -> Operation:
        """The operation of the experts' parameter in Hugging Face's class."""
        return self.row.operation if self.row.operation.experts else stacked(self.count)

    def attach(self, name: str, matrices: Matrices, scale: float, dropout: float = 0.0) -> None:
        """Give the layer an adapter, see `LowRankAdapter`."""
        shared, magnitude = nn.Parameter(matrices.a), matrices.magnitude
        parts = [matrices.b] if self.is_embedding else self.split(matrices.b)
        lengths = [None] * len(parts) if magnitude is None else self.split(magnitude[:, None])
        for module, part, length in zip(self.modules, parts, lengths, strict=True):
            own = None if length is None else nn.Parameter(length.flatten().clone())
            rows = nn.Parameter(part.clone().contiguous())
            kind = GroupedAdapter if isinstance(module, GroupedLinear) else LowRankAdapter
            adapter = kind(shared, rows, scale, dropout=dropout, magnitude=own)
            module.adapters = nn.ModuleDict() if module.adapters is None else module.adapters
            module.adapters[name] = adapter.train(module.training)

    @torch.no_grad()
    def row_lengths(self) -> Tensor:
        """The length of each row of the layer's weight in float32, [outputs].

        Where the weight is spread over processes, all of them call it, and each measures its own rows.
        """
        lengths = [torch.linalg.vector_norm(dense(module.weight, torch.float32), dim=1) for module in self.modules]
        return self.join([full_tensor(length)[:, None] for length in lengths]).flatten()


def base_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Base weights that are parameters."""
    return {name: parameter for name, parameter in model.named_parameters() if _ADAPTERS not in name}


def family_of(model: Transformer) -> Family:
    """The family that the model was loaded from, or the one that it would be saved as."""
    family = FAMILIES.get(model.config.model_type, own.FAMILY)
    return to_huggingface(model.config)[0] if family is own.FAMILY else family


def prefix_of(model: Transformer) -> str:
    """Prefix of the names in the family's table that a bare model of Hugging Face's lacks."""
    return family_of(model).prefix if model.config.head.kind == "none" else ""


def targets(model: Transformer) -> dict[str, Target]:
    """Every linear layer and embedding of a model, by its dotted name in Hugging Face's class.

    Experts and their routers are none: there each has one weight for all of its matrices (`parameters`). Nor
    are layers that are called as an expert's (the dense ones of a DeepSeek): PEFT takes their names for the experts'.
    """
    modules, prefix = dict(model.named_modules()), prefix_of(model)
    experts = {part for module in modules.values() if isinstance(module, Experts) for part in module.children()}
    layers: dict[str, Target] = {}
    rows = family_of(model).rows_of(model.config)
    of_experts = {row.theirs.split(".")[-2] for row in rows if row.part is not None}
    for theirs, row in _table(model).items():
        if row.alias or not theirs.endswith(".weight") or theirs.split(".")[-2:][0] in of_experts:
            continue
        parts = [modules.get(name.removesuffix(".weight")) for name in row.ours]
        held = [part for part in parts if isinstance(part, Linear | Embedding) and part not in experts]
        if len(held) == len(row.ours):
            layers[theirs.removesuffix(".weight").removeprefix(prefix)] = Target(held, row)
    return layers


def parameters(model: Transformer) -> dict[str, Target]:
    """The matrices of experts, and routers, by the dotted names of the parameters in Hugging Face's class (what PEFT's
    target_parameters chooses from); those of one module in its own order."""
    family, prefix = family_of(model), prefix_of(model)
    rows = {ours: (theirs, row) for theirs, row in _table(model).items() for ours in row.ours if not row.alias}
    found: dict[str, Target] = {}
    for path, module in model.named_modules():
        if not isinstance(module, Experts):
            continue
        layer = path.split(".")[2]
        stack = family.experts.replace("{i}", layer).removeprefix(prefix) if family.experts else f"{path}.experts"
        up = {"up_proj": [module.up]} if module.gate is None else {"gate_up_proj": [module.gate, module.up]}
        for name, parts in {**up, "down_proj": [module.down]}.items():
            found[f"{stack}.{name}"] = Target(cast("list[Linear]", parts), rows[f"{path}.down.weight"][1])
        theirs, row = rows[f"{path}.router.weight"]
        router = theirs.split(".")[4] if family.experts else "router"  # after model.layers.0.mlp.
        found[f"{stack.rpartition('.')[0]}.{router}.weight"] = Target([module.router], row)
    return found


def wrapped_names(names: Iterable[str]) -> dict[str, str]:
    """The name of the module that PEFT stores the adapter of each of these parameters under: it wraps their module once
    for each of them, so that the last one is outermost."""
    modules: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        modules[name.rpartition(".")[0]].append(name)
    return {
        name: module + ".base_layer" * (len(group) - 1 - place)
        for module, group in modules.items()
        for place, name in enumerate(group)
    }


def _table(model: Transformer) -> dict[str, Row]:
    """The row of each weight on disk, in the order of the model, in which adapters are drawn."""
    # The model's own state would unpack what is quantized.
    return family_of(model).table(model.config, [*skeleton(model.config).state_dict()])


def whole_modules(model: Transformer) -> tuple[str, ...]:
    """The modules that are trained and saved whole with any adapter: a classifier, as in PEFT, and all that was drawn.

    Returns:
        Hugging Face's names of the outermost modules, sorted.
    """
    drawn = set(model.origin.drawn)
    if isinstance(model.head, Classifier):
        drawn |= {"head.labels.weight"}
    prefix = family_of(model).prefix
    stored = {theirs for theirs, row in _table(model).items() if not drawn.isdisjoint(row.ours)}
    return tuple(sorted({theirs.removeprefix(prefix).partition(".")[0] for theirs in stored}))


def is_output_layer(model: Transformer, target: Target) -> bool:
    """Whether a layer is the language-model head, or the last layer of a classifier."""
    last = getattr(model.head, "projection", None) or getattr(model.head, "labels", None)
    return target.modules[0] is last


def adapters(model: nn.Module, name: str | None = None) -> Iterator[LowRankAdapter]:
    """The adapters of a model: of this name, or all."""
    for path, module in model.named_modules():
        if isinstance(module, LowRankAdapter) and name in (None, path.rpartition(".")[2]):
            yield module


def adapter_of(module: nn.Module, name: str) -> LowRankAdapter | None:
    """The adapter of one of our modules."""
    by_name = getattr(module, "adapters", None)
    return cast("LowRankAdapter", by_name[name]) if by_name is not None and name in by_name else None
