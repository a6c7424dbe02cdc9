"""AdamW, and Muon for the matrices inside the blocks with AdamW for everything else."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ParamSpec, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from anyformer import kernels
from anyformer.blocks.block import TransformerBlock
from anyformer.blocks.linear import GroupedLinear
from anyformer.dtensor import copy_like, distribute_like, full_tensor
from anyformer.errors import UserError, cut, nearest, quote
from anyformer.training.config import OPTIMIZERS

P = ParamSpec("P")
R = TypeVar("R")

_FUSED = ("cpu", "cuda", "mps")
"""Devices for which torch has one kernel for the whole update of AdamW."""
_COUNTING = ("xla", "tpu")
"""Devices on which AdamW counts its steps and corrects for them: the host would send numbers for each weight."""
_LEAST_RATE = 1e-12
"""A learning rate that changes no weight."""
# As in https://kellerjordan.github.io/posts/muon/ and torch.optim.Muon.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_STACK = 1 << 20
"""Numbers that are orthogonalised at a time, but at least one matrix: larger products fill the cores alone."""


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
        model: on its device, and sharded where it will be.
        learning_rate: one for all; `set_learning_rate` changes it.
        weight_decay: of matrices, decoupled.
        betas: AdamW's decay rates of gradients and of squared gradients.
        dtype: that in which Muon's matrix products are fastest. Weights and state keep their own.

    Raises:
        UserError: the name is none of `OPTIMIZERS`.
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
    counts = all(parameter.device.type in _COUNTING for parameter in rest)
    adamw = AdamW(groups, lr=learning_rate, betas=betas, fused=fused, capturable=counts)
    if name == "adamw":
        return adamw
    matrices = [parameter for parameter in trained if id(parameter) in inside]
    grouped = {part.weight: part.groups for part in model.modules() if isinstance(part, GroupedLinear)}
    return Muon(matrices, adamw, learning_rate, weight_decay=weight_decay, dtype=dtype, grouped=grouped)


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Use this learning rate from the next step on."""
    for group in optimizer.param_groups:
        # torch divides by it where it counts steps on the device: 0 would make weights without a gradient NaN.
        group["lr"] = max(rate, _LEAST_RATE) if group.get("capturable") else rate


def flatten_state(optimizer: Optimizer, names: Mapping[Any, str]) -> dict[str, Tensor]:
    """The state of an optimizer as one flat dict, which doesn't depend on the order of the parameters.

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
    """Replace the state of an optimizer, which need not have taken a step, by copies of what `flatten_state` returned.

    Where a parameter is a DTensor, its state is one as well, or each process takes its share of a whole tensor.

    Raises:
        UserError: the state is of another optimizer or another model; nothing has been changed.
    """
    entries: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    for entry, value in state.items():
        key, _, name = entry.partition(".")
        entries[name][key] = value
    parameters: dict[str, Tensor] = {name: parameter for parameter, name in names.items()}
    expected = {
        id(parameter): {"momentum_buffer"} if "momentum" in group else {"step", "exp_avg", "exp_avg_sq"}
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    # AdamW expects its count of steps beside the weights, unless it corrects for them on the host.
    on_device = any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
    copies: dict[Tensor, dict[str, Tensor]] = {}
    for name, values in entries.items():
        parameter = parameters.get(name)
        if parameter is None or set(values) != expected.get(id(parameter), set()):
            raise UserError(
                f"The checkpoint's optimizer state has {cut(', '.join(sorted(values)))} for {quote(name)}, which "
                "doesn't fit this run: resume it with the --optimizer and the model that it was saved with."
            )
        own = copies[parameter] = dict[str, Tensor]()
        for key, value in values.items():
            if key == "step":
                own[key] = value.detach().to(parameter.device if on_device else "cpu", copy=True)
            elif value.shape == parameter.shape:
                own[key] = copy_like(value, parameter)
            else:
                raise UserError(
                    f"The checkpoint's {key} of {quote(name)} has the shape {tuple(value.shape)}, and the model's is "
                    f"{tuple(parameter.shape)}: resume it with the model that it was saved with."
                )
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

    Compiled code reads gradients at the speed of memory, torch's norm at less than half of it. Nothing is written where
    the norm is below `max_norm` already, which the host knows without waiting.
    """
    parameters = list(parameters)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    # It needs all of a gradient in this process's memory.
    plain = all(type(each) is Tensor and each.device.type == "cpu" and each.is_contiguous() for each in gradients)
    if not gradients or not plain:
        return nn.utils.clip_grad_norm_(parameters, max_norm)
    norm = kernels.square_sum(gradients).sqrt()
    if not norm <= max_norm:
        factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factor)
    return norm


def _eager(method: Callable[P, R]) -> Callable[P, R]:
    """A method of an optimizer without the decorator that hides it from torch.compile.

    The decorator imports all of the compiler, which takes one to two seconds and 80 MB.
    """
    return getattr(method, "__wrapped__", method)


class _Eager(Optimizer):
    """An optimizer that never imports torch's compiler."""

    add_param_group = _eager(Optimizer.add_param_group)
    zero_grad = _eager(Optimizer.zero_grad)


class AdamW(_Eager, torch.optim.AdamW):
    """`torch.optim.AdamW` (Loshchilov & Hutter 2019), which never imports torch's compiler.

    Attributes:
        found_inf: Where it is 1, a step changes nothing, and the host need not know. Kernels that are not fused take
            it first, and what they changed is put back.
    """

    found_inf: Tensor | None = None

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._step_supports_amp_scaling = True

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update all parameters that have a gradient."""
        found_inf, step = self.found_inf, _eager(torch.optim.AdamW.step)
        if found_inf is None or self.defaults["fused"]:
            return step(self, closure)
        self.found_inf = None  # these kernels refuse it
        before = {tensor: tensor.clone() for tensor in self._tensors()}
        loss = step(self, closure)
        for tensor in self._tensors():
            tensor.copy_(torch.where(found_inf > 0, before.get(tensor, 0.0), tensor))
        self.found_inf = found_inf
        return loss

    def _tensors(self) -> Iterator[Tensor]:
        """The parameters and their state, which is zeros before the first step; not a count that the host keeps."""
        for group in self.param_groups:
            for parameter in group["params"]:
                states = self.state.get(parameter, {}).values()
                yield from (tensor for tensor in (parameter, *states) if tensor.device == parameter.device)


class Muon(_Eager):
    """Muon (Jordan et al. 2024) for matrices and AdamW for the rest, as one optimizer with one learning rate.

    torch.optim.Muon is the same update with its products always in bfloat16, which halves the speed of CPUs that have
    bfloat16 instructions but no matrix unit for them. Here the format is chosen; the tests hold the two to be equal.

    An orthogonal update is scaled by ``0.2 sqrt(max(rows, columns))``, to be as large as AdamW's usual one, so both
    are content with the same learning rate and weight decay (Liu et al. 2025, Muon is scalable for LLM training,
    section 2.2).

    Small matrices of one shape are orthogonalised as one stack, since starting many tiny products takes time. Matrices
    may be DTensors (FSDP2): a stack of them at a time is gathered, and orthogonalised in every process.

    Args:
        matrices: the parameters that Muon updates.
        rest: the optimizer of everything else.
        weight_decay: of the matrices, decoupled.
        momentum: share of the old momentum that is kept; the update looks ahead (Nesterov).
        dtype: the format of the matrix products.
        grouped: how many matrices, each with an update of its own, lie one below another in some of the parameters.

    Raises:
        ValueError: one of the matrices isn't one.
    """

    found_inf: Tensor | None = None
    """Where it is 1, a step changes nothing, as with a fused AdamW, and the host need not know."""

    def __init__(
        self,
        matrices: list[nn.Parameter],
        rest: torch.optim.AdamW,
        learning_rate: float,
        *,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.float32,
        grouped: Mapping[Tensor, int] | None = None,
    ) -> None:
        for matrix in matrices:
            if matrix.dim() != 2:
                raise ValueError(f"Muon updates matrices, not a parameter of shape {tuple(matrix.shape)}")
        own = {"params": matrices, "lr": learning_rate, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__([own, *rest.param_groups], {})
        self._rest = rest
        self._step_supports_amp_scaling = getattr(rest, "_step_supports_amp_scaling", False)
        self.dtype, self._grouped = dtype, dict(grouped or {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        own, *others = self.param_groups
        for stack in self._stacks([matrix for matrix in own["params"] if matrix.grad is not None]):
            self._update(stack, own)
        # One state and one set of groups, wherever they were loaded from.
        self._rest.param_groups, self._rest.state = others, self.state
        self._rest.found_inf = self.found_inf  # pyright: ignore[reportAttributeAccessIssue]
        self._rest.step()
        return loss

    def _update(self, matrices: list[nn.Parameter], group: dict[str, Any]) -> None:
        ahead = [full_tensor(self._ahead(matrix, group["momentum"])) for matrix in matrices]
        parts = [
            gradient.unflatten(0, (self._grouped.get(matrix, 1), -1))
            for matrix, gradient in zip(matrices, ahead, strict=True)
        ]
        updates = orthogonalise(torch.cat([part if _is_wide(part) else part.mT for part in parts]), self.dtype)
        for matrix, part, update in zip(matrices, parts, updates.split([len(part) for part in parts]), strict=True):
            mine = distribute_like((update if _is_wide(part) else update.mT).flatten(0, 1), matrix)
            decay = group["lr"] * group["weight_decay"]
            if self.found_inf is not None:
                taken = 1 - self.found_inf
                mine, decay = mine * taken, decay * taken
            matrix.mul_(1 - decay)
            matrix.add_(mine, alpha=-0.2 * group["lr"] * math.sqrt(max(part.shape[1:])))

    def _stacks(self, matrices: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
        """Parameters whose matrices have one shape, lying or standing, a few at a time."""
        alike: defaultdict[tuple[int, ...], list[nn.Parameter]] = defaultdict(list)
        for matrix in matrices:
            count = self._grouped.get(matrix, 1)
            alike[(*sorted((matrix.shape[0] // count, matrix.shape[1])), count)].append(matrix)
        for sizes, members in alike.items():
            count = max(1, _STACK // math.prod(sizes))
            for first in range(0, len(members), count):
                yield members[first : first + count]

    def _ahead(self, matrix: nn.Parameter, share: float) -> Tensor:
        """Nesterov's gradient, mixed with the momentum after it."""
        gradient, state = matrix.grad, self.state[matrix]
        assert gradient is not None
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        momentum: Tensor = state["momentum_buffer"]
        if self.found_inf is not None:
            gradient = torch.where(self.found_inf > 0, momentum, gradient)
        momentum.lerp_(gradient, 1 - share)
        return gradient.lerp(momentum, share)


def _is_wide(matrix: Tensor) -> bool:
    return matrix.shape[-2] <= matrix.shape[-1]


def orthogonalise(
    matrix: Float[Tensor, "*stack rows columns"], dtype: torch.dtype = torch.float32
) -> Float[Tensor, "*stack rows columns"]:
    """About ``U V^T`` of each matrix ``U S V^T``: singular values between 0.7 and 1.2, by a Newton-Schulz iteration.

    Each iteration is ``X <- a X + b (X X^T) X + c (X X^T)^2 X``. In float32 and for long matrices it runs on the
    small Gram matrix ``X X^T`` alone, of which each iteration is a polynomial, and X comes in at the end: 1.8 times
    fewer operations at 1 to 4. In bfloat16 that diverges: squares of small singular values are lost in its rounding,
    which the polynomials then enlarge.

    Args:
        matrix: is scaled in its own format first, for a gradient can be too small or too large for float16.
        dtype: the format of the products.
    """
    if matrix.shape[-2] > matrix.shape[-1]:
        return orthogonalise(matrix.mT, dtype).mT
    x = (matrix / matrix.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)).to(dtype)
    rows, columns = x.shape[-2:]
    if columns >= 2 * rows and torch.finfo(dtype).bits >= 32:
        return _by_gram(x).to(matrix.dtype)
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = _sum(x, _sum(gram, gram, gram, b, c), x, a, 1.0)
    return x.to(matrix.dtype)


def _by_gram(x: Tensor) -> Tensor:
    a, b, c = _COEFFICIENTS
    gram = x @ x.mT
    product = None
    for iteration in range(_ITERATIONS):
        factor = _sum(gram, gram, gram, b, c)
        factor.diagonal(dim1=-2, dim2=-1).add_(a)
        product = factor if product is None else factor @ product
        if iteration < _ITERATIONS - 1:
            gram = factor @ gram @ factor
    assert product is not None
    return product @ x


def _sum(added: Tensor, left: Tensor, right: Tensor, beta: float, alpha: float) -> Tensor:
    """``beta added + alpha left @ right``."""
    fused = torch.addmm if added.dim() == 2 else torch.baddbmm
    return fused(added, left, right, beta=beta, alpha=alpha)
