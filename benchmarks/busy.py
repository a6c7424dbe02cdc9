"""Speed beside other programs that compete for the cores: training beside nanoGPT, decoding beside llama.cpp.

    python benchmarks/busy.py MODEL.gguf --nanogpt PATH/TO/nanoGPT

Each candidate runs in a process of its own, for the same time, in turns; beside it run none, one and two programs that
multiply matrices with numpy in two threads each. Training is of llama-nano's size (4 layers of width 128, 8 x 128
tokens, float32, fused AdamW) by the command, and of nanoGPT's model of that size; decoding is that of one stream of a
model in GGUF, which ours reads as int4. A speed is that of the second half of the time, when threads have been chosen;
that of a comparison of gpt2 and llama counts all that the command does, from its start to its page.

Needs `pip install 'anyformer[bench]' llama-cpp-py-sync`; peers that are not there are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

COMPETITORS = (0, 1, 2)
_COMPETITOR = """
import numpy, sys
a = numpy.random.rand(1500, 1500).astype("f4")
while True:
    a @ a
"""


def rate(work: Callable[[], float], seconds: float) -> float:
    """Units of work a second, in the second half of the time."""
    began, middle, done = time.perf_counter(), 0.0, 0.0
    while (now := time.perf_counter()) < began + seconds:
        if now > began + seconds / 2:
            middle = middle or now
            done += work()
        else:
            work()
    return done / (time.perf_counter() - middle)


def training(options: argparse.Namespace) -> float:
    """Tokens a second of the command, whose report has the speed of each evaluation."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "anyformer", "train", "llama-nano", "--dtype", "float32", "--batch-size", "8"]
        command += ["--context", "128", "--tokenizer", "char", "--minutes", f"{options.seconds / 60}"]
        subprocess.run([*command, "--runs", folder], check=True, capture_output=True)
        (metrics,) = Path(folder).rglob("metrics.jsonl")
        rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    speeds = [row["tokens_per_second"] for row in rows if row.get("tokens_per_second")]
    return statistics.mean(speeds[len(speeds) // 2 :])


def nanogpt(options: argparse.Namespace) -> float:
    """The same of nanoGPT's model in the loop of its train.py, not compiled, as its README has it for a CPU."""
    import torch

    sys.path.insert(0, str(options.nanogpt))
    from model import GPT, GPTConfig  # nanoGPT's

    config = GPTConfig(block_size=128, vocab_size=100, n_layer=4, n_head=4, n_embd=128, dropout=0.0, bias=False)
    model = GPT(config).train()
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), "cpu")
    tokens = torch.randint(100, (8, 129))

    def step() -> float:
        _, loss = model(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        return 8 * 128

    return rate(step, options.seconds)


def decoding(options: argparse.Namespace) -> float:
    """Tokens a second of `af.generate`, one stream."""
    import anyformer as af

    model, tokenizer = af.load(options.model, quantize="int4")

    def write() -> float:
        af.generate(model, tokenizer, ["Once upon a time"], max_new_tokens=32, stop_at_eos=False)
        return 32

    return rate(write, options.seconds)


def llama_cpp(options: argparse.Namespace) -> float:
    """The same of llama.cpp."""
    from llama_cpp_py_sync import Llama

    model = Llama(str(options.model), n_threads=2, n_threads_batch=2)

    def write() -> float:
        model.generate("Once upon a time", max_tokens=32, temperature=0.0, repeat_penalty=1.0)
        return 32

    return rate(write, options.seconds)


def comparison(options: argparse.Namespace) -> float:
    """Trained tokens a second of a whole comparison, of which there are 600,000."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "anyformer", "compare", "gpt2", "llama", "--tokens", "300000", "--seeds", "1"]
        began = time.perf_counter()
        command += ["--no-tasks", "--dtype", "float32", "--out", folder + "/comparison"]
        subprocess.run(command, check=True, capture_output=True)
        return 600_000 / (time.perf_counter() - began)


CANDIDATES = {
    "training": training,
    "nanoGPT": nanogpt,
    "decoding": decoding,
    "llama.cpp": llama_cpp,
    "comparison": comparison,
}


def measured(name: str, competitors: int, arguments: list[str]) -> float | None:
    """The speed of a candidate in a process of its own beside so many others; None where it can't run."""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    environment["GOMP_SPINCOUNT"] = "20000"  # as the command has it
    crowd = environment | dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "2")
    others = [subprocess.Popen([sys.executable, "-c", _COMPETITOR], env=crowd) for _ in range(competitors)]
    try:
        command = [sys.executable, __file__, *arguments, "--measure", name]
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    finally:
        for other in others:
            other.kill()
            other.wait()
    if ran.returncode:
        print(f"left out: {name} ({ran.stderr.strip().splitlines()[-1]})")
        return None
    return float(ran.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a GGUF file that llama.cpp and the library read")
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--only", nargs="*", choices=CANDIDATES, default=list(CANDIDATES))
    parser.add_argument("--measure", choices=CANDIDATES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(CANDIDATES[options.measure](options))
        return
    names = [name for name in options.only if name != "nanoGPT" or options.nanogpt]
    speeds: dict[str, list[list[float]]] = {name: [[] for _ in COMPETITORS] for name in names}
    for _ in range(options.rounds):
        for competitors in COMPETITORS:
            for name in names:
                speed = measured(name, competitors, sys.argv[1:])
                if speed is not None:
                    speeds[name][competitors].append(speed)
    print(f"{'tokens/s':<12}{'alone':>9}{'beside one':>18}{'beside two':>18}")
    for name, found in speeds.items():
        if all(found):
            alone, *others = (statistics.median(each) for each in found)
            shares = "".join(f"{speed:>11,.0f} ({speed / alone:>4.0%})" for speed in others)
            print(f"{name:<12}{alone:>9,.0f}{shares}")


if __name__ == "__main__":
    main()
