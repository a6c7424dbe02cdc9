"""Time to a validation loss on tiny Shakespeare, in characters.

    python benchmarks/shakespeare.py                                  # both recipes, three seeds each: 33 minutes
    python benchmarks/shakespeare.py --recipes quick --seeds 0        # one of them, one seed
    python benchmarks/shakespeare.py --nanogpt PATH/TO/nanoGPT        # times nanoGPT's own CPU recipe beside them
    python benchmarks/shakespeare.py -- --dtype float32               # changes the recipes

Seconds are those of the whole command with empty caches: reading the text, compiling, evaluating and saving are
included. The loss is the last one of the run, over all 111,540 validation characters (nanoGPT's split), in windows of
the model's context.

    recipe   bar      whose
    quick    1.88     nanoGPT's README, on a CPU (4 layers of width 128, 2,000 steps): in a sixth of the time
    ten      1.4697   nanoGPT's README, on a GPU (6 layers of width 384, 5,000 steps): in ten minutes

Exits with 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMON = ["--tokenizer", "char", "--optimizer", "muon", "--schedule", "linear"]
RECIPES: dict[str, tuple[float, list[str]]] = {
    "quick": (
        1.88,
        [
            *("--model.d-model", "96", "--model.feed-forward.width", "384", "--model.init.std", "0.09"),
            *("--model.embedding.ngrams", "5", "--model.embedding.ngram-rows", "32768"),
            *("--context", "64", "--batch-size", "16", "--steps", "110", "--warmup", "0.05", "--weight-decay", "0"),
        ],
    ),
    "ten": (
        1.4697,
        [
            *("--batch-size", "8", "--minutes", "10", "--warmup", "0.02", "--beta2", "0.95", "--weight-decay", "0.3"),
            *("--dtype", "int8"),
        ],
    ),
}
NANOGPT = (
    "config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 --log_interval=100 --block_size=64 "
    "--batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 --lr_decay_iters=2000 --dropout=0.0"
)
"""Its README's line; it logs less often."""


def train(data: Path, recipe: str, seed: int, changes: list[str]) -> tuple[float, float]:
    """Run a recipe; returns its validation loss in nats and its seconds."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "anyformer", "train", "modern-nano", "--data", str(data), *COMMON]
        places = ["--runs", folder, "--name", recipe, "--cache", f"{folder}/cache", "--seed", str(seed)]
        fresh = os.environ | {"ANYFORMER_CACHE": f"{folder}/compiled"}
        begun = time.monotonic()
        subprocess.run(
            [*command, *RECIPES[recipe][1], *places, *changes],
            check=True,
            stdout=subprocess.DEVNULL,
            env=fresh,
        )
        seconds = time.monotonic() - begun
        lines = (Path(folder) / recipe / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        losses = [record["validation_loss"] for record in map(json.loads, lines) if "validation_loss" in record]
    return losses[-1], seconds


def time_nanogpt(checkout: Path, data: Path) -> float:
    """Seconds of nanoGPT's own recipe, in a copy of the checkout, with the text prepared beforehand."""
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copytree(checkout, Path(folder) / "nanoGPT", ignore=shutil.ignore_patterns(".git"))
        prepared = copy / "data" / "shakespeare_char"
        shutil.copy(data, prepared / "input.txt")
        subprocess.run([sys.executable, "prepare.py"], cwd=prepared, check=True, stdout=subprocess.DEVNULL)
        begun = time.monotonic()
        command = [sys.executable, "train.py", *NANOGPT.split()]
        subprocess.run(command, cwd=copy, check=True, stdout=subprocess.DEVNULL)
        return time.monotonic() - begun


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/tinyshakespeare.txt"))
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT")
    parser.add_argument("changes", nargs="*", help="flags of anyformer train, after --")
    options = parser.parse_args()
    if not options.data.exists():
        print(f"skipped: there is no {options.data}; name the text with --data")
        return 0
    print("| recipe | bar | median | worst | seconds |\n| --- | ---: | ---: | ---: | ---: |")
    missed = False
    for recipe in options.recipes:
        bar = RECIPES[recipe][0]
        runs = [train(options.data, recipe, seed, options.changes) for seed in options.seeds]
        losses, seconds = zip(*runs, strict=True)
        worst, longest = max(losses), max(seconds)
        missed |= worst > bar
        print(f"| {recipe} | {bar} | {statistics.median(losses):.4f} | {worst:.4f} | {longest:.1f} |", flush=True)
    if options.nanogpt is not None:
        print(f"| nanoGPT, CPU recipe | | | | {time_nanogpt(options.nanogpt, options.data):.1f} |")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
