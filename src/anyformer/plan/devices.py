"""Peaks and prices of devices: the one place for these numbers, each with its source."""

import os
from dataclasses import dataclass, field

from anyformer.errors import UserError, nearest
from anyformer.training.memory import proc_field

PRICES_OF = "December 2024"
"""When the prices were right: of an hour of one GPU of Amazon EC2 in the United States, the instance's price divided by
its GPUs. Those of H100, H200 and A100 are of Capacity Blocks (aws.amazon.com/ec2/capacityblocks/pricing), the others on
demand (g4dn, g5, g6, g6e and p3). They change, and others ask for less: ``--price-per-hour`` says what you pay.

Read again in November 2026, in copies of those pages or in others that quote them: the prices of Capacity Blocks, and
the peaks of H100, A100, V100, L40S and RTX 4090. The other numbers are as they were first written down."""

SHARES = (0.2, 0.35, 0.5)
"""Low, likely and high share of a GPU's peak that training reaches. PaLM reached 46% (Chowdhery et al. 2022, table 3),
Megatron-LM 44-52% on A100 (Narayanan et al. 2021, table 1), torchtitan about 35% for Llama 3.1 8B on H100 (Liang et al.
2024, table 1). Models of less than a billion parameters are nearer the low one, for their products are small."""

CPU_SHARES = (0.25, 0.5, 0.8)
"""Shares of the measured peak that steps reach (docs/measurements/training.md), where nothing was calibrated."""

CUDA_CONTEXT = 500_000_000
"""Bytes that CUDA and its libraries take on a GPU before the first tensor, about."""


@dataclass(frozen=True)
class Device:
    """A device to train on.

    Attributes:
        name: as `--device` takes it.
        memory: in bytes.
        peak: FLOPs a second of dense products, by dtype. TF32 is not counted, as torch does not use it unasked.
        price: of an hour, in US dollars; None: unknown.
        source: where the peaks come from.
    """

    name: str
    memory: float
    peak: dict[str, float] = field(default_factory=dict[str, float])
    price: float | None = None
    source: str = ""


def _gpu(
    name: str, memory: float, narrow: float, fp32: float, source: str, price: float | None = None, *, bf16: bool = True
) -> Device:
    """Gigabytes, and teraflops in 16 bits and in float32."""
    peak = {"float32": fp32, **({"bfloat16": narrow} if bf16 else {}), "float16": narrow}
    return Device(name, memory * 1e9, {dtype: teraflops * 1e12 for dtype, teraflops in peak.items()}, price, source)


DEVICES = {
    device.name: device
    for device in (
        _gpu("h200", 141, 989.4, 66.9, "NVIDIA H200 datasheet (2024), SXM, without sparsity", 5.408),
        _gpu("h100", 80, 989.4, 66.9, "NVIDIA H100 datasheet (2023), SXM, without sparsity", 4.916),
        _gpu("a100", 80, 312, 19.5, "NVIDIA A100 datasheet (2021), 80 GB SXM, without sparsity"),
        _gpu("a100-40gb", 40, 312, 19.5, "NVIDIA A100 datasheet (2021), 40 GB, without sparsity", 1.844),
        _gpu("l40s", 48, 362, 91.6, "NVIDIA L40S datasheet (2023), without sparsity", 1.861),
        _gpu("l4", 24, 121, 30.3, "NVIDIA L4 datasheet (2023), without sparsity", 0.805),
        _gpu("a10g", 24, 70, 35, "AWS EC2 G5, NVIDIA A10G (2021), without sparsity", 1.006),
        _gpu("v100", 16, 125, 15.7, "NVIDIA V100 datasheet (2018), SXM2 16 GB", 3.06, bf16=False),
        _gpu("t4", 16, 65, 8.1, "NVIDIA T4 datasheet (2018)", 0.526, bf16=False),
        _gpu("rtx-4090", 24, 165.2, 82.6, "NVIDIA Ada GPU architecture (2023), sums in float32"),
        _gpu("rtx-3090", 24, 71, 35.6, "NVIDIA Ampere GA102 architecture (2021), sums in float32"),
        _gpu("mi300x", 192, 1307.4, 163.4, "AMD Instinct MI300X data sheet (2023), without sparsity"),
        Device("tpu-v5p", 95e9, {"bfloat16": 459e12, "float32": 76.5e12},
               source="Google's page of TPU v5p (2024); float32 in six passes of bfloat16"),
    )
}  # fmt: skip


def find_device(name: str | None) -> Device:
    """The device of a name; None or cpu: this machine's processors. Raises UserError for one that is not in the table.

    Memory of this machine is what is available, the cache of files counted.
    """
    if name in (None, "cpu"):
        memory = float(proc_field("meminfo", "MemAvailable") or "inf")
        if memory == float("inf") and hasattr(os, "sysconf"):
            memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return Device("cpu", memory, source="measured on this machine")
    if name not in DEVICES:
        names = ("cpu", *DEVICES)
        raise UserError(f"--device {name}: there is no such device in the table ({nearest(str(name), names)}).")
    return DEVICES[name]


def check_price(price_per_hour: float | None) -> None:
    """Raise UserError for what is no price of an hour."""
    if price_per_hour is not None and not 0 <= price_per_hour < float("inf"):
        raise UserError(f"--price-per-hour {price_per_hour} is a sum of money, from 0 on.")
