"""Tensors as they are at one moment, written by another thread while training goes on to change them.

In the forward and the backward pass of a step nothing changes, so they are written from where they are. What is not
written yet when the step is about to change them is copied; or training waits, where memory has no room for a copy.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

from anyformer.training.dtensor import local_tensor
from anyformer.training.memory import has_room

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

_PART = 1 << 26
"""Bytes that are written at a time, at most, unless one tensor has more."""


class Snapshot:
    """The tensors of a state, in parts that are written one after the other.

    Args:
        state: live tensors, or this process's pieces of them, by name.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self._parts: list[dict[str, Tensor]] = [{}]
        room = _PART
        for name, tensor in state.items():
            size = local_tensor(tensor).nbytes
            if size > room and self._parts[-1]:
                self._parts.append({})
                room = _PART
            self._parts[-1][name] = tensor
            room -= size
        self._several = len(self._parts) > 1
        self._lock, self._waits, self._safe = threading.Lock(), threading.Event(), threading.Event()

    def write(self, write: Callable[[dict[str, Tensor], str], T]) -> list[T]:
        """Write all parts, each with what tells its file from those of the others, and let go of them."""
        number, written = 0, list[T]()
        try:
            while True:
                if self._waits.is_set():  # or this thread would have the lock again before training gets it
                    self._safe.wait()
                with self._lock:
                    if not self._parts:
                        return written
                    number += 1
                    written.append(write(self._parts.pop(0), f"-{number:05}" if self._several else ""))
        finally:
            self._safe.set()

    def keep(self) -> None:
        """Return when the tensors may change: those that are not written yet have been copied."""
        if self._safe.is_set():
            return
        if not has_room(sum(local_tensor(tensor).nbytes for part in [*self._parts] for tensor in part.values())):
            self._safe.wait()
            return
        self._waits.set()
        with self._lock:
            for part in self._parts:
                for name, tensor in part.items():
                    part[name] = tensor.detach().to("cpu", copy=True)
            self._safe.set()
