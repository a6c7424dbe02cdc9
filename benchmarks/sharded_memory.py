"""Memory and waiting of processes that share a model of about 1 GB by FSDP2, on the CPU.

`python benchmarks/sharded_memory.py [--whole] [--tensor-parallel N] [--preferences] [--quantized]` prints, for each
phase, the largest peak of any process beyond what it had after importing everything and training a model of a few
kilobytes.
`--whole` begins as every other engine does: each process draws or reads all of the model, and process 0 gathers all of
it to save it. `--preferences` trains a DoRA adapter of the model that was saved by DPO, whose reference that model is.
`--quantized` trains a LoRA adapter of the model in 8 bits on the disk, a quarter of its bytes.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import anyformer as af
from anyformer.adapters import LoraConfig, add_adapter
from anyformer.checkpoint import load, save, save_adapter
from anyformer.data.batch import Batch, PreferenceBatch
from anyformer.model import Transformer, build, skeleton
from anyformer.quantization import quantize
from anyformer.training.checkpoints import Checkpoints
from anyformer.training.losses import PreferenceLoss
from anyformer.training.memory import proc_field, return_freed_memory
from anyformer.training.optimizer import make_optimizer
from anyformer.training.precision import Precision
from anyformer.training.recipe import cut_of, make_strategy
from anyformer.training.strategies.base import Plan, Strategy
from anyformer.training.strategies.group import join

PROCESSES = 4
MEGABYTE = 1e6
_SIZE = {"vocab_size": 16384, "d_model": 1024, "decoder_layers": 16, "max_length": 64}
_TINY = {"vocab_size": 64, "d_model": 32, "decoder_layers": 1, "max_length": 64}


def config(size: dict[str, int]) -> af.ModelConfig:
    d_model = size["d_model"]
    return af.preset(
        "llama-nano",
        **size,
        attention={"heads": d_model // 16, "kv_heads": None, "head_dim": None},
        feed_forward={"width": 3 * d_model},
    )


class Phases:
    """The peak of each phase beyond the memory at the beginning, in MB, and its seconds."""

    def __init__(self) -> None:
        gc.collect()
        return_freed_memory()
        self.base = proc_field("self/status", "VmRSS") or 0
        self.peaks: dict[str, tuple[float, float]] = {}

    def begin(self) -> None:
        gc.collect()
        return_freed_memory()
        Path("/proc/self/clear_refs").write_text("5")
        self._begun = time.perf_counter()

    def end(self, name: str) -> None:
        peak = (proc_field("self/status", "VmHWM") or 0) - self.base
        self.peaks[name] = peak / MEGABYTE, time.perf_counter() - self._begun


def work(folder: Path, whole: bool, tensor: int, preferences: bool, quantized: bool) -> None:
    group = join("fsdp", "cpu")
    precision = Precision(torch.device("cpu"), torch.float32, "for a measurement")
    plan = Plan(precision, lambda model: make_optimizer("adamw", model, 1e-3))
    cut = None if whole else cut_of("fsdp", plan, group, tensor_parallel=tensor)
    tokens = np.random.default_rng(0).integers(0, 64, (PROCESSES, 32))
    batch = Batch(tokens, tokens)

    def learn_preferences(out: Path, phases: Phases) -> None:
        phases.begin()
        model = add_adapter(load(out / "model", cut=cut)[0], LoraConfig(rank=8, use_dora=True))
        strategy = make_strategy("fsdp", model, replace(plan, loss=PreferenceLoss), group)
        del model
        phases.end("read and measure rows")
        both = np.repeat(tokens, 2, axis=0)
        pairs = PreferenceBatch(both, both, reference=np.zeros(len(both), np.float32))
        phases.begin()
        reference = strategy.evaluate_rows(pairs, return_log_probabilities=True).numpy()
        phases.end("log-probabilities")
        phases.begin()
        strategy.step(0, replace(pairs, reference=reference), 1e-3)
        phases.end("a step of DPO")
        strategy.close()

    def learn_quantized(size: dict[str, int], out: Path, phases: Phases) -> None:
        if group.is_main:
            save(quantize(build(config(size)), "int8"), out / "model")
        group.any(False)
        phases.begin()
        model = add_adapter(load(out / "model", cut=cut)[0], LoraConfig(rank=8))
        strategy = make_strategy("fsdp", model, plan, group)
        del model
        phases.end("read the integers")
        phases.begin()
        for step in range(2):
            strategy.step(step, batch, 1e-3)
        phases.end("two steps of LoRA")
        phases.begin()
        checkpoints = Checkpoints(out / "checkpoints", 1)
        checkpoints.save(strategy, 2, {"meter": {}, "every": 1, "config": {}})
        checkpoints.wait()
        with strategy.saved() as it:
            if it is not None:
                save_adapter(it, out / "adapter", base="model")
        group.any(False)
        phases.end("save the adapter")
        strategy.close()

    def make(model: Transformer) -> Strategy:
        return make_strategy("fsdp", model, plan, group, tensor_parallel=tensor)

    def run(size: dict[str, int], phases: Phases, out: Path) -> None:
        if quantized:
            learn_quantized(size, out, phases)
            return

        def saved(strategy: Strategy, model: Path) -> None:
            with strategy.gathered() if whole else strategy.saved() as it:
                if it is not None:
                    save(it, model)
            strategy._gathered = None  # pyright: ignore[reportAttributeAccessIssue]
            group.any(False)

        phases.begin()
        torch.manual_seed(0)
        strategy = make(build(config(size), cut))
        phases.end("draw and shard")
        phases.begin()
        saved(strategy, out / "model")
        phases.end("save the model")
        strategy.close()
        del strategy
        if preferences:
            learn_preferences(out, phases)
            return
        phases.begin()
        strategy = make(load(out / "model", cut=cut)[0].requires_grad_(True))
        phases.end("read and shard")
        phases.begin()
        for step in range(2):
            begun = time.perf_counter()
            strategy.step(step, batch, 1e-3)
        seconds = time.perf_counter() - begun
        phases.end("two steps")
        phases.begin()
        checkpoints = Checkpoints(out / "checkpoints", 1)
        begun = time.perf_counter()
        checkpoints.save(strategy, 2, {"meter": {}, "every": 1, "config": {}})
        waited = time.perf_counter() - begun
        checkpoints.wait()
        phases.end("a checkpoint alone")
        phases.begin()
        checkpoints.save(strategy, 3, {"meter": {}, "every": 1, "config": {}})
        keep = strategy.before_change

        def timed() -> None:
            nonlocal waited
            begun = time.perf_counter()
            keep()
            waited += time.perf_counter() - begun

        strategy.before_change = timed
        strategy.step(2, batch, 1e-3)
        checkpoints.wait()
        phases.end("a step and a checkpoint")
        phases.peaks["wait of the step for it"] = 0.0, waited
        phases.peaks["a step alone"] = 0.0, seconds
        strategy.close()

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() if group.is_main else nullcontext("") as tiny:
        run(_TINY, Phases(), Path(group.broadcast(tiny)))
    gc.collect()
    phases = Phases()
    run(_SIZE, phases, folder)
    (folder / f"{group.rank}.json").write_text(json.dumps(phases.peaks))
    group.close()


def measure(
    folder: Path, *, whole: bool = False, tensor: int = 1, preferences: bool = False, quantized: bool = False
) -> dict[str, tuple[float, float]]:
    """The largest peak and time of each phase, in MB and seconds."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(PROCESSES)}
    flags = [*["--whole"] * whole, *["--preferences"] * preferences, *["--quantized"] * quantized]
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, f"--work={folder}", f"--tensor-parallel={tensor}", *flags],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(PROCESSES)
    ]
    statuses = [process.wait() for process in processes]
    if any(statuses):
        raise SystemExit("a process failed")
    peaks = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(PROCESSES)]
    return {phase: tuple(max(each[phase][i] for each in peaks) for i in range(2)) for phase in peaks[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--tensor-parallel", type=int, default=1)
    parser.add_argument("--preferences", action="store_true")
    parser.add_argument("--quantized", action="store_true")
    parser.add_argument("--work", type=Path)
    options = parser.parse_args()
    if options.work:
        work(options.work, options.whole, options.tensor_parallel, options.preferences, options.quantized)
        return
    size = sum(parameter.nbytes for parameter in skeleton(config(_SIZE)).parameters())
    print(
        f"model of {size / MEGABYTE:,.0f} MB, {PROCESSES} processes, a shard of {size / MEGABYTE / PROCESSES:,.0f} MB"
    )
    with tempfile.TemporaryDirectory() as folder:
        asked = {"whole": options.whole, "tensor": options.tensor_parallel}
        asked |= {name: getattr(options, name) for name in ("preferences", "quantized")}
        for phase, (peak, seconds) in measure(Path(folder), **asked).items():
            print(f"{phase:<24}{peak:>8,.0f} MB {seconds:>7.2f} s")


if __name__ == "__main__":
    main()
