"""The optimizers by name: AdamW, and Muon for the matrices inside the blocks with AdamW for everything else."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from anyformer.blocks.block import TransformerBlock
from anyformer.errors import UserError, cut, nearest, quote
from anyformer.training.dtensor import copy_like
from anyformer.training.muon import Muon
from anyformer.training.run_config import OPTIMIZERS

_FUSED = ("cpu", "cuda", "mps")
"""Devices for which torch has one kernel for the whole update of AdamW."""


def make_optimizer(
    name: str,
    model: nn.Module,
    learning_rate: float,
    *,
    weight_decay: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.95),
    dtype: torch.dtype = torch.float32,
) -> Optimizer:
    """The optimizer of that name, for all parameters of a model that are trained.

    AdamW (Loshchilov & Hutter 2019) decays matrices, embedding tables among them, but not biases and the weights of
    norms: pulling those to zero keeps nothing from overfitting.

    Muon updates the matrices inside the blocks, and AdamW everything else: a row of an embedding table, of a head or of
    a table of relative positions belongs to one token or distance, so such a table is not a linear map, whose
    directions Muon would balance.

    Args:
        name: one of `OPTIMIZERS`.
        model: in its place already: on its device, and sharded where it is sharded.
        learning_rate: one for all; `set_learning_rate` changes it.
        weight_decay: of matrices, decoupled.
        betas: AdamW's decay rates of gradients and of squared gradients.
        dtype: of Muon's matrix products, the one in which they are fastest. Weights and state keep their own.

    Raises:
        UserError: there is no such optimizer.
    """
    if name not in OPTIMIZERS:
        raise UserError(f"There is no optimizer {quote(name)} ({nearest(name, OPTIMIZERS)}).")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    inside = _matrices_of_blocks(model) if name == "muon" else set[int]()
    rest = [parameter for parameter in trained if id(parameter) not in inside]
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in rest if parameter.dim() >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in rest if parameter.dim() < 2], "weight_decay": 0.0},
    ]
    fused = all(parameter.device.type in _FUSED for parameter in rest)
    adamw = torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=fused)
    if name == "adamw":
        return adamw
    matrices = [parameter for parameter in trained if id(parameter) in inside]
    return Muon(matrices, adamw, learning_rate, weight_decay=weight_decay, dtype=dtype)


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Use this learning rate from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def flatten_state(optimizer: Optimizer, names: Mapping[Any, str]) -> dict[str, Tensor]:
    """The state of an optimizer, as one flat dict that doesn't depend on the order of the parameters.

    Args:
        names: of the parameters: `{parameter: name for name, parameter in model.named_parameters()}`.

    Returns:
        Tensors by `exp_avg.NAME`, `exp_avg_sq.NAME`, `step.NAME` and `momentum_buffer.NAME`; not copies. Empty
        before the first step. Parameters that never had a gradient have no entry.
    """
    return {
        f"{key}.{name}": value
        for parameter, name in names.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_flat_state(optimizer: Optimizer, names: Mapping[Any, str], state: Mapping[str, Tensor]) -> None:
    """Put copies of what `flatten_state` gave in the place of what an optimizer remembers.

    Args:
        optimizer: made as the one that the state is of; it need not have taken a step.
        names: of the parameters. Where one is a DTensor, each process takes its share of a whole tensor in the state.
        state: of whole tensors, or of DTensors spread like the parameters.

    Raises:
        UserError: the state is of another optimizer or another model; nothing has been changed.
    """
    found: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    for entry, value in state.items():
        key, _, name = entry.partition(".")
        found[name][key] = value
    parameters: dict[str, Tensor] = {name: parameter for parameter, name in names.items()}
    expected = {
        id(parameter): {"momentum_buffer"} if "momentum" in group else {"step", "exp_avg", "exp_avg_sq"}
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    for name, values in found.items():
        parameter = parameters.get(name)
        if parameter is None or set(values) != expected.get(id(parameter), set()):
            raise UserError(
                f"The checkpoint's optimizer state has {cut(', '.join(sorted(values)))} for {quote(name)}, which "
                "doesn't fit this run: resume it with the --optimizer and the model that it was saved with."
            )
        for key, value in values.items():
            if key != "step" and value.shape != parameter.shape:
                raise UserError(
                    f"The checkpoint's {key} of {quote(name)} has the shape {tuple(value.shape)}, and the model's is "
                    f"{tuple(parameter.shape)}: resume it with the model that it was saved with."
                )
    # A fused AdamW expects its count of steps beside the weights, the plain one on the CPU.
    fused = any(group.get("fused") for group in optimizer.param_groups)
    copies = {
        parameters[name]: {
            key: value.detach().to(parameters[name].device if fused else "cpu", copy=True)
            if key == "step"
            else copy_like(value, parameters[name])
            for key, value in values.items()
        }
        for name, values in found.items()
    }
    optimizer.state.clear()
    optimizer.state.update(copies)


def _matrices_of_blocks(model: nn.Module) -> set[int]:
    """Ids of the matrices inside transformer blocks, lookup tables aside."""
    inside = [part for block in model.modules() if isinstance(block, TransformerBlock) for part in block.modules()]
    tables = {id(part.weight) for part in inside if isinstance(part, nn.Embedding)}
    matrices = {id(p) for part in inside for p in part.parameters(recurse=False) if p.dim() == 2}
    return matrices - tables


def clip_grad_norm_(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """`torch.nn.utils.clip_grad_norm_`, in a third of the time on CPUs.

    A dot product reads a gradient at the speed of memory, which torch's norm does at less than half of it. Nothing is
    written where the norm is below `max_norm` already, which the host knows without waiting.
    """
    parameters = list(parameters)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients or not all(_is_plain(gradient) for gradient in gradients):
        return nn.utils.clip_grad_norm_(parameters, max_norm)
    flat = [gradient.view(-1) for gradient in gradients]
    norm = torch.stack([torch.dot(gradient, gradient) for gradient in flat]).sum().sqrt()
    if not norm <= max_norm:
        factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factor)
    return norm


def _is_plain(gradient: Tensor) -> bool:
    """Whether a gradient has data in this process's memory that a dot product reads in one go."""
    return type(gradient) is Tensor and gradient.device.type == "cpu" and gradient.is_contiguous()
