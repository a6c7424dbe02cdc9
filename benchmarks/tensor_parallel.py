"""Activations, messages, memory and time of processes that share the matrices of a llama's layers, on the CPU.

`python benchmarks/tensor_parallel.py` prints, for `--processes` N with `--tensor-parallel N`, with and without
`--gradient-checkpointing`, and with one process beside them: what the forward pass keeps for the backward pass, the
bytes that a process sends in a step, by ring algorithms, the peak of its memory beyond that before, and a step's time.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import time
from typing import Any

import numpy as np
import torch
from sharded_memory import MEGABYTE, Phases
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import anyformer as af
from anyformer.data.batch import Batch
from anyformer.model import Transformer, build
from anyformer.training.optimizer import make_optimizer
from anyformer.training.precision import Precision
from anyformer.training.recipe import cut_of, make_strategy
from anyformer.training.strategies.base import Plan
from anyformer.training.strategies.group import join

_SIZE = {"vocab_size": 512, "d_model": 512, "decoder_layers": 4, "max_length": 512}
_TIMES = 5


class Messages(TorchDispatchMode):
    """Counts the bytes that a process sends."""

    def __init__(self, processes: int) -> None:
        super().__init__()
        self.bytes, self.share = 0.0, (processes - 1) / processes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out, name = func(*args, **(kwargs or {})), str(func)
        if "all_reduce" in name:
            self.bytes += 2 * self.share * _size(args[0])
        elif "all_gather_into" in name or "_allgather_base" in name:
            self.bytes += self.share * _size(out)
        elif "reduce_scatter" in name:
            self.bytes += self.share * max(_size(args[0]), _size(args[1]) if len(args) > 1 else 0)
        return out


def _size(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    return sum(map(_size, value)) if isinstance(value, list | tuple) else 0


class Kept:
    """Counts the bytes of tensors that are kept for the backward pass, weights aside."""

    def __init__(self, model: Transformer) -> None:
        self.model, self.seen = model, dict[int, int]()

    def pack(self, tensor: Tensor) -> Tensor:
        weights = {_storage(weight).data_ptr() for weight in self.model.parameters()}
        if (storage := _storage(tensor)).data_ptr() not in weights:
            self.seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    @property
    def bytes(self) -> int:
        return sum(self.seen.values())


def _storage(tensor: Tensor) -> Any:
    local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local.untyped_storage()


def work(rank: int, processes: int, port: int, results: Any, bfloat16: bool) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    engine = "fsdp" if processes > 1 else None
    group = join(engine, "cpu")
    torch.set_num_threads(1)
    precision = Precision(torch.device("cpu"), torch.bfloat16 if bfloat16 else torch.float32, "for a measurement")
    tokens = np.random.default_rng(0).integers(0, 64, (2, _SIZE["max_length"]))
    rows: list[str] = []
    for checkpointing in (False, True):
        plan = Plan(precision, lambda model: make_optimizer("adamw", model, 1e-3), gradient_checkpointing=checkpointing)
        layout = {"tensor_parallel": processes} if engine else {}
        model = build(af.preset("llama-nano", **_SIZE), cut_of(engine, plan, group, **layout))
        strategy = make_strategy(engine, model, plan, group, **layout)
        batch = Batch(tokens, tokens)
        strategy.step(0, batch, 1e-3)
        kept, phases = Kept(strategy.model), Phases()
        with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor):
            loss = strategy._loss(strategy._mine(batch)[0])  # pyright: ignore[reportPrivateUsage]
        loss.backward()
        strategy.optimizer.zero_grad(set_to_none=True)
        with Messages(processes) as sent:
            strategy.step(1, batch, 1e-3)
        phases.begin()
        seconds = []
        for step in range(_TIMES):
            begun = time.perf_counter()
            strategy.step(2 + step, batch, 1e-3)
            seconds.append(time.perf_counter() - begun)
        phases.end("steps")
        name = f"{processes} {'checkpointing' if checkpointing else 'plain'}"
        figures = kept.bytes / MEGABYTE, sent.bytes / MEGABYTE, phases.peaks["steps"][0], statistics.median(seconds)
        rows.append("{:<18}{:>10,.1f}{:>10,.1f}{:>10,.0f}{:>10.2f}".format(name, *figures))
        strategy.close()
    if group.is_main:
        results.put("\n".join(rows))
    group.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--bfloat16", action="store_true")
    options = parser.parse_args()
    print("processes           kept MB   sent MB   peak MB    step s")
    for processes in options.processes:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        results = torch.multiprocessing.get_context("spawn").SimpleQueue()
        torch.multiprocessing.spawn(work, (processes, port, results, options.bfloat16), nprocs=processes)
        print(results.get(), flush=True)


if __name__ == "__main__":
    main()
