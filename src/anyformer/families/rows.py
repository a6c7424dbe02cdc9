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
from typing import TYPE_CHECKING, Literal

from anyformer.errors import UserError

if TYPE_CHECKING:
    # Presets and diffs need the tables but no tensors, and importing torch takes seconds.
    from torch import Tensor


Pairs = Literal["halves", "neighbors", "swapped"]
QKV = [f"decoder.blocks.{{i}}.attention.{part}" for part in ("query", "key", "value")]
"""The layers of a decoder that many files have in one matrix."""


@dataclass(frozen=True)
class HeadLayout:
    """The order of the rows of attention heads in one tensor on disk, of one of our tensors or of several.

    ::

        groups  counts           of n heads, k of them with keys and values
           1    (n, k, k)        all queries, then keys, then values (Phi-3, Falcon-7B)
           n    (1, 1, 1)        query, key and value of the first head, of the second ... (GPT-NeoX)
           k    (n / k, 1, 1)    each group of queries with its key and its value (Falcon-40B)
           1    (n,)             one of our tensors alone
    """

    head_dim: int
    counts: tuple[int, ...]
    """Heads of each of our tensors in a group: queries, keys and values, or of one tensor alone."""
    groups: int = 1
    order: tuple[int, ...] | None = None
    """The row on disk of each row of ours in a head of queries or keys, see `rotary_order`; None: the same."""

    def read(self, tensor: Tensor, _: int) -> Sequence[Tensor]:
        """Our tensors in one on disk, [rows, ...]. Raises RuntimeError where it has no such rows."""
        heads = tensor.reshape(self.groups, sum(self.counts), self.head_dim, *tensor.shape[1:])
        parts = heads.split(self.counts, dim=1)
        return [self._moved(part, self.order, index).flatten(0, 2).contiguous() for index, part in enumerate(parts)]

    def write(self, tensors: Sequence[Tensor]) -> Tensor:
        """The inverse of `read`."""
        inverse = None if self.order is None else sorted(range(self.head_dim), key=self.order.__getitem__)
        heads = [
            self._moved(part.reshape(self.groups, count, self.head_dim, *part.shape[1:]), inverse, index)
            for index, (part, count) in enumerate(zip(tensors, self.counts, strict=True))
        ]
        return _join(heads, dim=1).flatten(0, 2)

    def _moved(self, part: Tensor, order: Sequence[int] | None, index: int) -> Tensor:
        return part if order is None or index == 2 else part[:, :, list(order)]


@dataclass(frozen=True)
class Operation:
    """The way from one tensor on disk to one or several of ours, and back."""

    read: Callable[[Tensor, int], Sequence[Tensor]]
    """From the tensor on disk and the number of our tensors that it holds."""
    write: Callable[[Sequence[Tensor]], Tensor]
    heads: HeadLayout | None = None
    """The heads whose rows it moves, if it does no more than that."""
    experts: int | None = None
    """The number of matrices that it stacks (`stacked`)."""
    by_columns: bool = False
    """They are stored as [in, out] (`experts_by_columns`)."""


def _parts(tensor: Tensor, count: int) -> Sequence[Tensor]:
    return [part.contiguous() for part in tensor.chunk(count)]


def _join(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    import torch

    return torch.cat(list(tensors), dim)


COPY = Operation(lambda tensor, _: [tensor], lambda tensors: tensors[0])
TRANSPOSE = Operation(lambda tensor, count: _parts(tensor.t(), count), lambda tensors: _join(tensors).t().contiguous())
"""GPT-2 stores matrices as [in, out]; several of ours may stand side by side in one of them."""
SPLIT = Operation(_parts, _join)
ROW = Operation(lambda tensor, _: [tensor.flatten()], lambda tensors: tensors[0][None])
"""A vector stored as a matrix of one row."""


def stacked(count: int) -> Operation:
    """The matrices of experts, which ours have one below another, as [experts, out, in], and their biases as [experts,
    out]; several side by side."""

    def read(tensor: Tensor, parts: int) -> Sequence[Tensor]:
        stacks = tensor.chunk(parts, dim=1) if tensor.dim() in (2, 3) and len(tensor) == count else ()
        return [stack.flatten(0, 1).contiguous() for stack in stacks]

    def write(tensors: Sequence[Tensor]) -> Tensor:
        return _join([tensor.unflatten(0, (count, -1)) for tensor in tensors], dim=1)

    return Operation(read, write, experts=count)


def experts_by_columns(count: int) -> Operation:
    """The matrices of experts as [experts, in, out], whose columns are those of each of ours in turn: of two matrices
    0, 1, 0, 1 ... (gpt-oss). Biases are [experts, out] in the same order."""

    def read(tensor: Tensor, parts: int) -> Sequence[Tensor]:
        fits = tensor.dim() in (2, 3) and len(tensor) == count and tensor.shape[-1] % parts == 0
        rows = tensor.transpose(1, -1).unflatten(1, (-1, parts)) if fits else None
        return () if rows is None else [rows[:, :, part].flatten(0, 1) for part in range(parts)]

    def write(tensors: Sequence[Tensor]) -> Tensor:
        import torch

        rows = torch.stack([tensor.unflatten(0, (count, -1)) for tensor in tensors], dim=2)
        return rows.flatten(1, 2).transpose(1, -1).contiguous()

    return Operation(read, write, experts=count, by_columns=True)


def split_heads(head_dim: int, *counts: int, groups: int = 1, order: Sequence[int] | None = None) -> Operation:
    """The operation of a `HeadLayout`; a copy where one tensor keeps its order."""
    order = None if order is None or list(order) == [*range(head_dim)] else tuple(order)
    if order is None and len(counts) == 1:
        return COPY
    layout = HeadLayout(head_dim, counts, groups, order)
    return Operation(layout.read, layout.write, layout)


def rotary_order(head_dim: int, rotary_dim: int | None = None, pairs: Pairs = "halves") -> list[int]:
    """The row on disk of each row of ours in a head whose first `rotary_dim` rows are turned in pairs.

    Ours turns rows ``i`` and ``i + head_dim / 2``, by an angle of 0 those that stay as they are.

    Args:
        rotary_dim: None: all rows.
        pairs: The pairs on disk: rows ``i`` and ``i + rotary_dim / 2``; ``2i`` and ``2i + 1``; or halves that turn the
            other way.
    """
    turned, rest = [*range(rotary_dim or head_dim)], [*range(rotary_dim or head_dim, head_dim)]
    half, free = len(turned) // 2, len(rest) // 2
    first, second = (turned[::2], turned[1::2]) if pairs == "neighbors" else (turned[:half], turned[half:])
    if pairs == "swapped":
        first, second = second, first
    return [*first, *rest[:free], *second, *rest[free:]]


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    theirs: str
    ours: tuple[str, ...]
    operation: Operation = COPY
    alias: bool = False
    """A second name of a tensor that has a row of its own: read if that is missing, compared if not, never written."""
    is_separate: bool = False
    """An alias that is written all the same where a model's embeddings are not tied: Hugging Face's class then has a
    weight of its own there."""
    is_compared: bool = True
    """Whether an alias has to equal the tensor; else Hugging Face's class computes nothing with it."""
    requires: tuple[str, ...] = ()
    """The row applies only to models that have these weights of ours as well."""
    part: tuple[int, int] | None = None
    """Number of this part of ours, and how many equal ones lie one below another there; None: all of it."""

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


def alias(theirs: str, ours: str, *, is_separate: bool = False, is_compared: bool = True) -> Row:
    """A second name on disk for one of our tensors."""
    return Row(theirs, (ours,), alias=True, is_separate=is_separate, is_compared=is_compared)


def linear(
    theirs: str, ours: str | Sequence[str], operation: Operation = COPY, requires: str | None = None
) -> list[Row]:
    """A layer's weight and, where it has one, its bias, of which a matrix is transposed alone."""
    layers = [ours] if isinstance(ours, str) else ours
    operations = {"weight": operation, "bias": COPY if operation is TRANSPOSE else operation}
    return [
        row(f"{theirs}.{part}", [f"{layer}.{part}" for layer in layers], each, requires)
        for part, each in operations.items()
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


def resolve(rows: Iterable[Row], ours: Collection[str]) -> dict[str, Row]:
    """The rows of a family that apply to a model with these weights, one for each layer, by name on disk.

    Raises:
        UserError: one of our names has no row, so the family's format can't hold it.
    """
    names, claimed, placed = set(ours), set[tuple[str, object]](), set[str]()
    layers = 1 + max((int(n) for name in names for n in re.findall(r"\.blocks\.(\d+)\.", name)), default=-1)
    table: dict[str, Row] = {}
    for line in rows:
        for layer in map(str, range(layers) if "{i}" in line.theirs else (0,)):
            theirs, *held = (name.replace("{i}", layer) for name in (line.theirs, *line.ours))
            required = (name.replace("{i}", layer) for name in line.requires)
            if theirs in table or not names.issuperset((*held, *required)):
                continue
            is_free = claimed.isdisjoint((name, part) for name in held for part in (line.part, None))
            if line.alias or (is_free and (line.part is not None or placed.isdisjoint(held))):
                table[theirs] = replace(line, theirs=theirs, ours=tuple(held), requires=())
                claimed.update(() if line.alias else ((name, line.part) for name in held))
                placed.update(() if line.alias else held)
    for name in ours:
        if name not in placed:
            raise UserError(f"This model type has no place for the weight {name}.")
    return table
