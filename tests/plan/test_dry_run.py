"""The step on real tensors that nobody touches, beside the step that is taken."""

import ctypes
import json
import platform
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.fsdp  # defines its operations
from torch import Tensor

from anyformer.plan import dry_run
from anyformer.plan.devices import find_device
from anyformer.plan.dry_run import heap_size
from anyformer.plan.internals import FakeStore
from anyformer.plan.simulation import Simulation
from anyformer.plan.step import count_step
from anyformer.plan.workload import Workload, make_workload
from anyformer.spec import read_config
from anyformer.training.memory import proc_field

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the heap is glibc's")

MODEL = "llama-nano:decoder_layers=1,vocab_size=300"


def workload(**options: Any) -> Workload:
    values = {"context": 256, "batch_size": 32, "dtype": "float32", **options}
    return make_workload(read_config(MODEL), values, find_device("cpu"))


_SERVER = get_context("forkserver")
_SERVER.set_forkserver_preload([__name__, "torch._dynamo"])


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a process of its own, which has imported what it needs, and whose heap holds no more.

    Where other tests have left holes, tensors settle in them, and what is kept takes pages that were written already.
    """
    with ProcessPoolExecutor(1, _SERVER) as pool:
        return pool.submit(function, *arguments).result()


def count_in_heap() -> tuple[int, int, int | None, int | None]:
    asked = workload()
    count_step(replace(asked, in_heap=False))  # loads what the next one needs
    before = proc_field("self/status", "VmRSS")
    counted = count_step(asked)
    return sum(counted.parts.values()), counted.allocator, before, proc_field("self/status", "VmRSS")


def test_tensors_lie_in_a_heap_that_is_larger_than_they_are_and_costs_no_memory() -> None:
    live, allocator, before, after = in_fresh_process(count_in_heap)
    assert live > 100e6
    assert 0 < allocator < live
    if before is not None and after is not None:
        assert after - before < 0.7 * live  # of the first product of each shape


def differences_of_what_is_kept() -> list[int]:
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    allocations, size = [(0, 1)], 1 << 22

    @torch.library.custom_op("test::product", mutates_args=())
    def product(x: Tensor, y: Tensor) -> Tensor:
        del y
        written, reserved = allocations[-1]
        ctypes.memset(libc.malloc(written + reserved), 1, written)
        return torch.ones_like(x)

    @product.register_fake
    def fake(x: Tensor, y: Tensor) -> Tensor:
        del y
        return torch.empty_like(x)

    dry_run._PRODUCTS.add(torch.ops.test.product.default)

    def take(simulation: Simulation) -> None:
        with simulation.running():  # of another shape each time, by a few bytes
            torch.ops.test.product(torch.empty(1, size // 4), torch.empty(1, len(allocations)))

    heap_size(take)  # loads what the next ones need
    differences = list[int]()
    for written, reserved in ((1, 1 << 24), (5 << 20, 1), (1 << 24, 1 << 24)):
        allocations.append((written, reserved))
        differences.append(heap_size(take) - 2 * size - written)
    return differences


def test_what_a_library_keeps_takes_the_pages_that_it_wrote() -> None:
    differences = in_fresh_process(differences_of_what_is_kept)
    assert len(differences) == 3
    assert max(map(abs, differences)) < 1 << 20


def gather(whole: Tensor, share: Tensor) -> None:
    dist.all_gather_into_tensor(whole, share)  # pyright: ignore[reportDeprecated]  (since torch 2.13)


def reduce_and_scatter(whole: Tensor, share: Tensor) -> None:
    dist.reduce_scatter_tensor(share, whole)  # pyright: ignore[reportDeprecated]


def reduce_all(whole: Tensor, share: Tensor) -> None:
    del share
    dist.all_reduce(whole)


def copy_in(whole: Tensor, share: Tensor) -> None:
    """FSDP2's own copy of a share to its place in the whole tensor, which it returns again without saying so."""
    copied = torch.ops.fsdp.all_gather_copy_in([share], whole, [len(share)], len(share), 0)
    assert copied[1].data_ptr() == whole.data_ptr()


@pytest.mark.filterwarnings("ignore:.torch.distributed.* is deprecated:FutureWarning")  # torch 2.13 renames them
@pytest.mark.parametrize(
    ("exchange", "copies"),
    # A copy in this thread, and in each of gloo's two; one in this, and pieces of half of it in each; those alone.
    [(gather, 3.0), (reduce_and_scatter, 2.0), (reduce_all, 1.0), (copy_in, 0.0)],
)
def test_what_gloo_copies_to_exchange_tensors_counts(exchange: Callable[[Tensor, Tensor], None], copies: float) -> None:
    found = in_fresh_process(heap_of, exchange, 4 << 20)
    assert found == pytest.approx((1.5 + copies) * (4 << 20), rel=0.1)


@pytest.mark.filterwarnings("ignore:.torch.distributed.* is deprecated:FutureWarning")
def test_what_is_too_large_for_a_heap_of_a_thread_is_not_kept_by_both() -> None:
    assert in_fresh_process(heap_of, gather, 80 << 20) == pytest.approx((1.5 + 1 + 1) * (80 << 20), rel=0.1)


def heap_of(exchange: Callable[[Tensor, Tensor], None], size: int) -> int:
    """What it takes to exchange so many bytes, of which two processes have a half each."""

    def take(simulation: Simulation) -> None:
        with simulation.running():
            simulation.restart()
            exchange(torch.empty(size // 4), torch.empty(size // 8))

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        return heap_size(take)
    finally:
        dist.destroy_process_group()


def test_operands_of_several_dtypes_are_copied_to_one() -> None:
    """2 and 4 MB, a copy and the result of 4 MB each."""
    found = in_fresh_process(heap_size, multiply)
    assert found == pytest.approx(14 << 20, rel=0.05)


def multiply(simulation: Simulation) -> None:
    with simulation.running():
        simulation.restart()
        narrow, wide = torch.empty(1 << 20, dtype=torch.bfloat16), torch.empty(1 << 20)
        narrow.mul(wide)


def test_a_heap_that_the_system_has_no_memory_for_is_0() -> None:
    def refuse(simulation: object) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 byte")

    def fail(simulation: object) -> None:
        raise RuntimeError("another reason")

    assert heap_size(refuse) == 0
    with pytest.raises(RuntimeError, match="another reason"):
        heap_size(fail)


MEASURE = """
import json, sys
from anyformer.cli.plan import read_arguments
from anyformer.plan.calibrate import measure
print(json.dumps(measure(read_arguments(sys.argv[1:]), steps=3).peak))
"""


COUNT = """
import json, sys
from anyformer.cli.plan import read_arguments
from anyformer.plan.step import count_step
print(json.dumps(count_step(read_arguments(sys.argv[1:])).peak))
"""


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--gradient-checkpointing"]])
def test_a_step_makes_a_process_grow_by_as_much(flags: list[str]) -> None:
    arguments = [MODEL, "--context", "256", "--batch-size", "32", "--dtype", "float32", *flags]
    run = partial(subprocess.run, capture_output=True, text=True, check=True)
    found: int | None = json.loads(run([sys.executable, "-c", MEASURE, *arguments]).stdout.splitlines()[-1])
    if found is None:
        pytest.skip("this system does not tell")
    # In a process of its own as well: where other tests have left holes, tensors settle in them.
    counted = json.loads(run([sys.executable, "-c", COUNT, *arguments]).stdout.splitlines()[-1])
    assert 0.95 * found <= counted <= 1.15 * found
