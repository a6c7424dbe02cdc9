"""The step of a model on many devices, predicted on paper: arithmetic, bytes between devices and what hides them.

Nothing is run. `NETWORKS` has the speeds of links and the shares that others measured; docs/scaling.md compares the
result with figures that torchtitan and MaxText published.
"""

import math
from collections.abc import Generator
from dataclasses import dataclass, fields, replace
from functools import cache

from anyformer.analysis import part_costs
from anyformer.config import ModelConfig
from anyformer.errors import UserError, quote
from anyformer.plan.devices import Device

_BF16, _FP32 = 2, 4
_ADAMW = 8
_HOP = 5e-6
"""Seconds that a message takes from one node to the next."""
_COLLECTIVES = 4
"""Collectives of a layer's forward pass with tensor parallelism whose norms are sequence-parallel: before and after
attention and the feed-forward network (Korthikanti et al. 2022, section 4.2.2); its backward pass has as many."""


@dataclass(frozen=True)
class Network:
    """Links between devices of one kind, and what training reaches of their arithmetic.

    Attributes:
        node: devices that the fast links connect; None: all but replicas, as TPUs of a slice.
        link: bytes a second that a device receives within a node, as collectives reach them.
        network: bytes a second that a device receives from other nodes.
        share: of the peak that compiled products and attention reach while nothing is waited for.
        exposed: share of the time of tensor parallelism's collectives that products don't hide.
        source: of these numbers.
    """

    node: int | None
    link: float
    network: float
    share: float
    exposed: float
    source: str


_NVLINK = "NVLink's datasheet, of which collectives reach four fifths; 400 Gbit/s a GPU"
NETWORKS = {
    "h100": Network(8, 360e9, 50e9, 0.405, 1.0, f"{_NVLINK}; share: torchtitan, Llama 3.1 8B on 8 GPUs, compiled"),
    "h200": Network(8, 360e9, 50e9, 0.405, 1.0, f"{_NVLINK}; share: as h100"),
    "a100": Network(8, 240e9, 25e9, 0.58, 1.0, f"{_NVLINK}, here 200; share: torchtitan, Llama 3 8B on 64 GPUs"),
    "tpu-v5p": Network(None, 300e9, 6.25e9, 0.72, 0.0, "Google's v5p page (2024), half of a chip's links one way; "
                       "share: MaxText, 32B on 64 chips, whose compiler hides the collectives"),
}  # fmt: skip
_FSDP_EXPOSED = 0.1
"""Share of the time of collectives of weights and gradients that is not hidden even where products take longer."""


@dataclass(frozen=True)
class Mesh:
    """Devices by kind of parallelism: replicas, shards of the weights, parts of matrices, and parts of the context."""

    dp: int = 1
    fsdp: int = 1
    tp: int = 1
    cp: int = 1

    @property
    def devices(self) -> int:
        """All devices."""
        return self.dp * self.fsdp * self.tp * self.cp

    @property
    def batches(self) -> int:
        """Groups of devices that read texts of their own."""
        return self.dp * self.fsdp

    def __str__(self) -> str:
        return " x ".join(f"{field.name} {getattr(self, field.name)}" for field in fields(self))


def parse_mesh(text: str | None, devices: int | None) -> Mesh:
    """The mesh of a text such as ``fsdp=32,tp=8``; fsdp has the devices that are left.

    Raises:
        UserError: another name, no number from 1 on, or a product that is not the number of devices.
    """
    if devices is not None and devices < 1:
        raise UserError(f"--devices {devices}: a cluster has one device or more.")
    names, sizes = [field.name for field in fields(Mesh)], dict[str, int]()
    for part in text.split(",") if text else ():
        name, _, size = part.strip().partition("=")
        if name not in names or name in sizes or not size.isdecimal() or not int(size[:9]):
            raise UserError(f"--mesh {quote(text)}: write sizes of {', '.join(names)}, as in fsdp=32,tp=8.")
        sizes[name] = int(size[:9])
    mesh = Mesh(**sizes)
    if "fsdp" not in sizes and devices is not None and devices % mesh.devices == 0:
        mesh = Mesh(**sizes, fsdp=devices // mesh.devices)
    if devices is not None and mesh.devices != devices:
        raise UserError(f"--mesh {quote(text)} has {mesh.devices:,} devices, and --devices says {devices:,}.")
    return mesh


@dataclass(frozen=True)
class Exchange:
    """Collectives of one kind in a step: bytes that each device receives, their seconds, and those that are waited."""

    name: str
    bytes: float
    seconds: float
    exposed: float


@dataclass(frozen=True)
class ClusterStep:
    """The step of a model on a mesh of devices, predicted; for one device unless it says otherwise.

    Attributes:
        tokens: of a step, of all devices.
        flops: of a step, recomputed ones among them.
        model_flops: those without what is recomputed, attention counted whole, as published utilizations do.
        exchanges: what is sent meanwhile.
        memory: bytes by part: weights, gradients and optimizer in float32, activations by Korthikanti's formula.
        device: its peak and its memory.
    """

    mesh: Mesh
    tokens: int
    flops: float
    model_flops: float
    compute: float
    exchanges: tuple[Exchange, ...]
    memory: dict[str, float]
    device: Device

    @property
    def seconds(self) -> float:
        """Time of a step."""
        return self.compute + sum(exchange.exposed for exchange in self.exchanges)

    @property
    def tokens_per_second(self) -> float:
        """Tokens a second and device."""
        return self.tokens / self.mesh.devices / self.seconds

    @property
    def utilization(self) -> float:
        """Model FLOPs utilization (Chowdhery et al. 2022, appendix B)."""
        return self.model_flops / self.seconds / self.device.peak["bfloat16"]


def predict(
    model: ModelConfig, mesh: Mesh, device: Device, batch_size: int, context: int, *, recomputed: float = 0.0
) -> ClusterStep:
    """Predict a training step in bfloat16 with float32 weights and AdamW.

    Args:
        recomputed: Share of the layers' forward pass that is computed again; 1 with gradient checkpointing.

    Raises:
        UserError: a device whose links are not known, a batch or a context that can't be shared, or heads that can't.
    """
    network = NETWORKS.get(device.name)
    if network is None:
        raise UserError(f"--mesh: the links of --device {device.name} are not known, but of {', '.join(NETWORKS)}.")
    if min(batch_size, context) < 1 or batch_size % mesh.batches or context % mesh.cp:
        raise UserError(
            f"--mesh: {mesh.batches:,} groups of devices can't share --batch-size {batch_size} evenly, or cp {mesh.cp} "
            f"--context {context}: take multiples, from 1 on."
        )
    heads = model.attention.kv_heads or model.attention.heads
    if heads % mesh.tp:
        raise UserError(f"--mesh: tp {mesh.tp} can't share {heads} heads of keys evenly.")
    layers = model.encoder_layers + model.decoder_layers
    attended = context if model.encoder_layers else -(-context // 2)  # a causal text's tokens see half of it
    parameters, forward, head = _costs(model, attended)
    again = recomputed * (forward - head)
    tokens = batch_size * context
    here = tokens / mesh.batches / mesh.cp
    flops = tokens * (3 * forward + again) / mesh.devices
    compute = flops / (network.share * device.peak["bfloat16"])
    kept, width = parameters / mesh.fsdp / mesh.tp, model.d_model
    activations = here / mesh.tp * width * (2 if recomputed == 1 else 34) * layers
    return ClusterStep(
        mesh=mesh,
        tokens=tokens,
        flops=flops,
        model_flops=3 * tokens * _costs(model, context)[1] / mesh.devices,
        compute=compute,
        exchanges=tuple(_exchanges(model, mesh, network, here, parameters, compute, recomputed)),
        memory={
            "weights": _FP32 * kept,
            "gradients": _FP32 * kept,
            "optimizer": _ADAMW * kept,
            "activations": activations,
            "logits": _FP32 * here / mesh.tp * model.vocab_size,
        },
        device=device,
    )


@cache
def _costs(model: ModelConfig, attended: int) -> tuple[int, int, int]:
    """Parameters, and FLOPs of a token's forward pass, in all and of the head."""
    costs = part_costs(model, attended)
    head = sum(part.flops for part in costs if part.name == "head")
    return sum(part.parameters for part in costs), sum(part.flops for part in costs), head


def _exchanges(
    model: ModelConfig, mesh: Mesh, network: Network, tokens: float, parameters: float, compute: float, again: float
) -> Generator[Exchange]:
    layers, passes = model.encoder_layers + model.decoder_layers, 2 + again
    network = replace(network, node=network.node or mesh.devices // mesh.dp)
    # Devices side by side in a mesh are those of tp, then cp, fsdp and dp, so that the most is sent over fast links.
    if mesh.tp > 1:
        count = _COLLECTIVES * passes * layers + 4  # embedding and head, both ways
        size = _BF16 * tokens * model.d_model
        seconds = count * _time(size, mesh.tp, 1, network)
        yield Exchange(
            "tensor-parallel activations", count * _received(size, mesh.tp), seconds, network.exposed * seconds
        )
    if mesh.cp > 1:
        attention = model.attention
        head_dim = attention.head_dim or model.d_model // attention.heads
        keys = 2 * (attention.kv_heads or attention.heads) * head_dim / mesh.tp
        size = _BF16 * tokens * mesh.cp * keys
        count = (2 * passes - 1) * layers  # their gradients travel as well
        seconds = count * _time(size, mesh.cp, mesh.tp, network)
        yield Exchange("context-parallel keys", count * _received(size, mesh.cp), seconds, _hidden(seconds, compute))
    inner, weights = mesh.tp * mesh.cp, parameters / mesh.tp
    if mesh.fsdp > 1:
        each = weights / layers
        gather, reduce = (_time(size * each, mesh.fsdp, inner, network) for size in (_BF16, _FP32))
        seconds = layers * (2 * gather + reduce)
        size = (2 * _BF16 + _FP32) * weights
        yield Exchange("fsdp weights and gradients", _received(size, mesh.fsdp), seconds, _hidden(seconds, compute))
    if mesh.dp > 1:
        size = _FP32 * weights / mesh.fsdp
        seconds = 2 * _time(size, mesh.dp, inner * mesh.fsdp, network)
        yield Exchange("dp gradients", 2 * _received(size, mesh.dp), seconds, _hidden(seconds, compute / 2))


def _received(size: float, devices: int) -> float:
    return size * (devices - 1) / devices


def _time(size: float, devices: int, inner: int, network: Network) -> float:
    """Seconds in which each of some devices gathers a tensor's shards, or reduces its own.

    Args:
        inner: Devices between two of them, which share something else meanwhile.
    """
    together = max(1, (network.node or 1) // inner)  # of the group, in one node: they share what the node receives
    if devices <= together:
        return _received(size, devices) / network.link
    nodes = math.ceil(devices / together)
    return _received(size, devices) / min(network.link, network.network * together) + _HOP * (nodes - 1)


def _hidden(seconds: float, compute: float) -> float:
    """Seconds of collectives that are waited for, where arithmetic that takes so long is computed meanwhile."""
    return max(_FSDP_EXPOSED * seconds, seconds - compute)
