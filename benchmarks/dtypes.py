"""The dtype that a run chooses by itself, and the time of its steps in each dtype, in one run.

    python benchmarks/dtypes.py
    python benchmarks/dtypes.py --rows llama-nano,gpt2

"Choosing" is the time of a measurement on an empty cache. A step is a whole training step (see `benchmarks/plan.py`);
the dtypes take turns of one process each, and the best step counts. "Lost" is what the chosen dtype takes beyond the
fastest but int8, which is never chosen.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time

ROWS: dict[str, dict[str, int | str]] = {
    "llama-nano": {"tokenizer": "bpe:2048"},
    "gpt2-nano": {"tokenizer": "bpe:2048"},
    "t5-nano": {"tokenizer": "unigram:2048"},
    "mixtral-nano": {"tokenizer": "bpe:2048"},
    "bert-tiny": {"tokenizer": "wordpiece:2048"},
    "gpt2": {"context": 512, "batch_size": 4},
    "smollm2-135m": {"context": 512, "batch_size": 4},
    "bert-base": {"context": 128, "batch_size": 16},
}
DTYPES = ("float32", "bfloat16", "int8")


def measure_one(preset: str, dtype: str) -> float:
    """Seconds of choosing a dtype, where none is given, or else of a step."""
    from anyformer.plan.calibrate import measure
    from anyformer.plan.devices import find_device
    from anyformer.plan.workload import make_workload
    from anyformer.spec import read_config
    from anyformer.training.precision import choose_precision
    from anyformer.training.recipe import step_products

    options = {**ROWS[preset], **({"dtype": dtype} if dtype else {"dtype": "float32"})}
    workload = make_workload(read_config(preset), options, find_device("cpu"))
    if dtype:
        return min(measure(workload, steps=20, seconds=8).seconds)
    begin = time.perf_counter()
    chosen = choose_precision("cpu", None, lambda: step_products(workload.model, workload.config))
    print(chosen, file=sys.stderr)
    return time.perf_counter() - begin


def run(preset: str, dtype: str) -> tuple[float, str]:
    """The number of a measurement in a process of its own, with an empty cache, and what it says beside."""
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, __file__, "--one", preset, dtype]
        environment = {**os.environ, "ANYFORMER_CACHE": cache}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout), done.stderr.strip()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(ROWS), help="presets, with commas between them")
    parser.add_argument("--one", nargs=2, metavar=("PRESET", "DTYPE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(measure_one(*options.one))
        return
    print("| model | choosing | chosen | float32 | bfloat16 | int8 | lost |\n|---|---|---|---|---|---|---|")
    for preset in options.rows.split(","):
        seconds, said = run(preset, "")
        chosen = said.split()[0]
        times = {dtype: run(preset, dtype)[0] for dtype in DTYPES}
        lost = times[chosen] / min(times["float32"], times["bfloat16"]) - 1
        steps = " | ".join(f"{1000 * times[dtype]:,.0f} ms" for dtype in DTYPES)
        print(f"| {preset} | {seconds:.2f} s | {chosen} | {steps} | {lost:.0%} |", flush=True)


if __name__ == "__main__":
    main()
