"""Cross-entropy of a linear layer's outputs over a large vocabulary, without ever holding all of its logits.

The logits of a batch are its largest tensor by far: 2,048 tokens of GPT-2 make 412 MB of them in float32, and as much
again for their gradient. Here they are computed for some tokens at a time, in the dtype of the products, and replaced
by their gradient, which is known in the forward pass because nothing comes after a loss but a factor.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import BFloat16, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from anyformer.kernels.autocast import autocast_disabled, matmul_dtype
from anyformer.kernels.cpu import matmul as products
from anyformer.kernels.cpu import structs
from anyformer.kernels.cpu.library import Kernel
from anyformer.kernels.linear import quantized_input_grad, quantized_product
from anyformer.kernels.operation import operation
from anyformer.kernels.packed_weight import PackedWeight

KERNEL = Kernel("cross_entropy", structs.CrossEntropyArgs, "linear_cross_entropy in bfloat16", "avx512bf16")
SPARSE = Kernel("sparse_matmul", structs.SparseMatmulArgs, "gradients of linear_cross_entropy in int8", "avx512bf16")

IGNORED = -100
"""Targets of this value are ignored."""

_BYTES = 1 << 28
"""Size of the logits of a chunk of tokens: enough rows for fast products."""

_QUANTIZED_BYTES = 1 << 26
"""Bytes of logits at a time with a quantized weight: compiled products with it are as fast with fewer rows."""

_CHUNK_CPU, _CHUNK = 1 << 20, 1 << 25
"""Logits that are float32 at a time, on CPUs and on other devices."""

_VOCAB_CHUNK, _PACKED_VOCAB_CHUNK = 1 << 12, 1 << 14
"""Rows of the weight whose gradient is computed at a time: it comes in the dtype of the products and is accumulated in
float32; compiled products need room for packed operands."""

_SAMPLES = 256
"""Steps that the probabilities of a token are divided into, where the gradient of its logits is sampled."""

_SAMPLED_VOCAB = 1 << 12
"""Vocabulary from which it is sampled in int8: of fewer tokens, too many numbers are left to gain by it."""

_BLOCK = 256
"""Rows of the weight whose gradient a thread computes at a time."""

_ROW_MULTIPLE = 32
"""The number of kept rows is rounded up to a multiple of it, so that products have few shapes: torch's library for them
keeps megabytes of code for every shape that it met (docs/what-did-not-help.md)."""


def drop_ignored(
    input: Float[Tensor, "tokens d_model"], target: Int[Tensor, " tokens"]
) -> tuple[Float[Tensor, "rows d_model"], Int[Tensor, " kept"]]:
    """On a CPU, the tokens whose target isn't ignored, with some rows more than targets; elsewhere all of them.

    An accelerator would have to wait until the host knows their number.
    """
    if input.device.type != "cpu" or torch.compiler.is_compiling():
        return input, target
    keep = target != IGNORED
    if keep.all():
        return input, target
    index = keep.nonzero().squeeze(1)
    padding = F.pad(index, (0, -len(index) % _ROW_MULTIPLE), value=int(index[-1]) if len(index) else 0)
    return input[padding], target[index]


def linear_cross_entropy(
    input: Float[Tensor, "rows d_model"],
    linear_weight: Float[Tensor, "vocab d_model"],
    target: Int[Tensor, " tokens"],
    *,
    linear_bias: Float[Tensor, " vocab"] | None = None,
    label_smoothing: float = 0.0,
    matmul: str = "float",
) -> Float[Tensor, ""]:
    """Mean of ``-(1 - s) log p(target) - s mean(log p)`` in nats, where ``p = softmax(input @ weight.T + bias)``.

    The arguments are those of `torch.nn.functional.linear_cross_entropy`. It is differentiable once. Under autocast the
    products are computed in its dtype; all else is float32.

    Args:
        input: Hidden states; rows after the last target are ignored (see `drop_ignored`).
        target: Those of -100 count for nothing.
        label_smoothing: Share s of the target that is spread over the vocabulary (Szegedy et al. 2016, section 7).
        matmul: "int8": in training products are computed in integers of 8 bits, where that is faster.

    Raises:
        ValueError: the shapes don't agree.
    """
    if input.shape[-1] != linear_weight.shape[-1] or len(target) > len(input):
        shapes = tuple(input.shape), tuple(linear_weight.shape), tuple(target.shape)
        raise ValueError("hidden states {}, a weight {} and targets {} don't belong together".format(*shapes))
    if len(input) == len(target):
        input, target = drop_ignored(input, target)
    dtype = matmul_dtype(input)
    grads = torch.is_grad_enabled()
    int8 = matmul == "int8" and grads and input.device.type == "cpu"
    int8 = int8 and products.int8_is_faster(len(input), *linear_weight.shape) and products.supports_int8()
    operands = input, linear_weight, linear_bias
    needs_grad = [grads and part is not None and part.requires_grad for part in operands]
    with autocast_disabled(input):
        loss, *_ = chunked_cross_entropy(*operands, target, label_smoothing, dtype, int8, needs_grad)
    return loss


def _fake(input: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    parts = zip((input, weight, bias), rest[-1], strict=True)
    grads = [input.new_empty(0) if part is None or not needed else torch.empty_like(part) for part, needed in parts]
    return input.new_empty((), dtype=torch.float32), grads[0], grads[1], grads[2]


@operation("cross_entropy", _fake)
def chunked_cross_entropy(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    label_smoothing: float,
    dtype: torch.dtype,
    int8: bool,
    needs_grad: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss, and the gradients of input, weight and bias; those that aren't needed are empty."""
    vocab, device = len(weight), input.device
    most_rows = max(1, _BYTES // (vocab * dtype.itemsize))
    matmul: Callable[..., Tensor] | None = None
    # Most probabilities are less than half of a quantization step, so gradients are rounded stochastically.
    rounding: dict[str, Any] = {"stochastic": True} if int8 else {}
    if int8:
        matmul = products.int8_matmul
    elif products.supports_bf16(input, dtype) and products.has_amx():
        matmul = products.bf16_matmul
    elif products.fp32_is_faster(input[:most_rows], weight, dtype):
        matmul = products.fp32_matmul
    lower, lower_bias = weight, bias
    if matmul is None:
        lower, lower_bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    grad_input = torch.empty(input.shape, dtype=input.dtype, device=device) if needs_grad[0] else None
    empty = torch.empty if len(input) else torch.zeros
    grad_weight = empty(weight.shape, device=device) if needs_grad[1] else None
    grad_bias = torch.zeros(vocab, dtype=torch.float32, device=device) if needs_grad[2] else None

    def forward(x: Tensor) -> Tensor:
        if matmul is None:
            return F.linear(x.to(dtype), lower, lower_bias)
        return matmul(x.to(dtype), weight, bias, out=torch.empty(len(x), vocab, dtype=dtype))

    def backward(logits: Tensor, rows: slice) -> None:
        if grad_bias is not None:
            _add_column_sums(logits, grad_bias)
        x, add = input[rows].to(dtype), rows.start > 0
        if matmul is None:
            if grad_input is not None:
                grad_input[rows] = logits @ lower
            if grad_weight is not None:
                _write_grad_weight(logits, x, grad_weight, add=add)
            return
        for start in range(0, vocab, _PACKED_VOCAB_CHUNK):
            part = slice(start, start + _PACKED_VOCAB_CHUNK)
            if grad_input is not None:
                matmul(logits[:, part], weight[part].t(), out=grad_input[rows], add=start > 0, **rounding)
            if grad_weight is not None:
                matmul(logits[:, part].t(), x.t(), out=grad_weight[part], add=add, **rounding)

    compute = None
    sampling = int8 and vocab >= _SAMPLED_VOCAB and KERNEL.supports_bf16(input, dtype) and SPARSE.supported()
    sampling = sampling and {input.dtype, weight.dtype} <= structs.DTYPES.keys()
    if sampling and bool((target != IGNORED).all()):
        sampled = SampledGradient(weight, grad_input, grad_weight, grad_bias)
        compute, backward = sampled.loss_and_grad, partial(sampled.backward, input)
    loss, scale = in_chunks(input, target, label_smoothing, forward, backward, most_rows, dtype, compute)
    grads: list[Tensor] = []
    for grad, part in ((grad_input, input), (grad_weight, weight), (grad_bias, bias)):
        if grad is not None and scale is not None:
            grad *= scale
        grads.append(input.new_empty(0) if grad is None or part is None else grad.to(part.dtype))
    return loss, grads[0], grads[1], grads[2]


class SampledGradient:
    """An unbiased estimate of the gradient of logits, which is 0 nearly everywhere, and the products with it.

    Numbers of a step or more, 1/256 of a token's share of the loss, stay what they are. A smaller one becomes a step
    with the probability that it is a part of one, and else 0 (systematic sampling: Madow 1949). Some 250 numbers of a
    row of 50,257 are left, so the gradients of input and weight, two of the three products with a vocabulary, are sums
    of a few rows for each token. How near they are to the exact ones: docs/measurements/quality.md.

    Args:
        weight: [vocab, d_model].
        grad_input, grad_weight, grad_bias: Where to write the gradients; None: nowhere.
    """

    def __init__(
        self, weight: Tensor, grad_input: Tensor | None, grad_weight: Tensor | None, grad_bias: Tensor | None
    ) -> None:
        self._weight = weight.contiguous()
        self._grad_input, self._grad_weight, self._grad_bias = grad_input, grad_weight, grad_bias

    def loss_and_grad(
        self,
        logits: BFloat16[Tensor, "rows vocab"],
        targets: Int[Tensor, "rows 1"],
        label_smoothing: float,
        grad_scale: float,
    ) -> Float[Tensor, " rows"]:
        """The losses; the gradient of their sum, times `grad_scale`, is kept until `backward`."""
        rows, vocab = logits.shape
        capacity = 2 * _SAMPLES + 32  # a gradient's absolute values sum up to 2, and each lane may round up
        blocks = -(-vocab // _BLOCK)
        self._kept = torch.empty(rows, capacity), torch.empty(rows, capacity, dtype=torch.int32)
        self._starts = torch.empty(rows, blocks + 1, dtype=torch.int32)
        self._rows = structs.SparseRows(*map(structs.address, (*self._kept, self._starts)), capacity, _BLOCK)
        return compiled_loss_and_grad_(
            logits, targets, label_smoothing, grad_scale, sampled=self._rows, samples=_SAMPLES
        )

    def backward(self, input: Float[Tensor, "tokens d_model"], logits: Tensor, rows: slice) -> None:
        """Write the gradients of the rows, and those of weight and bias, or add to them."""
        count = len(self._starts)
        x, grad_input = input[rows][:count].bfloat16().contiguous(), None
        if self._grad_input is not None:
            grad_input = self._grad_input[rows]
            grad_input[count:] = 0  # rows without a target
        SPARSE.run(
            grad=self._rows,
            input=x,
            weight=self._weight,
            weight_dtype=structs.DTYPES[self._weight.dtype],
            grad_input=grad_input,
            grad_input_dtype=structs.DTYPES[input.dtype],
            grad_weight=self._grad_weight,
            grad_bias=self._grad_bias,
            rows=count,
            vocab_size=len(self._weight),
            width=x.shape[1],
            accumulate=rows.start > 0,
        )


def quantized_linear_cross_entropy(
    input: Float[Tensor, "rows d_model"],
    weight: PackedWeight,
    target: Int[Tensor, " tokens"],
    *,
    bias: Float[Tensor, " vocab"] | None = None,
    transposed: Callable[[], PackedWeight | None] = lambda: None,
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """`linear_cross_entropy` of a quantized weight, which gets no gradient (see `quantized_linear`)."""
    if len(input) == len(target):
        input, target = drop_ignored(input, target)
    input = input[: len(target)]
    needs_grad = [torch.is_grad_enabled() and part is not None and part.requires_grad for part in (input, bias)]
    grad_input = torch.empty_like(input) if needs_grad[0] else None
    grad_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and needs_grad[1] else None

    def forward(x: Tensor) -> Tensor:
        return quantized_product(x, weight, bias)

    def backward(logits: Tensor, rows: slice) -> None:
        if grad_bias is not None:
            _add_column_sums(logits, grad_bias)
        if grad_input is not None:
            grad_input[rows] = quantized_input_grad(logits, weight, lambda: matrix)

    most_rows = max(1, _QUANTIZED_BYTES // (weight.rows * input.dtype.itemsize))
    with torch.no_grad(), autocast_disabled(input):
        # Processes that have it spread among them put it together once, however many rows each of them has.
        matrix = transposed() if needs_grad[0] and products.supports_quantized(input) else None
        weight, matrix = weight.whole(), None if matrix is None else matrix.whole()
        loss, scale = in_chunks(input, target, label_smoothing, forward, backward, most_rows, input.dtype)
        grads = [grad if grad is None or scale is None else grad * scale for grad in (grad_input, grad_bias)]
        grads = [grad if grad is None else grad.to(input.dtype) for grad in grads]
    return WithGradients.apply(loss, grads, input, bias)  # pyright: ignore[reportReturnType]


class WithGradients(torch.autograd.Function):
    """A loss whose gradients are known."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, grads: Sequence[Tensor | None], *_: Tensor | None) -> Tensor:
        """The loss."""
        ctx.grads = grads
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The gradients, times that of the loss."""
        return None, None, *(None if grad is None else grad * grad_outputs[0] for grad in ctx.grads)


def chunk_rows(rows: int, most_rows: int) -> int:
    """The number of rows to compute at a time, about as many each time."""
    return max(1, -(-rows // max(1, -(-rows // most_rows))))


def in_chunks(
    input: Float[Tensor, "rows d_model"],
    target: Int[Tensor, " tokens"],
    label_smoothing: float,
    forward: Callable[[Tensor], Tensor],
    backward: Callable[[Tensor, slice], None],
    most_rows: int,
    dtype: torch.dtype,
    loss_and_grad: Callable[..., Tensor] | None = None,
) -> tuple[Tensor, Tensor | float | None]:
    """The mean loss of some rows at a time, and a factor of what `backward` computes; None: there is none.

    Args:
        forward: The logits of some rows of the input, in `dtype`.
        backward: Takes the gradient of some logits, and the rows that they are of.
        most_rows: How many rows may be computed at a time.
        loss_and_grad: Does what `loss_and_grad_` does; None: that, or compiled code.
    """
    kept = (target != IGNORED)[:, None]
    if input.device.type == "cpu" and not torch.compiler.is_compiling() and kept.all():
        count, valid = max(len(target), 1), None
    else:
        valid = kept
        count, target = valid.sum().clamp(min=1), target.where(valid[:, 0], 0)
    # In float16 small numbers divided by many tokens vanish.
    grad_scale, post_scale = (1.0, 1 / count) if dtype == torch.float16 else (1 / count, None)
    total = torch.zeros((), dtype=torch.float32, device=input.device)
    step = chunk_rows(len(input), most_rows)
    compiled = valid is None and KERNEL.supports_bf16(input, dtype)
    compute: Callable[..., Tensor] = loss_and_grad or (compiled_loss_and_grad_ if compiled else loss_and_grad_)
    for start in range(0, len(input), step):
        rows = slice(start, start + step)
        targets = target[rows, None]
        logits = forward(input[rows])
        logits[len(targets) :] = 0
        scale = grad_scale if valid is None else grad_scale * valid[rows]
        losses = compute(logits[: len(targets)], targets, label_smoothing, scale)
        total += losses.sum() if valid is None else (losses * valid[rows, 0]).sum()
        backward(logits, rows)
        del logits  # before the next ones are allocated
    return total / count, post_scale


def _scaled(grad: Tensor, *grads: Tensor) -> tuple[Tensor, ...]:
    return tuple(part * grad for part in grads)


chunked_cross_entropy.register_autograd(_scaled, saved=lambda _, outputs, __: outputs[1:])


def rows_at_a_time(logits: Float[Tensor, "rows vocab"]) -> int:
    """Rows of logits that are float32 at a time."""
    return max(1, (_CHUNK_CPU if logits.device.type == "cpu" else _CHUNK) // logits.shape[1])


def loss_and_grad_(
    logits: Float[Tensor, "rows vocab"],
    targets: Int[Tensor, "rows 1"],
    label_smoothing: float,
    grad_scale: float | Float[Tensor, "#rows 1"],
) -> Float[Tensor, " rows"]:
    """The losses; the logits are replaced by `grad_scale` times the gradient of their sum, computed in float32."""
    chunk = rows_at_a_time(logits)
    losses = torch.empty(len(logits), device=logits.device)
    for start in range(0, len(logits), chunk):
        rows = slice(start, start + chunk)
        part, target = logits[rows], targets[rows]
        scores = part.float()
        right, largest = scores.gather(1, target), scores.amax(dim=-1, keepdim=True)
        mean = label_smoothing * scores.mean(dim=-1, keepdim=True) if label_smoothing else 0.0
        # One exponential of each score: the largest probability, at least 1 / vocab, gives the sum of all.
        grad = torch.softmax(scores, dim=-1, out=scores)
        logsumexp = largest - grad.amax(dim=-1, keepdim=True).log()
        losses[rows] = (logsumexp - (1 - label_smoothing) * right - mean).squeeze(1)
        if label_smoothing:
            grad -= label_smoothing / logits.shape[1]
        grad.scatter_add_(1, target, grad.new_full((), label_smoothing - 1).expand_as(target))
        grad *= grad_scale[rows] if isinstance(grad_scale, Tensor) else grad_scale
        if grad is not part:
            part.copy_(grad)
    return losses


def compiled_loss_and_grad_(
    logits: BFloat16[Tensor, "rows vocab"],
    targets: Int[Tensor, "rows 1"],
    label_smoothing: float,
    grad_scale: float,
    **sampled: Any,
) -> Float[Tensor, " rows"]:
    """`loss_and_grad_` of contiguous logits in compiled code (see cpu/cross_entropy.cpp).

    Raises:
        IndexError: A target is outside the vocabulary.
    """
    rows, vocab = logits.shape
    targets = targets.long().contiguous()
    if rows and (targets.min() < 0 or targets.max() >= vocab):
        raise IndexError(f"targets lie in [{targets.min()}, {targets.max()}], but the vocabulary has {vocab} tokens")
    losses, sizes = torch.empty(rows), {"rows": rows, "vocab_size": vocab}
    factors = {"label_smoothing": label_smoothing, "grad_scale": grad_scale}
    KERNEL.run(logits=logits, targets=targets, losses=losses, **sizes, **factors, **sampled)
    return losses


def _add_column_sums(logits: Tensor, out: Tensor) -> None:
    """Add ``logits.sum(0)``, in float32; some columns at a time, for torch converts all that it sums first."""
    for part, columns in zip(out.split(_VOCAB_CHUNK), logits.split(_VOCAB_CHUNK, dim=1), strict=True):
        part.add_(columns.sum(dim=0, dtype=torch.float32))


def _write_grad_weight(logits: Tensor, x: Tensor, out: Tensor, *, add: bool) -> None:
    """``logits.T @ x``, in float32; torch's some rows at a time, for they come in the dtype of their factors."""
    if products.bf16_is_faster(x, min(len(out), _VOCAB_CHUNK), x.dtype):
        products.bf16_matmul(logits.t(), x.t(), out=out, add=add)
        return
    for rows, columns in zip(out.split(_VOCAB_CHUNK), logits.split(_VOCAB_CHUNK, dim=1), strict=True):
        product = columns.t() @ x
        rows.add_(product) if add else rows.copy_(product)


def in_parts(function: Callable[..., Tensor], *rows: Tensor, size: int) -> Tensor:
    """``function(*rows)``, a number for each row, computed for some at a time, and in the backward pass once more."""
    if len(rows[0]) <= size:
        return function(*rows)
    parts = zip(*(tensor.split(size) for tensor in rows), strict=True)
    return torch.cat([checkpoint(function, *part, use_reentrant=False, preserve_rng_state=False) for part in parts])
