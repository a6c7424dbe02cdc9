"""The fastest dtype of a step's matrix products on this CPU, measured once for each set of shapes.

Feature flags don't tell. AMX multiplies large matrices nine times as fast in bfloat16, some CPUs with AVX512-BF16 half
as fast, and small products lose to the conversion of their operands what they gain.
"""

import json
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch

from anyformer import __version__, kernels
from anyformer.blocks.linear import GroupedLinear, Linear
from anyformer.config import ModelConfig
from anyformer.data.disk_cache import Cache, key
from anyformer.errors import UserError
from anyformer.kernels.linear import DtypeCast, prepack, prepacked_linear, supports_prepacking
from anyformer.limits import read_object
from anyformer.model import skeleton
from anyformer.native import levels

FLOATS = ("float32", "bfloat16")
"""Dtypes that one is chosen from, the most precise first."""
INT8 = "int8"
"""A dtype that is never chosen, for it changes what is learned."""

_GAIN = 1.1
"""Ratio of two times from which the less precise dtype is chosen: products are a part of a step."""
_SIDE, _ROWS, _SMALL = 1024, 512, 1 << 26
"""Longest sides and rows that are measured; rows of small weights are more, up to so many multiplications."""
_GROUPS = 8
"""Experts that are measured at most."""
_MOST, _LEAST_SHARE = 4, 0.02
"""Shapes that are measured at most, and their least share of a step's multiplications."""
_SECONDS, _ROUNDS = 0.25, 8
"""Time after which the first round is the last, and rounds at most."""
_FIRST_ROWS, _HOPELESS = 64, 4.0
"""Rows of a first trial, after which a dtype that takes so many times as long is not measured."""
_FILE = "seconds.json"


class Product(NamedTuple):
    """The shape of ``x @ weight.T`` with x [rows, inputs] and weight [outputs, inputs].

    Attributes:
        groups: experts, whose weights differ and each of which has its share of the rows.
    """

    rows: int
    inputs: int
    outputs: int
    groups: int = 1

    @property
    def multiplications(self) -> int:
        """Multiplications of numbers."""
        return self.rows * self.inputs * self.outputs


Products = Mapping[Product, float]
"""How often a step computes each product."""
WorkOf = Callable[[Product, str], Callable[[], object]]
"""Makes a function that computes a product in a dtype."""
TYPICAL: Products = MappingProxyType({Product(1024, 384, 384): 1.0})
"""A product as small models have them, for what knows no model."""


def products(config: ModelConfig, tokens: int) -> Products:
    """The products of a model's layers, and of its vocabulary, for so many tokens; experts have their share of them."""
    counts, experts = Counter[Product](), config.feed_forward.experts
    for part in skeleton(config).modules():
        if isinstance(part, GroupedLinear):
            rows = tokens * (experts.used if experts else 1)
            counts[Product(rows, part.in_features, part.out_features // part.groups, part.groups)] += 1
        elif isinstance(part, Linear):
            counts[Product(tokens, part.in_features, part.out_features)] += 1
    if config.head.kind == "language_model" and config.embedding.tied:
        counts[Product(tokens, config.d_model, config.vocab_size)] += 1
    return counts


def fastest(seconds: Mapping[str, float]) -> str:
    """The fastest of `FLOATS`, or a more precise one that takes next to no more time."""
    least = min(seconds[name] for name in FLOATS if name in seconds)
    return next(name for name in FLOATS if seconds.get(name, math.inf) <= _GAIN * least)


def product_seconds(products: Products, dtypes: tuple[str, ...] = FLOATS, *, training: bool = True) -> dict[str, float]:
    """Seconds that products take in each dtype: from the cache, or measured in well under a second.

    A dtype that is out of the question is left out.

    Args:
        training: Forward and backward, for the gradients of x and weight; else forward, with prepacked weights.
    """
    shapes = _representatives(products)
    machine = (levels.processor(), sorted(levels.features()), levels.level() if levels.enabled() else None)
    versions = (__version__, torch.__version__)
    name = key(machine, versions, sorted(shapes.items()), dtypes, training)
    measured = dict[str, float]()

    def make(folder: Path) -> None:
        measured.update(measure(shapes, dtypes, training=training))
        (folder / _FILE).write_text(json.dumps(measured))

    try:
        return Cache().entry("dtypes", name, make, lambda folder: _read(folder / _FILE, dtypes))
    except UserError:  # a cache that can't be used
        return measured or measure(shapes, dtypes, training=training)


def _read(file: Path, dtypes: Sequence[str]) -> dict[str, float]:
    seconds = read_object(file)
    if not ({FLOATS[0]} <= seconds.keys() <= {*dtypes}):
        raise UserError(f"{file} names other dtypes.")
    if not all(isinstance(each, float) and 0 < each < math.inf for each in seconds.values()):
        raise UserError(f"{file} holds no times.")
    return seconds


def _representatives(products: Products) -> Products:
    """The most expensive products, as small as their speed stays the same, in the place of all."""
    costs = defaultdict[Product, float](float)
    for shape, count in products.items():
        inputs, outputs = min(shape.inputs, _SIDE), min(shape.outputs, _SIDE)
        groups = min(shape.groups, _GROUPS)
        rows = min(shape.rows * groups // shape.groups, max(_ROWS, _SMALL // (inputs * outputs)))
        costs[Product(max(1, rows), inputs, outputs, groups)] += count * shape.multiplications
    most = sorted(costs, key=costs.__getitem__, reverse=True)[:_MOST]
    least = _LEAST_SHARE * sum(costs.values())
    return {shape: costs[shape] / shape.multiplications for shape in most if costs[shape] >= least}


def measure(products: Products, dtypes: Sequence[str], *, training: bool) -> dict[str, float]:
    """Time products in each dtype. The dtypes take turns and the best time of each counts.

    Processor time of one thread is what other programs hardly change; of several it counts those that wait.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _measure(products, dtypes, _training if training else _forward)
    finally:
        torch.set_num_threads(threads)


def _measure(products: Products, dtypes: Sequence[str], work_of: WorkOf) -> dict[str, float]:
    trial = min(products, key=lambda shape: shape.multiplications)._replace(rows=_FIRST_ROWS, groups=1)
    first = {dtype: _time(work_of(trial, dtype), 2) for dtype in dtypes}
    dtypes = [dtype for dtype in dtypes if first[dtype] <= _HOPELESS * min(first.values()) or dtype == FLOATS[0]]
    work = {(shape, dtype): work_of(shape, dtype) for shape in products for dtype in dtypes}
    best, end = dict.fromkeys(work, math.inf), time.thread_time() + _SECONDS
    for number, each in enumerate([*work] * _ROUNDS):
        if number >= len(work) and time.thread_time() > end:
            break
        best[each] = min(best[each], _time(work[each]))
    return {dtype: sum(count * best[shape, dtype] for shape, count in products.items()) for dtype in dtypes}


def _time(work: Callable[[], object], repeats: int = 1) -> float:
    """Seconds of the last of several calls."""
    seconds = 0.0
    for _ in range(repeats):
        start = time.thread_time()
        work()
        seconds = time.thread_time() - start
    return seconds


def _training(shape: Product, dtype: str) -> Callable[[], object]:
    """A function that computes a product and the gradients of its operands."""
    x = torch.ones(shape.rows, shape.inputs, requires_grad=True)
    weight = torch.ones(shape.groups * shape.outputs, shape.inputs, requires_grad=True)
    even = torch.arange(1, shape.groups + 1) * shape.rows // shape.groups
    matmul, chance = "int8" if dtype == INT8 else "float", torch.Generator()

    def work() -> None:
        with _autocast(dtype):
            if shape.groups > 1:  # of other sizes in every step, which oneDNN prepares itself for anew
                fewer = torch.randint(shape.rows // shape.groups // 2 + 1, even.shape, generator=chance)
                ends = (even - fewer).clamp(min=0)
                ends[-1] = shape.rows
                out = kernels.grouped_linear(x, weight, ends, matmul=matmul)
            else:
                out = kernels.linear(x, weight, matmul=matmul)
        torch.autograd.grad(out.square().sum(), (x, weight))

    return work


def _forward(shape: Product, dtype: str) -> Callable[[], object]:
    """A function that computes a product, with a prepacked weight where that can be."""
    x, weight = torch.ones(shape.rows, shape.inputs), torch.ones(shape.outputs, shape.inputs)
    is_prepacked = dtype != FLOATS[0] and supports_prepacking(x.device, torch.bfloat16)
    packed = prepack(weight, None, DtypeCast(torch.bfloat16)) if is_prepacked else None

    def work() -> None:
        with torch.inference_mode(), _autocast(dtype):
            kernels.linear(x, weight) if packed is None else prepacked_linear(x, packed)

    return work


def _autocast(dtype: str) -> AbstractContextManager[object]:
    return nullcontext() if dtype == FLOATS[0] else torch.autocast("cpu", dtype=torch.bfloat16)
