"""What `anyformer plan` says beside what training takes: memory, and with --time the seconds of a step.

    python benchmarks/plan.py                    # every family, each in a process of its own; memory alone
    python benchmarks/plan.py --only 'llama'     # the cases whose names begin so
    python benchmarks/plan.py --twenty           # twenty rows of all kinds
    python benchmarks/plan.py --time             # time as well
    python benchmarks/plan.py --time --batch 4   # of smaller batches

Memory is what a process grows by while it takes twelve steps, less what it had after steps of a model with one layer
and 16 tokens: the interpreter, torch and the code that it has loaded. Several processes take 41, or as many as they
begin within a minute, for it may be long until each of gloo's threads has seen the largest weight. Time is the median
of eleven steps; the estimate is calibrated in another process, by `calibrate` on the same machine. Both are processor
time of one thread, so that other work on the machine decides less; of several processes, which share its cores, no time
is told.
"""

from __future__ import annotations

import argparse
import os
import socket
import time as clock
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

CASES: dict[str, list[str]] = {
    "gpt2-nano": ["--context", "128", "--batch-size", "16"],
    "gpt2": ["--context", "128", "--batch-size", "4"],
    "llama-nano": ["--context", "256", "--batch-size", "32"],
    "smollm2-135m": ["--context", "256", "--batch-size", "4"],
    "mistral-7b:d_model=384,decoder_layers=6,attention.heads=6,attention.kv_heads=2,attention.head_dim=64,"
    "feed_forward.width=1024,vocab_size=8192": ["--context", "256", "--batch-size", "8"],
    "qwen2.5-0.5b:d_model=384,decoder_layers=6,attention.heads=6,attention.kv_heads=2,attention.head_dim=64,"
    "feed_forward.width=1024,vocab_size=8192": ["--context", "256", "--batch-size", "8"],
    "qwen3-0.6b:d_model=384,decoder_layers=6,attention.heads=6,attention.kv_heads=2,attention.head_dim=64,"
    "feed_forward.width=1024,vocab_size=8192": ["--context", "256", "--batch-size", "8"],
    "bert-mini": ["--context", "128", "--batch-size", "16"],
    "roberta-base:encoder_layers=4,vocab_size=8192": ["--context", "128", "--batch-size", "8"],
    "distilbert-base:encoder_layers=3,vocab_size=8192": ["--context", "128", "--batch-size", "8"],
    "t5-small": ["--context", "128", "--batch-size", "8"],
    "mt5-small:vocab_size=16384": ["--context", "128", "--batch-size", "8"],
    "bart-base:encoder_layers=3,decoder_layers=3,vocab_size=8192": ["--context", "128", "--batch-size", "8"],
    "opus-mt:encoder_layers=3,decoder_layers=3,vocab_size=8192,embedding.padding=0": [
        "--context",
        "128",
        "--batch-size",
        "8",
    ],
    "pegasus-large:encoder_layers=2,decoder_layers=2,vocab_size=8192": ["--context", "128", "--batch-size", "8"],
    "transformer-tiny": ["--context", "128", "--batch-size", "16"],
}
WAYS: dict[str, list[str]] = {
    "float32": ["--dtype", "float32"],
    "bfloat16": ["--dtype", "bfloat16"],
    "int8": ["--dtype", "int8"],
    "checkpointing": ["--dtype", "float32", "--gradient-checkpointing"],
    "accumulation": ["--dtype", "float32", "--grad-accumulation", "4"],
    "LoRA": ["--dtype", "bfloat16", "--lora", "16", "--context", "64"],
    "LoRA over int8": ["--dtype", "bfloat16", "--lora", "16", "--quantize", "int8", "--context", "64"],
    "ddp": ["--dtype", "float32", "--engine", "ddp", "--processes", "2"],
    "fsdp": ["--dtype", "float32", "--engine", "fsdp", "--processes", "2"],
}

TASKS: dict[str, list[str]] = {
    "classify": ["--dtype", "bfloat16", "--task", "classify", "--context", "128"],
    "preference": ["--dtype", "bfloat16", "--task", "preference", "--lora", "16", "--context", "64"],
    "embed": ["--dtype", "bfloat16", "--task", "embed"],
    "tag": ["--dtype", "float32", "--task", "tag"],
}
"""Ways of models that can do the task."""
TWENTY: dict[str, list[str]] = {
    "gpt2-nano": ["float32", "checkpointing", "LoRA", "fsdp", "preference"],
    "llama-nano": ["bfloat16", "int8", "accumulation", "ddp", "classify"],
    "qwen3-0.6b": ["checkpointing", "LoRA over int8"],
    "bert-mini": ["float32", "LoRA over int8", "tag", "embed"],
    "t5-small": ["bfloat16"],
    "opus-mt": ["int8"],
    "transformer-tiny": ["checkpointing", "LoRA"],
}
"""Ways of some models: twenty rows that have all kinds of models and all ways, and take a quarter of an hour."""


def main() -> None:
    """Run the cases, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    parser.add_argument("--ways", nargs="*", default=list(WAYS))
    parser.add_argument("--twenty", action="store_true")
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--batch", help="texts, instead of each case's own number")
    options = parser.parse_args()
    columns = "| model | way | estimate | measured | of it |" + (
        " estimate | measured | of it |" if options.time else ""
    )
    print(columns)
    print("| --- | --- |" + " ---: |" * (columns.count("|") - 3), flush=True)
    for model, flags in CASES.items():
        if not model.startswith(options.only):
            continue
        ways = TWENTY.get(model.partition(":")[0], []) if options.twenty else options.ways
        for way in ways:
            batch = ["--batch-size", options.batch] if options.batch else []
            arguments = [model, *flags, *{**WAYS, **TASKS}[way], *batch]
            planned, measured = run("plan", arguments, options.time), run("measure", arguments, options.time)
            memory = _cells(planned["peak"] / 1e6, measured["peak"] / 1e6, "MB")
            times = " | | |" if options.time and "--processes" in arguments else ""
            if options.time and not times:
                times = _cells(planned["seconds"] * 1e3, measured["seconds"] * 1e3, "ms")
            print(f"| {model.partition(':')[0]} | {way} | {memory}{times}", flush=True)


def _cells(estimate: float, measured: float, unit: str) -> str:
    return f" {estimate:,.0f} {unit} | {measured:,.0f} {unit} | {estimate / measured - 1:+.0%} |"


_SERVER = get_context("forkserver")
_SERVER.set_forkserver_preload(
    ["anyformer.cli.plan", "anyformer.plan.plan", "anyformer.training.strategies.fsdp", "torch._dynamo"]
)


def run(what: str, arguments: list[str], time: bool) -> dict[str, Any]:
    """What a process of its own finds, which has imported what it needs; of several that train together, the first."""
    environments = list(_environments(what == "measure" and "--processes" in arguments))
    with ProcessPoolExecutor(len(environments), _SERVER) as pool:
        results = [pool.submit(child, what, time, arguments, environment) for environment in environments]
    return results[0].result()


def _environments(several: bool) -> Iterator[dict[str, str]]:
    if not several:
        yield {}
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for rank in range(2):
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}
        yield {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in ranks.items()}}


def child(what: str, time: bool, arguments: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """Plan, or measure, one case."""
    from anyformer.cli.plan import read_arguments
    from anyformer.plan.calibrate import calibrate, measure
    from anyformer.plan.step import count_step
    from anyformer.training.strategies.group import join

    os.environ.update(environment)
    clock.perf_counter = clock.process_time
    workload = read_arguments(arguments)
    if what == "plan":
        count = count_step(workload)
        return {"peak": count.peak, "seconds": calibrate(workload, count).seconds if time else 0.0}
    group = join(workload.config.engine, "cpu")
    measured = measure(workload, group, steps=40 if group.world_size > 1 else 11)
    group.close()
    return {"peak": measured.peak, "seconds": measured.step}


if __name__ == "__main__":
    main()
