"""Predictions of `anyformer plan --mesh` beside published figures, and for 8 to 4,096 devices.

    python benchmarks/cluster.py

Published: torchtitan's benchmarks of December 2024 and June 2025 (bfloat16 rows; float8 is not predicted) and of 64
A100 (its first docs/performance.md), MaxText's rows of TPU v5p. Selective checkpointing recomputes half of what a
layer multiplies.
"""

from collections.abc import Iterator
from dataclasses import replace
from math import log2

import anyformer as af
from anyformer.config import ModelConfig
from anyformer.errors import UserError
from anyformer.plan.cluster import ClusterStep, Mesh, predict
from anyformer.plan.devices import find_device

SMALL, LLAMA = af.preset("llama-3.2-1b"), af.preset("llama-3.1-8b")
LARGE = LLAMA.replace(
    d_model=8192,
    decoder_layers=80,
    attention=replace(LLAMA.attention, heads=64),
    feed_forward=replace(LLAMA.feed_forward, width=28672),
)
SELECTIVE = 0.5


def maxtext(billions: int) -> ModelConfig:
    """The model of MaxText's ``global_parameter_scale``."""
    each, rest = divmod(int(log2(billions)), 3)
    heads = 16 << each + (rest > 0)
    return LLAMA.replace(
        vocab_size=32000,
        d_model=128 * heads,
        decoder_layers=16 << each,
        attention=replace(LLAMA.attention, heads=heads, kv_heads=heads),
        feed_forward=replace(LLAMA.feed_forward, width=7168 << each + (rest > 1)),
    )


TORCHTITAN = (
    ("Llama 3.1 8B, 8 H100, compiled", LLAMA, Mesh(fsdp=8), "h100", 2, SELECTIVE, 6667),
    ("Llama 3.1 8B, 128 H100, compiled", LLAMA, Mesh(fsdp=128), "h100", 2, SELECTIVE, 6514),
    ("Llama 3.1 8B, 64 H100, compiled", LLAMA, Mesh(fsdp=8, tp=8), "h100", 12, SELECTIVE, 4378),
    ("Llama 3.1 70B, 256 H100, compiled", LARGE, Mesh(fsdp=32, tp=8), "h100", 16, 1.0, 597.3),
    ("Llama 3 8B, 64 A100", LLAMA, Mesh(fsdp=64), "a100", 1, SELECTIVE, 2973),
    ("Llama 3 70B, 64 A100", LARGE, Mesh(fsdp=64), "a100", 1, 1.0, 331),
)
"""Name, model, devices, their kind, texts of a group of devices, what is recomputed, tokens a second and device."""
MAXTEXT = (
    (32, Mesh(fsdp=16, tp=4), 7, 0.7147),
    (32, Mesh(dp=2, fsdp=16, tp=4), 7, 0.6943),
    (64, Mesh(fsdp=16, tp=4), 3, 0.7031),
    (64, Mesh(dp=2, fsdp=16, tp=4), 3, 0.6726),
    (128, Mesh(fsdp=16, tp=8), 1, 0.6868),
    (128, Mesh(dp=2, fsdp=16, tp=8), 1, 0.6634),
    (128, Mesh(fsdp=32, tp=8), 1, 0.6883),
    (128, Mesh(dp=2, fsdp=32, tp=8), 1, 0.5966),
)
"""Billions of parameters, devices (dp are slices), texts of a device, model FLOPs utilization."""
SCALES = (8, 64, 512, 4096)


def published() -> Iterator[tuple[str, float, float]]:
    """Name, predicted and published figure of each row."""
    for name, model, mesh, device, texts, recomputed, figure in TORCHTITAN:
        step = predict(model, mesh, find_device(device), texts * mesh.batches, 8192, recomputed=recomputed)
        yield f"{name}, {mesh}", step.tokens_per_second, figure
    for billions, mesh, texts, figure in MAXTEXT:
        step = predict(maxtext(billions), mesh, find_device("tpu-v5p"), texts * mesh.devices, 2048)
        yield f"MaxText {billions}B, {mesh.devices} TPU v5p, {mesh}", step.utilization, figure


def best(model: ModelConfig, device: str, devices: int) -> ClusterStep | None:
    """The fastest mesh that has the memory, of powers of two, for 4 million tokens of 8,192 at most."""
    steps = list[ClusterStep]()
    for tp in (1, 2, 4, 8):
        for cp in (1, 2, 4):
            for dp in (1, 2, 4, 8, 16):
                if devices % (tp * cp * dp):
                    continue
                mesh = Mesh(dp, devices // (tp * cp * dp), tp, cp)
                for texts in (1, 2, 4, 8, 16):
                    for recomputed in (0.0, 1.0):
                        if texts * mesh.batches > 512:
                            continue
                        try:
                            step = predict(
                                model, mesh, find_device(device), texts * mesh.batches, 8192, recomputed=recomputed
                            )
                        except UserError:
                            continue
                        if sum(step.memory.values()) < 0.85 * step.device.memory:
                            steps.append(step)
    return max(steps, key=lambda step: step.tokens_per_second, default=None)


def main() -> None:
    """Print both tables as Markdown."""
    print("| | predicted | published | ratio |\n| --- | --- | --- | --- |")
    for name, ours, theirs in published():
        shown = f"{ours:.0%} | {theirs:.0%}" if theirs < 1 else f"{ours:,.0f} | {theirs:,.0f}"
        print(f"| {name} | {shown} | {ours / theirs:.2f} |")
    print("\n| model | devices | mesh | texts a step | step | tokens/s a device | of the peak |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, model in (("1B", SMALL), ("8B", LLAMA), ("70B", LARGE)):
        for device in ("h100", "tpu-v5p"):
            for devices in SCALES:
                step = best(model, device, devices)
                if step is None:
                    print(f"| {name} | {devices:,} {device} | no mesh has the memory | | | | |")
                    continue
                print(
                    f"| {name} | {devices:,} {device} | {step.mesh} | {step.tokens // 8192} | {step.seconds:.2f} s | "
                    f"{step.tokens_per_second:,.0f} | {step.utilization:.0%} |"
                )


if __name__ == "__main__":
    main()
