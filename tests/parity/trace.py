"""Everything that one pass forward and back leaves behind, under names that both sides share."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from anyformer.families import FAMILIES
from anyformer.model import Transformer
from tests.parity.conversion import TOLERANCE
from tests.parity.model_spec import Inputs, ModelSpec, labels

Trace = dict[str, Tensor]
GRADIENT = "gradient of "
Roundings = Sequence[tuple[Trace, Trace]]
"""What models make of a batch, in float32 and in float64."""


def of_theirs(model: PreTrainedModel, drawn: ModelSpec, inputs: Inputs) -> Trace:
    """What Hugging Face's model makes of a batch; padding is left out."""
    answers = labels(drawn, inputs)
    if answers is not None and answers.is_floating_point():
        answers = answers.to(model.dtype)
    given = inputs.theirs if answers is None else {**inputs.theirs, "labels": answers}
    out: Any = model(**given, output_hidden_states=True)
    states = out.get("decoder_hidden_states") or out.hidden_states
    trace = _trace(drawn, inputs, states, out.get("encoder_hidden_states"), out.get("pooler_output"), out.get("logits"))
    _backward(trace, out.get("loss"))
    return trace | their_gradients(model)


def of_ours(model: Transformer, drawn: ModelSpec, inputs: Inputs) -> Trace:
    """What our model makes of it, the gradients under the names and in the layout of Hugging Face's files."""
    out = model(**inputs.ours, return_hidden=True)
    trace = _trace(drawn, inputs, out.hidden_states, out.source_hidden_states, out.pooled, out.logits)
    if drawn.has_head:
        # Where a model has a head, what its pooler says is a step on the way, and Hugging Face keeps it to itself.
        trace.pop("pooled", None)
    _backward(trace, out.loss)
    return trace | our_gradients(model)


def assert_same(ours: Trace, theirs: Trace, roundings: Callable[[], Roundings]) -> None:
    """Raise unless both have the same tensors, ours within 1e-5 of the largest magnitude of theirs.

    Args:
        ours: From our model.
        theirs: From Hugging Face's.
        roundings: Makes theirs in float32 and in float64, and that of models one rounding away, to tell how much of a
            larger difference is rounding, and whose: a few draws are so badly conditioned that Hugging Face itself is
            not within 1e-5 of the truth.
    """
    off = {name: share for name, share in _differences(ours, theirs).items() if share > TOLERANCE}
    if not off:
        return
    made = roundings()
    truth = made[0][1]
    for name, share in off.items():
        error = _difference(ours[name], truth[name]) / _scale(name, theirs)
        # A draw that is badly conditioned is so for all of its gradients, and luck spares some of them.
        alike = [other for other in theirs if other.startswith(GRADIENT)] if name.startswith(GRADIENT) else [name]
        rounding = max(_difference(a[each], b[each]) / _scale(each, theirs) for a, b in made for each in alike)
        assert error <= TOLERANCE or share <= 5 * rounding, (
            f"{name}: off by {share:.2e} relative (and Hugging Face's rounding is {rounding:.2e})"
        )


def assert_close(ours: Trace, theirs: Trace, tolerance: float) -> None:
    """Raise unless both have the same tensors, ours within a tolerance of the largest magnitude of theirs."""
    for name, share in _differences(ours, theirs).items():
        assert share <= tolerance, f"{name}: off by {share:.2e} relative"


def _trace(
    drawn: ModelSpec,
    inputs: Inputs,
    states: tuple[Tensor, ...],
    source_states: tuple[Tensor, ...] | None,
    pooled: Tensor | None,
    logits: Tensor | None,
) -> Trace:
    trace = {f"hidden state {layer}": _real(state, inputs.mask) for layer, state in enumerate(states)}
    # Both stacks of a classifier read the tokens.
    source_mask = inputs.mask if inputs.source is None else inputs.source_mask
    for layer, state in enumerate(source_states or ()):
        trace[f"source hidden state {layer}"] = _real(state, source_mask)
    if pooled is not None:
        trace["pooled"] = pooled
    if logits is not None:
        trace["logits"] = _real(logits, None if "SequenceClassification" in drawn.architecture else inputs.mask)
    return trace


def _real(state: Tensor, mask: Tensor | None) -> Tensor:
    return state if mask is None else state[mask]


def _backward(trace: Trace, loss: Tensor | None) -> None:
    """Differentiate the loss, or for a model without a head some number that depends on all that it says.

    That number is not compared: it is a sum of both signs, and may be as small as the rounding of its terms.
    """
    if loss is None:
        last = max((name for name in trace if name.startswith("hidden")), key=lambda name: int(name.split()[-1]))
        said = [trace[name] for name in (last, "pooled") if name in trace]
        generator = torch.Generator().manual_seed(0)
        torch.stack([(part * torch.randn(part.shape, generator=generator)).mean() for part in said]).sum().backward()
        return
    loss.backward()
    trace["loss"] = loss.detach()


def _gradient(weight: Tensor) -> Tensor:
    return torch.zeros_like(weight) if weight.grad is None else weight.grad


def their_gradients(model: PreTrainedModel) -> Trace:
    """By the names of files of models with a head; of two names for one weight the one that our tables write."""
    family = FAMILIES[model.config.model_type]
    config = family.read(model.config.to_dict(), family.architectures[type(model).__name__])
    written = {line.theirs: line.ours for line in family.rows_of(config) if not line.alias}
    heads = tuple(name for name, _ in model.named_children())
    bare = f"{model.base_model_prefix}" not in heads
    names: dict[int, list[str]] = {}
    weights: dict[int, Tensor] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        if weight.requires_grad:
            name = family.current_name(name)
            names.setdefault(id(weight), []).extend((name, family.prefix + name) if bare else (name,))
            weights[id(weight)] = weight

    def rank(name: str) -> tuple[bool, bool]:
        """Names that are written come first, and of a tied head that of the token table."""
        form = name if name in written else re.sub(r"\.\d+\.", ".{i}.", name, count=1)
        return form not in written, written.get(form, ("",))[0].startswith("head.")

    chosen = {
        key: many[-1] if all(rank(name)[0] for name in many) else min(many, key=rank) for key, many in names.items()
    }
    gradients = {chosen[key]: _gradient(weight) for key, weight in weights.items()}
    # Stacks of experts are one weight there, and several in files.
    return {GRADIENT + name: part for name, part in revert_weight_conversion(model, gradients).items()}


def our_gradients(model: Transformer) -> Trace:
    weights = dict(model.named_parameters())
    table = FAMILIES[model.config.model_type].table(model.config, list(model.state_dict()))
    gradients = {name: _gradient(weight) for name, weight in weights.items()}
    return {
        GRADIENT + theirs: line.write(gradients)
        for theirs, line in table.items()
        if not line.alias and all(name in weights for name in line.ours)
    }


def _differences(ours: Trace, theirs: Trace) -> dict[str, float]:
    assert ours.keys() == theirs.keys()
    return {name: _difference(ours[name], theirs[name]) / _scale(name, theirs) for name in theirs}


def _difference(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape, f"shape {tuple(a.shape)} is not {tuple(b.shape)}"
    assert torch.isfinite(a).all()
    return (a.double() - b.double()).abs().max().item() if a.numel() else 0.0


def _scale(name: str, trace: Trace) -> float:
    """The largest magnitude in a tensor.

    Some gradients are zero but for rounding (a bias on all keys moves no softmax), so there is nothing to be relative
    to: a gradient counts as no smaller than a hundredth of the largest in the model.
    """
    largest = trace[name].abs().max().item() if trace[name].numel() else 0.0
    if name.startswith(GRADIENT):
        floor = max(part.abs().max().item() for other, part in trace.items() if other.startswith(GRADIENT)) / 100
        largest = max(largest, floor)
    return max(largest, 1e-30)
