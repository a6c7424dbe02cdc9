"""Weight-name tables that are read in both directions.

A family's table is a list of rows ``(Hugging Face's name, our name, operation)``. The direction back is derived from
the operation's inverse, never written twice. ``{i}`` stands for a layer. A row whose target the model at hand does
not have (a bias, a gate, a second stack) simply does not apply, and of two rows for one target the first that applies
is taken, so one table serves every config of the family.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from anyformer.errors import UserError

if TYPE_CHECKING:
    # Presets and diffs need the tables but no tensors, and importing torch takes seconds.
    from torch import Tensor


@dataclass(frozen=True)
class Operation:
    """The way from one tensor on disk to one or several of ours, and back."""

    read: Callable[[Tensor, int], Sequence[Tensor]]
    """From the tensor on disk and the number of our tensors that it holds."""
    write: Callable[[Sequence[Tensor]], Tensor]


def _parts(tensor: Tensor, count: int) -> Sequence[Tensor]:
    return [part.contiguous() for part in tensor.chunk(count)]


def _join(tensors: Sequence[Tensor]) -> Tensor:
    import torch

    return torch.cat(list(tensors))


COPY = Operation(lambda tensor, _: [tensor], lambda tensors: tensors[0])
TRANSPOSE = Operation(lambda tensor, count: _parts(tensor.t(), count), lambda tensors: _join(tensors).t().contiguous())
"""GPT-2 stores matrices as [in, out]; several of ours may stand side by side in one of them."""
SPLIT = Operation(_parts, _join)
ROW = Operation(lambda tensor, _: [tensor.flatten()], lambda tensors: tensors[0][None])
"""A vector stored as a matrix of one row."""


def stacked(count: int) -> Operation:
    """The matrices of experts, which ours have one below another, as [experts, out, in]; several side by side."""

    def read(tensor: Tensor, parts: int) -> Sequence[Tensor]:
        stacks = tensor.chunk(parts, dim=1) if len(tensor) == count and tensor.dim() == 3 else ()
        return [stack.flatten(0, 1).contiguous() for stack in stacks]

    def write(tensors: Sequence[Tensor]) -> Tensor:
        import torch

        return torch.cat([tensor.unflatten(0, (count, -1)) for tensor in tensors], dim=1)

    return Operation(read, write)


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    theirs: str
    ours: tuple[str, ...]
    operation: Operation = COPY
    alias: bool = False
    """A second name of a tensor that has a row of its own: read if that is missing, compared if not, never written."""
    requires: tuple[str, ...] = ()
    """The row applies only to models that have these weights of ours as well."""
    part: tuple[int, int] | None = None
    """Of ours it is one of several equal parts, one below another: its number and theirs. None: all of it."""

    def write(self, state: Mapping[str, Tensor]) -> Tensor:
        """The tensor on disk, from our weights by name."""
        tensors = [state[name] for name in self.ours]
        if self.part is not None:
            number, count = self.part
            tensors = [tensor.unflatten(0, (count, -1))[number] for tensor in tensors]
        return self.operation.write(tensors)


def row(theirs: str, ours: str | Sequence[str], operation: Operation = COPY, requires: str | None = None) -> Row:
    """A line of a table."""
    required = () if requires is None else (requires,)
    return Row(theirs, (ours,) if isinstance(ours, str) else tuple(ours), operation, requires=required)


def alias(theirs: str, ours: str) -> Row:
    """A second name on disk for one of our tensors."""
    return Row(theirs, (ours,), alias=True)


def linear(theirs: str, ours: str, operation: Operation = COPY, requires: str | None = None) -> list[Row]:
    """A layer's weight and, where it has one, its bias."""
    return [
        row(f"{theirs}.weight", f"{ours}.weight", operation, requires),
        row(f"{theirs}.bias", f"{ours}.bias", requires=requires),
    ]


def linears(theirs: str, ours: str, layers: Mapping[str, str]) -> list[Row]:
    """The rows of several layers, by their names after a prefix: theirs -> ours."""
    return [line for name, our in layers.items() for line in linear(theirs + name, ours + our)]


def experts(theirs: str, layers: Mapping[str, str], prefix: str, count: int) -> list[Row]:
    """The rows of experts that have a matrix each on disk: ``{e}`` stands for an expert, ``{name}`` for a matrix."""
    return [
        Row(theirs.format(i="{i}", e=expert, name=name), (f"{prefix}{our}.weight",), part=(expert, count))
        for name, our in layers.items()
        for expert in range(count)
    ]


def tied(theirs: str) -> list[Row]:
    """A language-model head of its own, or a second name of the token table."""
    name = f"{theirs}.weight"
    return [row(name, "head.projection.weight"), alias(name, "token_embedding.table.weight")]


def prefixed(prefix: str, rows: Iterable[Row], requires: str) -> list[Row]:
    """Rows with a prefix to each name on disk, for models that have this weight of ours."""
    return [replace(line, theirs=prefix + line.theirs, requires=(*line.requires, requires)) for line in rows]


def resolve(rows: Iterable[Row], ours: Collection[str]) -> dict[str, Row]:
    """The rows of a family that apply to a model with these weights, one for each layer, by name on disk.

    Raises:
        UserError: one of our names has no row, so the family's format can't hold it.
    """
    names, claimed = set(ours), set[tuple[str, object]]()
    layers = 1 + max((int(n) for name in names for n in re.findall(r"\.blocks\.(\d+)\.", name)), default=-1)
    table: dict[str, Row] = {}
    for line in rows:
        for layer in map(str, range(layers) if "{i}" in line.theirs else (0,)):
            theirs, *held = (name.replace("{i}", layer) for name in (line.theirs, *line.ours))
            required = (name.replace("{i}", layer) for name in line.requires)
            if theirs in table or not names.issuperset((*held, *required)):
                continue
            parts = {(name, line.part) for name in held}
            if line.alias or claimed.isdisjoint(parts):
                table[theirs] = replace(line, theirs=theirs, ours=tuple(held), requires=())
                claimed.update(() if line.alias else parts)
    placed = {name for name, _ in claimed}
    for name in ours:
        if name not in placed:
            raise UserError(f"This model type has no place for the weight {name}.")
    return table
