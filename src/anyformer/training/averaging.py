"""Averages of the weights of a run, which are often better than the latest ones."""

from collections import deque
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn
from typing_extensions import override

from anyformer.dtensor import distribute_like
from anyformer.errors import UserError, quote

_LEAST_SHARE = 0.1
"""The share of the latest weights from which the mean is updated: an update reads and writes all of it, which takes a
twentieth of a short step."""


class Average:
    """A mean of the weights along a run, which are live tensors of a model by name."""

    def update(self, weights: Mapping[str, Tensor]) -> None:
        """A step has been taken."""

    def snapshot(self, weights: Mapping[str, Tensor]) -> None:
        """A checkpoint is being made."""

    def weights(self) -> dict[str, Tensor] | None:
        """The mean, in float32, to be read only; None: there is nothing to average yet."""
        raise NotImplementedError

    def state(self) -> dict[str, Tensor]:
        """The tensors that a resumed run needs, by name; not copies."""
        raise NotImplementedError

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from copies of a state. Raises UserError for that of another average."""
        raise NotImplementedError

    @contextmanager
    def applied(self, weights: Mapping[str, Tensor]) -> Generator[None]:
        """Context in which the weights are the averaged ones; afterwards they are their own again, bit for bit.

        It takes the memory of one more copy of them, and does nothing while there is no average.
        """
        mean = self.weights()
        if mean is None:
            yield
            return
        live = {name: weight.detach().clone() for name, weight in weights.items()}
        _fill(weights, _distributed_like(weights, mean))
        try:
            yield
        finally:
            _fill(weights, live)


class MovingAverage(Average):
    """An exponential moving average: ``mean <- d mean + (1 - d) weights``, from the first step on.

    ``d = min(decay, (1 + t) / (10 + t))`` after t steps, so that it forgets the first weights soon. Where that is close
    to 1, several steps are one update, with the product of their d and the latest weights.

    Args:
        decay: in [0, 1).
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self._updates, self._kept = 0, 1.0
        self._mean: dict[str, Tensor] = {}

    @override
    def update(self, weights: Mapping[str, Tensor]) -> None:
        if not self._mean:
            self._mean = _copies(weights)
        else:
            self._mean = _distributed_like(weights, self._mean)
            self._kept *= min(self.decay, (1 + self._updates) / (10 + self._updates))
            if 1 - self._kept >= _LEAST_SHARE:
                latest = [weights[name].detach().float() for name in self._mean]
                get_ema_multi_avg_fn(self._kept)(list(self._mean.values()), latest, self._updates)
                self._kept = 1.0
        self._updates += 1

    @override
    def weights(self) -> dict[str, Tensor] | None:
        return dict(self._mean) or None

    @override
    def state(self) -> dict[str, Tensor]:
        counts = {"updates": torch.tensor(self._updates), "kept": torch.tensor(self._kept, dtype=torch.float64)}
        return counts | {f"mean.{name}": mean for name, mean in self._mean.items()}

    @override
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        if "updates" not in state or any(not key.startswith("mean.") for key in state.keys() - {"updates", "kept"}):
            raise _misfit("ema")
        self._updates, self._kept = int(state["updates"]), float(state.get("kept", 1.0))
        self._mean = _part(state, "mean.")


class LatestAverage(Average):
    """The mean of the latest checkpoints (Vaswani et al. 2017, section 6.1).

    It keeps a copy of the weights, in float32, for each of them, beside the model and in every checkpoint.

    Args:
        number: of checkpoints, at least 1.
    """

    def __init__(self, number: int) -> None:
        self._latest = deque[dict[str, Tensor]](maxlen=number)

    @override
    def snapshot(self, weights: Mapping[str, Tensor]) -> None:
        earlier = [_distributed_like(weights, copy) for copy in self._latest]
        self._latest.clear()
        self._latest.extend([*earlier, _copies(weights)])

    @override
    def weights(self) -> dict[str, Tensor] | None:
        if not self._latest:
            return None
        first, *others = self._latest
        mean = _copies(first)
        for other in others:
            for name, total in mean.items():
                total.add_(other[name])
        return {name: total.div_(len(self._latest)) for name, total in mean.items()}

    @override
    def state(self) -> dict[str, Tensor]:
        # "0.NAME" is of the oldest checkpoint.
        return {f"{age}.{name}": value for age, copy in enumerate(self._latest) for name, value in copy.items()}

    @override
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        ages = {key.partition(".")[0] for key in state}
        if ages != set(map(str, range(len(ages)))) or len(ages) > (self._latest.maxlen or 0):
            raise _misfit("last")
        self._latest.clear()
        self._latest.extend(_part(state, f"{age}.") for age in range(len(ages)))


def make_average(text: str | None) -> Average | None:
    """The average of `ema:0.999` or `last:5`; None for None. Raises UserError for any other text."""
    if text is None:
        return None
    kind, _, number = text.partition(":")
    with suppress(ValueError):
        if kind == "ema" and 0 <= float(number) < 1:
            return MovingAverage(float(number))
        if kind == "last" and int(number) >= 1:
            return LatestAverage(int(number))
    raise UserError(
        f"--average {quote(text)} is not an average: give ema:DECAY with a decay from 0 to below 1, such as ema:0.999, "
        "or last:NUMBER with a number of checkpoints, such as last:5."
    )


@torch.no_grad()
def _fill(weights: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, weight in weights.items():
        weight.copy_(values[name])


def _copies(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: weight.detach().to(torch.float32, copy=True) for name, weight in weights.items()}


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return _copies({key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)})


def _distributed_like(weights: Mapping[str, Tensor], mean: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mean on the devices of the weights, and sharded as they are: a loaded one isn't yet."""
    if {name: tensor.shape for name, tensor in mean.items()} != {name: w.shape for name, w in weights.items()}:
        raise UserError("The checkpoint's average is of another model: resume it with the one that it was saved with.")
    return {name: distribute_like(mean[name].to(weight.device), weight) for name, weight in weights.items()}


def _misfit(kind: str) -> UserError:
    return UserError(
        f"The checkpoint has no average that --average {kind}:... can go on from: resume it with the --average that it "
        "was saved with."
    )
