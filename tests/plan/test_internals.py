"""Parts of torch that a plan needs; and layouts of results, which are those of real tensors."""

import gc
import importlib
import re
import time
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import override

from anyformer.errors import UserError
from anyformer.model import build
from anyformer.plan import internals
from anyformer.plan.internals import Layout, has_cpu_kernel, results, returns_view, storage_without_memory, tensors_of
from anyformer.plan.simulation import Simulation
from anyformer.plan.step import count_step
from anyformer.training.recipe import make_plan
from anyformer.training.strategies.base import Strategy
from anyformer.training.strategies.group import Group
from tests.plan.test_step import workload


@pytest.mark.parametrize("name", ["_current_graph_task_id", "_dispatch_has_kernel_for_dispatch_key"])
def test_a_torch_that_lacks_one_is_refused_in_a_sentence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.delattr(torch._C, name)
        with pytest.raises(UserError, match=f"version {re.escape(torch.__version__)} lacks .*{name}"):
            importlib.reload(internals)
    importlib.reload(internals)


_COUNTED_BY_DATA = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output}


def empty(found: Layout) -> Tensor:
    return torch.empty(0, dtype=found.dtype).set_(storage_without_memory(found.size), 0, found.shape, found.stride)


def told(tensor: Tensor) -> tuple[Any, ...]:
    """Shape, dtype and strides, but for those of dimensions of one element, which mean nothing."""
    strides = [stride for length, stride in zip(tensor.shape, tensor.stride(), strict=True) if length > 1]
    return tuple(tensor.shape), tensor.dtype, strides if tensor.numel() else []


class Comparison(TorchDispatchMode):
    """Collects operations whose results have another layout than is foreseen."""

    def __init__(self) -> None:
        super().__init__()
        self.compared = 0
        self.wrong: list[Any] = []

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        real = func(*args, **kwargs)
        tensors = tensors_of((args, kwargs))
        by_data = not _COUNTED_BY_DATA.isdisjoint(func.tags) or any(each.dtype == torch.bool for each in tensors)
        computed = has_cpu_kernel(func.name()) and not returns_view(func) and not func._schema.is_mutable
        if computed and not by_data and func.namespace == "aten":
            found = results(func, args, kwargs, tensors, empty)
            self.compared += 1
            both = [[*map(told, tensors_of(result))] for result in (found, real)]
            if both[0] != both[1]:
                self.wrong.append((func, *both))
        return real


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llama-nano", {"dtype": "bfloat16", "lora": 2}),
        ("gpt2-nano", {"optimizer": "muon", "grad_accumulation": 2}),
        ("bert-tiny", {"task": "classify", "gradient_checkpointing": True}),
        ("transformer-tiny", {"average": "ema:0.9"}),
        ("t5-nano", {}),
    ],
)
def test_results_have_the_layouts_of_real_ones(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANYFORMER_NATIVE", "0")
    asked = workload(name, **options)
    strategy = Strategy(asked.fit(build(asked.model)), make_plan(asked.config, asked.precision, asked.loss), Group())
    with Comparison() as comparison:
        strategy.step(0, asked.batch(), 1e-3)

    assert comparison.compared > 100
    assert not comparison.wrong


def test_a_result_that_shares_memory_without_saying_so_is_the_argument_again() -> None:
    given = empty(Layout((4, 6), (6, 1), torch.float32))
    found = results(torch.ops.aten._unsafe_view.default, (given, [24]), {}, [given], empty)
    assert found.untyped_storage() is given.untyped_storage()
    assert found.shape == (24,)


def test_numbers_of_different_types_are_different_arguments() -> None:
    given = empty(Layout((3,), (1,), torch.int64))
    dtypes = [
        results(torch.ops.aten.add.Tensor, (given, number), {}, [given], empty).dtype for number in (1, 1.0, True)
    ]
    assert dtypes == [torch.int64, torch.float32, torch.int64]


def test_an_operation_that_was_seen_before_costs_less_than_with_fake_tensors() -> None:
    """Four countings take some 15,000 operations, 0.3 ms each on torch's fake tensors."""

    def seconds(a: Tensor, b: Tensor) -> float:
        found = list[float]()
        for _ in range(5):
            begin = time.process_time()
            for _ in range(200):
                torch.mm(a, b)
            found.append(time.process_time() - begin)
        return min(found)

    with FakeTensorMode():
        fake = seconds(torch.empty(64, 32), torch.empty(32, 16))
    with Simulation().running():
        own = seconds(torch.empty(64, 32), torch.empty(32, 16))
    assert own < 0.7 * fake


def test_a_tensor_is_let_go_of_at_once_and_not_when_garbage_is_collected() -> None:
    asked = workload("llama-nano", context=64)
    gc.collect()
    gc.disable()
    try:
        counted = count_step(asked)
    finally:
        gc.enable()
    assert counted.resident["activations"] == 0
    assert counted.peak == count_step(asked).peak
