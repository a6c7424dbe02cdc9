"""Decoding of a mixture of experts beside a dense model of the size of its active weights, in turns.

    python benchmarks/mixture.py --quantize int4 --rounds 9

Both have 12 layers of width 1,024 and weights drawn at random: Qwen3-MoE's with 32 experts of width 512, 4 of them a
token, and Qwen3's with a feed-forward of width 2,048.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from typing import Any

import torch

import anyformer as af
from anyformer.generation.cached_decoder import DecoderStep

EXPERTS, USED, WIDTH = 32, 4, 512
VOCABULARY, PROMPT, NEW = 32_000, 8, 48
SIZE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 1024,
    "decoder_layers": 12,
    "max_length": 2048,
    "attention": {"heads": 16, "kv_heads": 8, "head_dim": 64},
    "embedding": {"tied": True},
}


def models(quantize: str | None) -> dict[str, af.Transformer]:
    """The dense model and the mixture, read from files as any model is."""
    dense = af.preset("qwen3-0.6b", **SIZE, feed_forward={"width": USED * WIDTH})
    mixture = {"width": WIDTH, "experts": {"count": EXPERTS, "used": USED}}
    configs = {"dense": dense, "mixture": af.preset("qwen3-30b-a3b", **SIZE, feed_forward=mixture)}
    found: dict[str, af.Transformer] = {}
    for name, config in configs.items():
        with tempfile.TemporaryDirectory() as folder:
            torch.manual_seed(0)
            af.save(af.build(config), folder)
            found[name], _ = af.load(folder, None if quantize else torch.bfloat16, quantize=quantize)
    return found


@torch.inference_mode()
def seconds(model: af.Transformer, step: DecoderStep) -> float:
    """Seconds of a token after a short prompt."""
    ids = torch.randint(VOCABULARY, (PROMPT + 1 + NEW,), generator=torch.Generator().manual_seed(0))
    cache = model.make_cache(1, ids.numel())
    step(ids[None, :PROMPT], cache, last_only=True)
    step(ids[None, PROMPT : PROMPT + 1], cache)
    began = time.perf_counter()
    for token in ids[PROMPT + 1 :]:
        step(token[None, None], cache)
    return (time.perf_counter() - began) / NEW


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quantize", choices=("int8", "int4"), help="default: bfloat16")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    steps = {name: (model, DecoderStep(model)) for name, model in models(arguments.quantize).items()}
    rounds = [{name: seconds(*each) for name, each in steps.items()} for _ in range(arguments.rounds)]
    dense, mixture = (statistics.median(each[name] for each in rounds) for name in steps)
    print(
        f"dense {1 / dense:.0f} tokens/s, mixture {1 / mixture:.0f}, {mixture / dense:.2f} of the time of the dense one"
    )


if __name__ == "__main__":
    main()
